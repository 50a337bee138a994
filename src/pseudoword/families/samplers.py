"""Samplers by the names that people know them by: diffusers' schedulers and how they are set up."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor

from pseudoword.errors import RecipeError
from pseudoword.recipe import Sampler

SAMPLERS: dict[Sampler, tuple[Any, dict[str, Any]]] = {
    "dpm++": (diffusers.DPMSolverMultistepScheduler, {}),  # DPM-Solver++ 2M, Lu et al. 2022
    "dpm++-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {}),
}
ZERO_SNR = "rescale_betas_zero_snr"


def scheduler(sampler: Sampler, trained_with: Any, prediction_type: str) -> Any:
    """Return the sampler's scheduler for a model that was trained with another's noise levels.

    A model whose last timestep is noise alone must be sampled from there (Lin et al. 2023, sec. 3.3); RecipeError if
    a sampler cannot.
    """
    kind, options = SAMPLERS[sampler]
    if trained_with.config.get(ZERO_SNR, False):
        able = [
            name for name, (other, _) in SAMPLERS.items() if ZERO_SNR in inspect.signature(other.__init__).parameters
        ]
        if sampler not in able:
            raise RecipeError(
                f"The sampler {sampler!r} cannot start from noise alone, as this base (zero terminal SNR) must; "
                f"take one of {', '.join(able)}."
            )
        options = {**options, "timestep_spacing": "trailing"}
    return kind.from_config(trained_with.config, prediction_type=prediction_type, **options)


@functools.cache
def from_latents(kind: Any) -> Any:
    """Return a pipeline's class that takes latents of any number of channels for what it starts from."""

    def prepare_latents(
        self: Any,
        image: torch.Tensor,
        timestep: torch.Tensor,
        batch: int,
        count: int,
        dtype: Any,
        device: Any,
        generator: Any = None,
        add_noise: bool = True,
    ) -> torch.Tensor:
        start = image.to(device=device, dtype=dtype).expand(batch * count, -1, -1, -1)
        noise = randn_tensor(start.shape, generator=generator, device=device, dtype=dtype)
        return self.scheduler.add_noise(start, noise, timestep) if add_noise else start

    return type(kind.__name__, (kind,), {"prepare_latents": prepare_latents})
