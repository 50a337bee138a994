"""Measures of a learned word."""
