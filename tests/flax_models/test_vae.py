"""The VAE against diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
import torch
from diffusers import AutoencoderKL as TorchVAE

from pseudoword.flax_models import AutoencoderKL
from tests.flax_models.references import EXACT, error, numbers, ours, randomised

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as published": {},
    "two layers, 16 channels": {"layers_per_block": 2, "latent_channels": 16},
    "no quant_conv": {"use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
}


def reference(**more: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return randomised(TorchVAE(**{**config, **more}))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_moments_and_pictures_are_those_of_diffusers(name: str, tmp_path: Path):
    theirs = reference(**CONFIGURATIONS[name])
    vae = ours(AutoencoderKL, theirs, tmp_path)
    pixels, latents = numbers(0, 2, 3, 16, 24), numbers(1, 2, vae.configuration.latent_channels, 4, 6)
    mean, std = vae.encode(jnp.asarray(pixels))
    expected = theirs.encode(torch.tensor(pixels)).latent_dist
    assert error(mean, expected.mean) < EXACT
    assert error(std, expected.std) < EXACT
    assert error(vae.decode(jnp.asarray(latents)), theirs.decode(torch.tensor(latents)).sample) < EXACT


def test_a_picture_of_an_odd_size_is_halved_as_in_diffusers(tmp_path: Path):
    theirs = reference()
    mean, _ = ours(AutoencoderKL, theirs, tmp_path).encode(jnp.asarray(numbers(0, 1, 3, 15, 21)))
    assert error(mean, theirs.encode(torch.tensor(numbers(0, 1, 3, 15, 21))).latent_dist.mean) < EXACT


def test_variances_beyond_reason_are_cut_as_in_diffusers(tmp_path: Path):
    theirs = reference()
    theirs.quant_conv.weight.data *= 1000
    pixels = numbers(0, 1, 3, 16, 16)
    _, std = ours(AutoencoderKL, theirs, tmp_path).encode(jnp.asarray(pixels))
    expected = theirs.encode(torch.tensor(pixels)).latent_dist.std
    assert error(std, expected) < EXACT
    assert float(std.max()) == pytest.approx(float(torch.tensor(10.0).exp()))
