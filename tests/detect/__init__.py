"""Tests of utils/detect."""
