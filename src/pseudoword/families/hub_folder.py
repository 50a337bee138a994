"""A base in diffusers layout as a folder on this machine, downloaded from the Hub without what nobody reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pseudoword.errors import RecipeError, first_line
from pseudoword.flax_models.loading import STEMS
from pseudoword.recipe import BaseModel


def local(base: BaseModel, parts: Sequence[str]) -> BaseModel:
    """Return a base whose `model` is a folder here, with the weights of some parts; RecipeError if the Hub fails."""
    folder = Path(base.model).expanduser()
    if folder.is_dir():
        return dataclasses.replace(base, model=str(folder))
    from huggingface_hub import snapshot_download

    suffixes = ("", f".{base.variant}") if base.variant else ("",)
    places = [f"{part}/" if part else "" for part in parts]
    names = [f"{stem}{suffix}" for stem in STEMS for suffix in suffixes]
    weights = [f"{place}{name}{rest}" for place in places for name in names for rest in ENDINGS]
    try:
        found = snapshot_download(base.model, revision=base.revision, allow_patterns=["*.json", "*.txt", *weights])
    except Exception as error:  # whatever a client raises that cannot get through, by itself or by a proxy
        raise RecipeError(
            f"Cannot get {base.model!r} from the Hub ({first_line(error)}); check the connection, or give a local "
            "folder."
        ) from error
    return dataclasses.replace(base, model=found)


ENDINGS = (".safetensors", "-?????-of-?????.safetensors")
"""One file, or several."""


def scheduler_of(base: BaseModel) -> dict[str, Any]:
    """Return the configuration of the scheduler that a base in a folder was trained with, or raise RecipeError."""
    path = Path(base.model) / "scheduler" / "scheduler_config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"The base {base.model!r} has no scheduler/scheduler_config.json that can be read ({error})."
        ) from error
