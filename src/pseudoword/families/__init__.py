"""The table of families: kinds of base models, each a folder."""

from __future__ import annotations

import importlib
from types import ModuleType

from pseudoword.errors import RecipeError

FAMILIES = {"sd": "pseudoword.families.sd"}


def part(family: str, name: str) -> ModuleType:
    """Return a module of a family's folder (see `contracts.Family`), importing only that."""
    if family not in FAMILIES:
        raise RecipeError(f"There is no family {family!r}; the families are {', '.join(sorted(FAMILIES))}.")
    return importlib.import_module(f"{FAMILIES[family]}.{name}")
