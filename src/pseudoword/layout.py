"""Where a run keeps its words and pictures, for all who write, show or look for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pseudoword.recipe import Recipe

WORDS = "words"
"""The folder of the words' own folders, where a run learns several."""
ADDED = re.compile(r"added-(\d+)")
"""Inside a run's folder, the log and checkpoints of concepts that were added or repaired later."""
NOT_LEARNED = "not-learned.json"
"""Why concepts of a run of several were not learned, by token."""
SAMPLES = "samples"
"""The folder of validation pictures, inside the run's."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
GRID = re.compile(r"step-(\d+)\.png")
STRIP = "strip.png"
"""The picture there that compares steps."""


def added(run: Path) -> list[Path]:
    """Return the folders of what was added to a run or repaired later, the first first."""
    numbered = [
        (match, path) for path in run.glob("added-*") if (match := ADDED.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(numbered, key=lambda pair: int(pair[0][1]))]


def grids(samples: Path) -> list[tuple[int, Path]]:
    """Return the grids in a folder of validation pictures by step, the first first; none if there is no folder."""
    found = [(GRID.fullmatch(path.name), path) for path in samples.glob("*.png")]
    return sorted((int(match[1]), path) for match, path in found if match)


def places(run: Path, stems: Sequence[str]) -> list[Path]:
    """Return the folder of each word of a run: the run's own, or of several words one each, named by their stems.

    Names that a disk might take for one another are told apart by numbers, in order.
    """
    if len(stems) == 1:
        return [run]
    names: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.lower())
        names.append(name)
    return [run / WORDS / name for name in names]


def folder_around(path: Path) -> Path | None:
    """Return the folder of the run whose folder, checkpoint or word a path is; None if it is of no run."""
    place = (path if path.is_dir() else path.parent).absolute()
    if place.name == "exports" or CHECKPOINT.fullmatch(place.name):
        place = place.parent
    return place if (place / "recipe.toml").is_file() else None


def recipe_around(path: Path) -> Recipe | None:
    """Return the recipe of the run that a path is of; None if it is of no run."""
    folder = folder_around(path)
    return Recipe.read(folder / "recipe.toml") if folder else None
