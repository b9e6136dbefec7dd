"""Tests of utils/checkpoint."""
