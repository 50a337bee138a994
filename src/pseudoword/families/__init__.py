"""The table of families: kinds of base models, each a folder."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from types import ModuleType

from pseudoword.errors import RecipeError

FAMILIES = {"sd": "pseudoword.families.sd", "sdxl": "pseudoword.families.sdxl"}
"""In the order of trying which one a base is of."""


def part(family: str | None, name: str) -> ModuleType:
    """Return a module of a family's folder (see `contracts.Family`), importing only that."""
    if family is None or family not in FAMILIES:
        raise RecipeError(f"There is no family {family!r}; the families are {', '.join(sorted(FAMILIES))}.")
    return importlib.import_module(f"{FAMILIES[family]}.{name}")


def of_word(encoders: Collection[str]) -> tuple[str, str] | None:
    """Return the family that a word is for, and what people call its bases, by the text encoders that it has rows for.

    None if it is no family's here.
    """
    for name in FAMILIES:
        kinds = part(name, "facts").WORDS
        if frozenset(encoders) in kinds:
            return name, kinds[frozenset(encoders)]
    return None
