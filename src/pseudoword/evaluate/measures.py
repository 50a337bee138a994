"""The measures: between which numbers their scores lie, and what each says in plain words."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """What one kind of score is."""

    lowest: float
    highest: float
    matters: float
    """The least difference between two scores that a person would see in the pictures."""
    meaning: str


MEASURES = {
    "fidelity": Measure(
        0, 1, 0.05, "Is it the concept? The share of the concept's own attributes that the oracle reads right."
    ),
    "editability": Measure(
        0, 1, 0.05, "Does the rest of the prompt still hold? The share of what it asks for that the oracle reads right."
    ),
    "similarity": Measure(
        -1,
        1,
        0.05,
        "How close is what the pictures show to what yours show? The cosine of the oracle's embeddings: 1 is the same "
        "thing, 0 something unrelated. It is a matter of degree where fidelity counts right or wrong, so it moves "
        "first. Places and styles should not change it. A style has no similarity.",
    ),
    "dino": Measure(-1, 1, 0.03, "Is it this concept? The mean cosine of DINO's embeddings of its pictures and yours."),
    "clip-i": Measure(
        -1,
        1,
        0.03,
        "Is it something like the concept? The mean cosine of CLIP's embeddings of its pictures and yours. It tells "
        "members of a class apart less well than DINO.",
    ),
    "dinov2": Measure(-1, 1, 0.03, "As dino, with DINOv2's embeddings."),
    "clip-t": Measure(
        -1,
        1,
        0.01,
        "Does the prompt still hold? The cosine of CLIP's embeddings of prompt and picture. Good pictures have 0.25 to "
        "0.35, and differences of 0.01 can be seen.",
    ),
    "siglip": Measure(0, 1, 0.05, "Does the prompt still hold? The probability that prompt and picture match."),
}

UNKNOWN = Measure(-math.inf, math.inf, 0.0, "")


def measure(name: str) -> Measure:
    """Return what is known of a measure."""
    return MEASURES.get(name, UNKNOWN)
