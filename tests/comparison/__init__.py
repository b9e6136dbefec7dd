"""Tests of utils/comparison and compare.py."""
