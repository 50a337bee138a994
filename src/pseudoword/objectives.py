"""Noising and the denoiser's target; the arrays may be of any library."""

from __future__ import annotations

from typing import Any, Literal

PredictionType = Literal["epsilon", "v_prediction"]
PREDICTION_TYPES = ("epsilon", "v_prediction")


def noised(latents: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    """Return z_t = alpha_t z_0 + sigma_t eps (Ho et al. 2020, eq. 4), with alpha_t² + sigma_t² = 1."""
    return alpha * latents + sigma * noise


def target(prediction_type: PredictionType, latents: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    """Return what the denoiser should predict: eps, or v = alpha_t eps - sigma_t z_0 (Salimans & Ho 2022, app. D)."""
    if prediction_type == "epsilon":
        return noise
    return alpha * noise - sigma * latents


def found(prediction_type: PredictionType, noised: Any, prediction: Any, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """Return the latents z_0 and the noise eps that a prediction stands for: `noised` and `target` the other way."""
    if prediction_type == "epsilon":
        return (noised - sigma * prediction) / alpha, prediction
    return alpha * noised - sigma * prediction, sigma * noised + alpha * prediction
