"""Where a base model is: a folder, a Hub id, one that has moved, or the one inside this package."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from pseudoword.errors import RecipeError
from pseudoword.recipe import BaseModel

log = logging.getLogger(__name__)

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
MOVED = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Hub repositories that were deleted and where their files are now."""


def locate(base: BaseModel, built_in: Mapping[str, Path]) -> BaseModel:
    """Return the base with a `model` that can be loaded; RecipeError with what to try if there is none.

    `built_in` maps names such as 'toybox' to folders inside the package. The Hub is asked once, here, before loaders
    ask it for every file.
    """
    if base.model.startswith("~"):
        base = dataclasses.replace(base, model=str(Path(base.model).expanduser()))
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
    if not HUB_ID.fullmatch(base.model):
        raise RecipeError(f"There is no folder {base.model!r}, and a Hub id looks like 'owner/name'.")
    refusal = _refused_by_hub(base)
    if refusal is None:
        return base
    if base.model in MOVED and isinstance(refusal, LookupError):
        log.warning("%r is no longer on the Hub; using %r instead.", base.model, MOVED[base.model])
        return dataclasses.replace(base, model=MOVED[base.model])
    raise RecipeError(str(refusal))


def _refused_by_hub(base: BaseModel) -> Exception | None:
    """Return why the Hub, or its cache on this machine, does not have the model; a LookupError if it is not there."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        hf_hub_download(base.model, "model_index.json", revision=base.revision)
    except RepositoryNotFoundError:
        return LookupError(
            f"There is no model {base.model!r} on the Hub, nor a folder of that name here; "
            "check the spelling, or if it is private or gated, log in first (hf auth login)."
        )
    except RevisionNotFoundError:
        return ValueError(f"The model {base.model!r} has no revision {base.revision!r} on the Hub.")
    except OSError as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return ValueError(f"The model {base.model!r} on the Hub is not in diffusers layout: no model_index.json.")
        if isinstance(try_to_load_from_cache(base.model, "unet/config.json", revision=base.revision), str):
            return None  # loaded before, part by part
        return ConnectionError(
            f"There is no folder {base.model!r} here, and it is neither in the Hub's cache nor can the Hub be asked "
            f"for it ({type(error.__cause__ or error).__name__}); check the connection, or give a local folder."
        )
    return None
