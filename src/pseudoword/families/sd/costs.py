"""What a training step of a Stable Diffusion base needs in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import CLIPTextModel

from pseudoword.families import counting
from pseudoword.families.sd import facts
from pseudoword.recipe import BaseModel

TEXTS = {facts.TEXT_ENCODER: CLIPTextModel}


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
    condition = modules[facts.TEXT_ENCODER](ids[facts.TEXT_ENCODER]).last_hidden_state
    return modules["unet"](latents, timesteps, condition.to(latents.dtype)).sample
