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
    places = [f"{part}/" if part else "" for part in parts]
    found = _downloaded(
        base, ["*.json", "*.txt", *(name for place in places for name in _weights(place, base.variant))]
    )
    # Of what has no weights of the variant the plain ones are read, and of nothing both.
    if base.variant:
        lacking = [place for place in places if not any(any(found.glob(n)) for n in _weights(place, base.variant))]
        if lacking:
            found = _downloaded(base, [name for place in lacking for name in _weights(place, None)])
    return dataclasses.replace(base, model=str(found))


def _weights(place: str, variant: str | None) -> list[str]:
    """Return patterns of what weights are called: one file, or several."""
    several, own = "-?????-of-?????", f".{variant}" if variant else ""
    endings = [own, own + several, *([several + own] if own else [])]
    return [f"{place}{stem}{ending}.safetensors" for stem in STEMS for ending in endings]


def _downloaded(base: BaseModel, patterns: Sequence[str]) -> Path:
    """Return the folder in the Hub's cache, now with the files of these patterns."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(base.model, revision=base.revision, allow_patterns=[*patterns]))
    except Exception as error:  # whatever a client raises that cannot get through, by itself or by a proxy
        raise RecipeError(
            f"Cannot get {base.model!r} from the Hub ({first_line(error)}); check the connection, or give a local "
            "folder."
        ) from error


def scheduler_of(base: BaseModel) -> dict[str, Any]:
    """Return the configuration of the scheduler that a base in a folder was trained with, or raise RecipeError."""
    path = Path(base.model) / "scheduler" / "scheduler_config.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(
            f"The base {base.model!r} has no scheduler/scheduler_config.json that can be read ({error})."
        ) from error
