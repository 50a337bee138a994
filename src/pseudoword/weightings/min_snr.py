"""Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556): pictures with little noise count no more than needed."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from pseudoword.errors import RecipeError

NUMBER: float | None = 5.0
"""Gamma, the signal-to-noise ratio beyond which the error of the clean latents counts no more."""


def check(gamma: float | None) -> None:
    """Raise RecipeError for a gamma that is none."""
    if gamma is None or not (math.isfinite(gamma) and gamma > 0):
        raise RecipeError(f"min-snr needs a number above 0, such as min-snr=5, not {gamma}.")


def weight(xp: ModuleType, alpha: Any, sigma: Any, prediction_type: str, gamma: float | None) -> Any:
    """Return min(SNR, gamma) on the error of the clean latents, as what it is on the prediction's own (section 3.4).

    That is min(SNR, gamma) / SNR for eps and min(SNR, gamma) / (SNR + 1) for v. With SNR = alpha² / sigma² and alpha² +
    sigma² = 1 neither needs a division that pure noise (alpha = 0) would break.
    """
    if prediction_type == "v_prediction":
        return xp.minimum(alpha * alpha, gamma * sigma * sigma)
    capped = xp.maximum(alpha * alpha, gamma * sigma * sigma)
    return gamma * sigma * sigma / capped
