"""Samplers' steps as numbers, in NumPy: what each makes of latents and predictions, as diffusers' schedulers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pseudoword.errors import RecipeError
from pseudoword.flax_models.noise import alphas_cumprod
from pseudoword.recipe import Sampler, check_sampler


@dataclass(frozen=True)
class Plan:
    """The steps from noise to latents: x' = kept·x + clean·z₀ + before·(z₀ of the step before) + noise·ε."""

    timestep: Int[np.ndarray, " steps"]
    alpha: Float[np.ndarray, " steps"]
    sigma: Float[np.ndarray, " steps"]
    """How much of latents and noise there is before each step, from which z₀ and ε follow with the prediction."""
    kept: Float[np.ndarray, " steps"]
    clean: Float[np.ndarray, " steps"]
    before: Float[np.ndarray, " steps"]
    noise: Float[np.ndarray, " steps"]
    limit: float = np.inf
    """Beyond which z₀ is cut off."""


def plan(sampler: Sampler, scheduler: Mapping[str, Any], steps: int, first: int = 0) -> Plan:
    """Return a sampler's steps on a base with this scheduler_config.json, without as many as `first` at the beginning.

    RecipeError if the sampler is not known here, or the configuration asks for more than is known; IndexError or
    FloatingPointError if there are too many steps. A model whose last timestep is noise alone is sampled from there
    (Lin et al. 2023, sec. 3.3).
    """
    check_sampler("jax", sampler)
    differing = [name for name, usual in USUAL.items() if scheduler.get(name, usual) != usual]
    if scheduler.get("timestep_spacing", "leading") not in SPACINGS:
        differing.append("timestep_spacing")
    if differing:
        raise RecipeError(
            f"The base's scheduler configuration sets {', '.join(differing)}, which the JAX engine does not sample "
            "with; use the torch engine."
        )
    more = {"timestep_spacing": "trailing"} if scheduler.get("rescale_betas_zero_snr") else {}
    with np.errstate(divide="raise", invalid="raise"):
        return PLANS[sampler]({**scheduler, **more}, steps, first)


def _ddim(scheduler: Mapping[str, Any], steps: int, first: int) -> Plan:
    """DDIM without noise in between (Song et al. 2021, eq. 12)."""
    signals = alphas_cumprod(scheduler).astype(np.float64)
    count = len(signals)
    timesteps = {
        "linspace": lambda: np.linspace(0, count - 1, steps).round()[::-1],
        "leading": lambda: np.arange(steps)[::-1] * (count // steps) + scheduler.get("steps_offset", 0),
        "trailing": lambda: np.round(count - np.arange(steps) * (count / steps)) - 1,
    }[scheduler.get("timestep_spacing", "leading")]().astype(np.int64)[first:]
    last = 1.0 if scheduler.get("set_alpha_to_one", True) else signals[0]
    earlier = timesteps - count // steps
    now, then = signals[timesteps], np.where(earlier >= 0, signals[earlier], last)
    limit = float(scheduler.get("clip_sample_range", 1.0)) if scheduler.get("clip_sample", True) else np.inf
    nothing = np.zeros(len(now))
    return Plan(
        timesteps, np.sqrt(now), np.sqrt(1 - now), nothing, np.sqrt(then), nothing, np.sqrt(1 - then), limit=limit
    )


def _dpm_solver(scheduler: Mapping[str, Any], steps: int, first: int) -> Plan:
    """DPM-Solver++ 2M, of first order at both ends (Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    signals = alphas_cumprod(scheduler).astype(np.float64)
    if scheduler.get("rescale_betas_zero_snr"):
        signals[-1] = 2.0**-24  # diffusers': close to 0, and its logarithm finite
    count = len(signals)
    timesteps = {
        "linspace": lambda: np.linspace(0, count - 1, steps + 1).round()[::-1][:-1],
        "leading": lambda: np.arange(steps + 1)[::-1][:-1] * (count // (steps + 1)) + scheduler.get("steps_offset", 0),
        "trailing": lambda: np.round(count - np.arange(steps) * (count / steps)) - 1,
    }[scheduler.get("timestep_spacing", "linspace")]().astype(np.int64)[first:]
    now = signals[timesteps]
    alpha, sigma = np.append(np.sqrt(now), 1.0), np.append(np.sqrt(1 - now), 0.0)
    # e^-h, where h is the step in λ = log(alpha / sigma); at the end, where no noise is left, it is 0.
    shrunk = (sigma[1:] * alpha[:-1]) / (alpha[1:] * sigma[:-1])
    towards = alpha[1:] * (1 - shrunk)
    inner = -np.log(shrunk[:-1])
    # Half the ratio of a step to the one before: how far the last change of z₀ is carried on.
    carried = np.zeros(len(now))
    carried[1:-1] = 0.5 * inner[1:] / inner[:-1]
    return Plan(
        timesteps,
        alpha[:-1],
        sigma[:-1],
        kept=sigma[1:] / sigma[:-1],
        clean=towards * (1 + carried),
        before=-towards * carried,
        noise=np.zeros(len(now)),
    )


PLANS: dict[str, Callable[[Mapping[str, Any], int, int], Plan]] = {"ddim": _ddim, "dpm++": _dpm_solver}
SPACINGS = "linspace", "leading", "trailing"
USUAL: Mapping[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -np.inf,
    "solver_order": 2,
    "solver_type": "midpoint",
    "thresholding": False,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": False,
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
}
"""What a scheduler's configuration may say of how it samples, and the only value of it that is known here."""
