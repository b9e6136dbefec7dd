"""Tests of utils/evaluate."""
