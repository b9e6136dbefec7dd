"""Tests of utils/deploy."""
