"""Noise schedules against diffusers' DDPMScheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import DDPMScheduler

from pseudoword.errors import RecipeError
from pseudoword.flax_models import alphas_cumprod

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "diffusers' own": {},
    "Stable Diffusion": STABLE,
    "zero terminal SNR": {**STABLE, "rescale_betas_zero_snr": True},
    "fewer steps": {**STABLE, "num_train_timesteps": 50},
    "linear": {"beta_schedule": "linear", "beta_end": 0.01},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "its own betas": {"trained_betas": [0.1, 0.2, 0.05], "num_train_timesteps": 3},
    "its own betas to zero": {
        "trained_betas": [0.1, 0.2, 0.05],
        "num_train_timesteps": 3,
        "rescale_betas_zero_snr": True,
    },
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_remains_of_a_picture_is_what_diffusers_says(name: str):
    scheduler: Any = DDPMScheduler(**SCHEDULES[name])
    made, expected = alphas_cumprod(dict(scheduler.config)), scheduler.alphas_cumprod.numpy()
    assert made.dtype == np.float32
    assert np.array_equal(made == 0, expected == 0)
    # diffusers rounds every beta to fp32, of which 1e-6 is left after a thousand steps; near zero, more of it.
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(made, alphas_cumprod(SCHEDULES[name])), "a setting that is left out is diffusers' default"


def test_another_schedule_is_refused():
    with pytest.raises(RecipeError, match="beta_schedule 'sigmoid'; expected scaled_linear, linear or squaredcos"):
        alphas_cumprod({"beta_schedule": "sigmoid"})
