"""Tests of utils/convert_data."""
