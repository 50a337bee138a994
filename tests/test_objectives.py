"""Noising and targets against diffusers' scheduler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from pseudoword import objectives


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    """Latents, noise and timesteps from the least noise to the most, and the scheduler's levels for them."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    generator = torch.Generator().manual_seed(0)
    timestep = torch.tensor([0, 1, 250, 500, 998, 999])
    latents, noise = torch.randn(2, 6, 4, 3, 2, generator=generator)
    signal = scheduler.alphas_cumprod[timestep][:, None, None, None]
    return {
        "scheduler": scheduler,
        "timestep": timestep,
        "latents": latents,
        "noise": noise,
        "levels": {"alpha": signal.sqrt(), "sigma": (1 - signal).sqrt()},
    }


def test_noised_latents_are_the_schedulers(numbers: dict[str, Any]):
    latents, noise = numbers["latents"], numbers["noise"]
    expected = numbers["scheduler"].add_noise(latents, noise, numbers["timestep"])
    torch.testing.assert_close(objectives.noised(latents, noise, **numbers["levels"]), expected, rtol=1e-6, atol=1e-6)


def test_the_target_is_the_noise_or_the_schedulers_velocity(numbers: dict[str, Any]):
    latents, noise = numbers["latents"], numbers["noise"]
    assert objectives.target("epsilon", latents, noise, **numbers["levels"]) is noise
    expected = numbers["scheduler"].get_velocity(latents, noise, numbers["timestep"])
    velocity = objectives.target("v_prediction", latents, noise, **numbers["levels"])
    torch.testing.assert_close(velocity, expected, rtol=1e-6, atol=1e-6)


def test_latents_and_noise_follow_from_what_the_denoiser_sees_and_predicts(numbers: dict[str, Any]):
    # Salimans & Ho 2022, app. D: z_0 = alpha z_t - sigma v and eps = sigma z_t + alpha v.
    latents, noise, (alpha, sigma) = numbers["latents"], numbers["noise"], numbers["levels"].values()
    noised = objectives.noised(latents, noise, alpha, sigma)
    velocity = objectives.target("v_prediction", latents, noise, alpha, sigma)
    torch.testing.assert_close(alpha * noised - sigma * velocity, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sigma * noised + alpha * velocity, noise, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", objectives.PREDICTION_TYPES)
def test_arrays_of_any_library_give_the_same_numbers(numbers: dict[str, Any], kind: objectives.PredictionType):
    tensors = [numbers["latents"], numbers["noise"], *numbers["levels"].values()]
    arrays = [tensor.numpy() for tensor in tensors]
    for torch_value, numpy_value in (
        (objectives.noised(*tensors), objectives.noised(*arrays)),
        (objectives.target(kind, *tensors), objectives.target(kind, *arrays)),
    ):
        assert isinstance(numpy_value, np.ndarray)
        assert np.allclose(torch_value.numpy(), numpy_value, rtol=1e-6, atol=1e-7)
