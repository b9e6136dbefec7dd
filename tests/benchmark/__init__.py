"""Tests of utils/benchmark."""
