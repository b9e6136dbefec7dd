"""Tests of utils/export."""
