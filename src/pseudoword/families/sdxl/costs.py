"""What a training step of a Stable Diffusion XL base needs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pseudoword.families import counting
from pseudoword.families.sdxl import facts
from pseudoword.recipe import BaseModel

FIRST, SECOND = facts.ENCODERS.values()
TEXTS = {FIRST: CLIPTextModel, SECOND: CLIPTextModelWithProjection}


def weights(base: BaseModel, *, half: bool = False, eight_bits: bool = False) -> dict[str, int]:
    """Return the bytes that each module's weights take."""
    return counting.weights(base, TEXTS, half=half, eight_bits=eight_bits)


def kept_for_gradient(
    base: BaseModel, size: tuple[int, int], count: int, *, half: bool = False, recomputed: bool = False
) -> int:
    """Return the bytes that a forward pass of `count` pictures of a width and height keeps for the rows' gradient."""
    return counting.kept_for_gradient(base, TEXTS, _denoise, size, count, half=half, recomputed=recomputed)


def _denoise(
    modules: Mapping[str, Any], ids: Mapping[str, torch.Tensor], latents: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    outputs = [modules[name](own, output_hidden_states=True) for name, own in ids.items()]
    condition = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1).to(latents.dtype)
    placement = torch.zeros(len(latents), 6, dtype=latents.dtype, device="meta")
    told = {"text_embeds": outputs[1].text_embeds.to(latents.dtype), "time_ids": placement}
    return modules["unet"](latents, timesteps, condition, added_cond_kwargs=told).sample
