"""Benchmarks: the forms of a model, what memory they take, and the report of what was measured."""
