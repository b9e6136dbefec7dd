"""Tests of utils/train."""
