"""Debiased weighting (Yu et al. 2023, arXiv 2310.08442): noisy pictures, of which the prompt says most, count more."""

from __future__ import annotations

from types import ModuleType
from typing import Any

NUMBER: float | None = None
LEAST = 1e-2
"""Alpha below which a picture of noise alone counts no more; Stable Diffusion's own ends at 0.068."""


def check(number: float | None) -> None:
    """It has no number."""


def weight(xp: ModuleType, alpha: Any, sigma: Any, prediction_type: str, number: float | None) -> Any:
    """Return 1 / sqrt(SNR) on the error of eps (equation 9), and for v what is the same on the error of eps.

    The error of v is (SNR + 1) / SNR times that of eps, so its weight is sqrt(SNR) / (SNR + 1) = alpha sigma. (Others
    take 1 / (SNR + 1) there, which is another weighting.)
    """
    del number
    if prediction_type == "v_prediction":
        return alpha * sigma
    return sigma / xp.clip(alpha, min=LEAST)
