"""How long a row is and how far it has moved, measured by the vocabulary of its text encoder; the bounds of both."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LONGEST = 30.0
"""Times the vocabulary's usual length that a row may have.

AdamW alone lengthens rows, about as the learning rate times the root of numbers in a row and of steps. Runs as they are
published end 3 (5e-4, 3,000 steps) to 26 times (2e-2, 400 steps) as long as the words of Stable Diffusion 1.5. Beyond
that a row is the optimizer's doing, and drowns out the rest of a prompt.
"""
LEAST_MOVED = 0.1
"""Usual lengths, or starting lengths if those are shorter, that a row must have moved.

Moved by a tenth across itself, a row turns by 6 degrees, to a cosine of 0.995: the vocabulary's nearest word is still
where it started.
"""
NOISY_STEP = 0.23
"""Of the learning rate, how far AdamW moves a number in a step whose gradient is mostly noise.

The root of (1 - 0.9) / (1 + 0.9), for its running mean of gradients; a steady gradient moves it by the whole rate.
"""


def usual_length(table: Float[np.ndarray, "size width"]) -> float:
    """Return the length that 99 of 100 rows of a vocabulary stay below: a mean would count rare pieces as much."""
    return float(np.percentile(np.linalg.norm(table.astype(np.float32), axis=1), 99))


def longest(rows: Float[np.ndarray, "vectors width"]) -> float:
    """Return the length of the longest row."""
    return float(np.linalg.norm(rows, axis=1).max())


def moved(rows: Float[np.ndarray, "vectors width"], start: Float[np.ndarray, "vectors width"], usual: float) -> float:
    """Return how far the row that moved most is from its start, over its starting length or the usual one."""
    distances = np.linalg.norm(rows - start, axis=1)
    lengths = np.minimum(np.linalg.norm(start, axis=1), usual)
    return float((distances / np.maximum(lengths, 1e-12)).max())


def by_chance(learning_rates: Float[np.ndarray, " steps"], width: int) -> float:
    """Return how far AdamW takes a row of `width` numbers whose gradients point nowhere: a random walk."""
    return float(np.sqrt(width * np.square(learning_rates).sum()))


def way(learning_rates: Float[np.ndarray, " steps"], width: int) -> float:
    """Return the length of all of AdamW's steps together where gradients are mostly noise: no row gets farther."""
    return float(NOISY_STEP * np.sqrt(width) * learning_rates.sum())
