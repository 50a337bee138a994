"""The table of loss weightings: how much a picture's error counts in a training step, by how noisy the picture is.

A weighting is a module with `NUMBER`, what its name may be followed by and its usual value (None if by nothing),
`check(number)`, and `weight(xp, alpha, sigma, prediction_type, number)`. The fixed-draw loss is never weighted, so that
words learned with different weightings can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pseudoword.settings import named_number
from pseudoword.weightings import debiased, min_snr

WEIGHTINGS: dict[str, Any] = {"min-snr": min_snr, "debiased": debiased}


@dataclass(frozen=True)
class Weighting:
    """One of the table, with its number."""

    name: str
    number: float | None

    def __call__(self, xp: ModuleType, alpha: Any, sigma: Any, prediction_type: str) -> Any:
        """Return each picture's weight, shaped as its noise level; array code over torch or jax.numpy."""
        return WEIGHTINGS[self.name].weight(xp, alpha, sigma, prediction_type, self.number)


def read(text: str | None) -> Weighting | None:
    """Return the weighting that 'NAME' or 'NAME=NUMBER' stands for; RecipeError if none does."""
    if text is None:
        return None
    name, number = named_number(text, {name: own.NUMBER for name, own in WEIGHTINGS.items()}, "loss_weighting")
    WEIGHTINGS[name].check(number)
    return Weighting(name, number)
