"""Tests of what judges a recipe before training, and a word after it."""
