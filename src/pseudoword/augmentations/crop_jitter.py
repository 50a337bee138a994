"""Crop jitter: a part of the usual frame, smaller by up to the strength on either side, anywhere in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

USUAL = 0.1
Box = tuple[int, int, int, int]


def box(box: Box, rng: np.random.Generator, strength: float) -> Box:
    """Return a box of the same aspect ratio inside another."""
    left, top, right, bottom = box
    share = rng.uniform(1 - strength, 1)
    width, height = max(1, round((right - left) * share)), max(1, round((bottom - top) * share))
    x = left + int(rng.integers(right - left - width + 1))
    y = top + int(rng.integers(bottom - top - height + 1))
    return x, y, x + width, y + height
