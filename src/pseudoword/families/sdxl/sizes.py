"""The sizes of a Stable Diffusion XL base, from its configurations alone."""

from __future__ import annotations

from pseudoword.families.configurations import sizes

__all__ = ["sizes"]
