"""The sizes of a Stable Diffusion base, from its configurations alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudoword.errors import RecipeError
from pseudoword.families.sd.words import from_hub
from pseudoword.recipe import BaseModel


@dataclass(frozen=True)
class StableDiffusionSizes:
    """See `contracts.Sizes`."""

    resolution: int
    latent_factor: int
    bucket_multiple: int


def sizes(base: BaseModel) -> StableDiffusionSizes:
    """Return the sizes of a base; RecipeError if its configurations do not tell them."""
    unet, vae = (configuration(base, part) for part in ("unet", "vae"))
    try:
        return sizes_of(unet, vae)
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"The configurations of {base.model!r} do not tell its sizes ({error}).") from error


def sizes_of(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> StableDiffusionSizes:
    """Return the sizes that the configurations of UNet and VAE tell."""
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = factor * 2 ** (len(unet["block_out_channels"]) - 1)
    return StableDiffusionSizes(int(unet["sample_size"]) * factor, factor, multiple)


def configuration(base: BaseModel, part: str) -> dict[str, Any]:
    """Return a part's configuration, for a base in one file that of its `config`; RecipeError if there is none."""
    name, folder = f"{part}/config.json", Path(base.config or base.model)
    path = folder / name if folder.is_dir() else from_hub(base, name)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError) as error:
        raise RecipeError(f"The base {base.model!r} has no {name} that can be read ({error}).") from error
