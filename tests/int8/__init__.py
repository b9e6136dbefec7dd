"""Tests of utils/int8."""
