"""Configurations of a base in diffusers layout, and the sizes that those of its UNet and VAE tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel


@dataclass(frozen=True)
class LatentSizes:
    """See `contracts.Sizes`."""

    resolution: int
    latent_factor: int
    bucket_multiple: int


def sizes(base: BaseModel, vae: Mapping[str, Any] | None = None) -> LatentSizes:
    """Return the sizes of a base, with another VAE's configuration if there is one; RecipeError if these are unsaid."""
    unet, vae = configuration(base, "unet"), vae or configuration(base, "vae")
    try:
        return sizes_of(unet, vae)
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"The configurations of {base.model!r} do not tell its sizes ({error}).") from error


def sizes_of(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentSizes:
    """Return the sizes that the configurations of UNet and VAE tell."""
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    multiple = factor * 2 ** (len(unet["block_out_channels"]) - 1)
    return LatentSizes(int(unet["sample_size"]) * factor, factor, multiple)


def configuration(base: BaseModel, part: str) -> dict[str, Any]:
    """Return a part's configuration, for a base in one file that of its `config`; RecipeError if there is none."""
    return _read(base, f"{part}/config.json")


def index(base: BaseModel) -> dict[str, Any]:
    """Return a base's model_index.json, which says of what classes its parts are; see `configuration`."""
    return _read(base, "model_index.json")


def _read(base: BaseModel, name: str) -> dict[str, Any]:
    folder = Path(base.config or base.model)
    path = folder / name if folder.is_dir() else from_hub(base, name)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path else {}
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"The base {base.model!r} has no {name} that can be read ({error}).") from error


def from_hub(base: BaseModel, name: str) -> Path | None:
    """Download one file of a model; None if it has none of this name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base.model, name, revision=base.revision))
    except OSError as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise RecipeError(
            f"Cannot get {name} of {base.model!r} from the Hub ({type(error).__name__}); "
            "check the connection, or give a local folder."
        ) from error
