"""Samplers by the names that people know them by: diffusers' schedulers and how they are set up."""

from __future__ import annotations

from typing import Any

import diffusers

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


def scheduler(sampler: Sampler, trained_with: Any, prediction_type: str) -> Any:
    """Return the sampler's scheduler for a model that was trained with another's noise levels."""
    kind, options = SAMPLERS[sampler]
    return kind.from_config(trained_with.config, prediction_type=prediction_type, **options)
