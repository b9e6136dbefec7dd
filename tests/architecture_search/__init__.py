"""Tests of utils/architecture_search."""
