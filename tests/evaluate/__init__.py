"""Tests of what judges a word."""
