"""Tests of utils/data."""
