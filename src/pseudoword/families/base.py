"""Where a base model is: a folder, a Hub id, one that has moved, or the one inside this package."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel

log = logging.getLogger(__name__)

MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Hub repositories that were deleted and where their files are now."""


def locate(base: BaseModel, built_in: Mapping[str, Path]) -> BaseModel:
    """Return the base with a `model` that can be loaded; RecipeError with what to try if there is none.

    `built_in` maps names such as 'toybox' to folders inside the package. The Hub is asked only about ids in `MOVED`.
    """
    if base.model in built_in and not Path(base.model).is_dir():
        return dataclasses.replace(base, model=str(built_in[base.model]))
    if Path(base.model).is_dir():
        if not (Path(base.model) / "model_index.json").is_file():
            raise RecipeError(
                f"The folder {base.model!r} is not a model in diffusers layout: it has no model_index.json. "
                "A single .safetensors checkpoint must be converted first (diffusers' from_single_file, then "
                "save_pretrained)."
            )
        return base
    if base.model in MOVED and not _on_hub(base):
        log.warning("%r is no longer on the Hub; using %r instead.", base.model, MOVED[base.model])
        return dataclasses.replace(base, model=MOVED[base.model])
    return base


def _on_hub(base: BaseModel) -> bool:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        hf_hub_download(base.model, "model_index.json", revision=base.revision)
    except RepositoryNotFoundError:
        return False
    except Exception:  # no network, no such revision: let the loader itself say what is wrong with this id
        return True
    return True
