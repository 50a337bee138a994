"""The noise schedule of a scheduler_config.json, in NumPy; names and defaults are those of diffusers' DDPMScheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from pseudoword.errors import RecipeError, first_line


def alphas_cumprod(config: Mapping[str, Any]) -> Float[np.ndarray, " timesteps"]:
    """Return what remains of a picture's variance at each timestep, in fp32 (Ho et al. 2020, section 2).

    RecipeError if the configuration names a schedule that is not known here.
    """
    try:
        kept = np.cumprod(1 - _betas(config))
        if config.get("rescale_betas_zero_snr"):
            kept = _to_zero(np.sqrt(kept)) ** 2
        if not (len(kept) and (kept >= 0).all()):
            raise ValueError("no timesteps, or a variance below zero")
        return kept.astype(np.float32)
    except (TypeError, ValueError, IndexError) as error:
        raise RecipeError(
            f"The scheduler's configuration describes no noise schedule ({first_line(error)}); download it again."
        ) from error


def _betas(config: Mapping[str, Any]) -> Float[np.ndarray, " timesteps"]:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], np.float64)
    count = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    schedule = config.get("beta_schedule", "linear")
    match schedule:
        case "linear":
            return np.linspace(start, end, count)
        case "scaled_linear":  # latent diffusion's own: linear in the square roots
            return np.linspace(start**0.5, end**0.5, count) ** 2
        case "squaredcos_cap_v2":
            return _cosine(count)
    raise RecipeError(
        f"The scheduler's configuration has the beta_schedule {schedule!r}; "
        "expected scaled_linear, linear or squaredcos_cap_v2."
    )


def _cosine(count: int) -> Float[np.ndarray, " timesteps"]:
    """Return the betas of a squared cosine, at most 0.999 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17)."""
    kept = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)


def _to_zero(roots: Float[np.ndarray, " timesteps"]) -> Float[np.ndarray, " timesteps"]:
    """Return the square roots shifted to end at zero and scaled to begin as before (Lin et al. 2023, algorithm 1)."""
    return (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
