"""Judging: what a recipe's settings and pictures are likely to come to, and whether a word has been learned."""
