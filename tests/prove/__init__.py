"""Tests of utils/prove."""
