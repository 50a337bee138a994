"""Stable Diffusion XL in one file, in the original code's layout: which tensors there are, and where."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pseudoword.families import single_file
from pseudoword.families.sdxl import facts
from pseudoword.recipe import BaseModel

PARTS = {
    "first text encoder": "conditioner.embedders.0.transformer.",
    "second text encoder": "conditioner.embedders.1.model.",
    "UNet": "model.diffusion_model.",
    "VAE": "first_stage_model.",
}
"""What the names of each part's tensors start with."""
TABLES = {
    "clip_l": f"{PARTS['first text encoder']}text_model.embeddings.token_embedding.weight",
    "clip_g": f"{PARTS['second text encoder']}token_embedding.weight",
}
"""The embedding tables."""
USUAL = "stabilityai/stable-diffusion-xl-base-1.0"
VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
"""Empty tensors by which such files say that they predict v, and that their last timestep is noise alone."""


def usual_config(base: BaseModel) -> str:
    """Return the Hub id of a base that is configured as such checkpoints usually are; RecipeError if it is none."""
    path = Path(base.model)
    checked(path, single_file.names(path))
    return USUAL


def state_dict(path: Path) -> dict[str, Any]:
    """Return text encoders, UNet and VAE in fp32; averaged (EMA) copies are left out, as other tools do."""
    tensors = single_file.read(path)
    checked(path, tensors)
    return single_file.of_parts(tensors, PARTS)


def noise_options(path: Path) -> dict[str, Any]:
    """Return what a file says of its noise schedule beyond its configuration, as options of a scheduler."""
    names = single_file.names(path)
    velocity = {"prediction_type": "v_prediction"} if VELOCITY in names else {}
    return {**velocity, **({"rescale_betas_zero_snr": True} if ZERO_SNR in names else {})}


def owns(names: Collection[str]) -> bool:
    """Whether a file's tensors are those of such a checkpoint."""
    return any(name.startswith(PARTS["second text encoder"]) for name in names)


def checked(path: Path, names: Collection[str]) -> None:
    """Raise RecipeError with what the file is, or which parts it lacks."""
    single_file.check_parts(path, names, PARTS, facts.KIND)
