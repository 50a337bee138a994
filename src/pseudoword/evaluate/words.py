"""The words to evaluate: files, or what runs have left at their steps, with what each was learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.data import images
from pseudoword.data.folder import Picture, scan
from pseudoword.errors import RecipeError
from pseudoword.progress import mean
from pseudoword.recipe import BaseModel, Recipe
from pseudoword.run import Run
from pseudoword.settings import flat

SECTIONS = ("concepts", "base", "method", "data", "training", "schedule")
"""What of a recipe a word depends on."""


@dataclass(frozen=True)
class Asked:
    """What a command line says of all its words, over what their runs say."""

    base: BaseModel | None = None
    pictures: Path | None = None
    class_word: str | None = None


@dataclass(frozen=True)
class Word:
    """A word to evaluate."""

    name: str
    """The file, or the run's folder with the step."""
    concept: Concept
    base: BaseModel
    pictures: Path
    """Folder of what it was learned from."""
    class_word: str
    """A plain word for what it is: what training started from, unless said otherwise."""
    step: int
    run: Path | None = None
    recipe: Recipe | None = None
    """The run's, if it is a run's word."""

    @property
    def seed(self) -> int | None:
        """The seed of its training, if that is known."""
        return self.recipe.training.seed if self.recipe else None

    @property
    def choices(self) -> dict[str, Any]:
        """Everything that its training followed but the seed, by dotted name; empty if it is not known.

        Of the pictures it says what they are, not where.
        """
        if self.recipe is None:
            return {}
        values = flat({name: value for name, value in self.recipe.to_dict().items() if name in SECTIONS})
        values["concepts.0.pictures"] = self._pictures_told
        return {name: value for name, value in values.items() if name != "training.seed"}

    @cached_property
    def _pictures_told(self) -> str:
        known = sorted(picture.sha256 for picture in self._found)
        return f"{len(known)}, {hashlib.sha256(' '.join(known).encode()).hexdigest()[:8]}"

    @cached_property
    def _found(self) -> list[Picture]:
        return scan(self.pictures, recursive=self.recipe.data.recursive if self.recipe else False)

    @property
    def seconds(self) -> float | None:
        """What its steps have taken by the run's log, if there is one."""
        if self.run is None:
            return None
        lines = Run(self.run, hold=False).log_lines()
        taken = [line["seconds"] for line in lines if 0 < line["step"] <= self.step and "seconds" in line]
        return float(sum(taken)) if taken else None

    @property
    def fixed_draw_loss(self) -> tuple[list[int], list[float]]:
        """The steps at which the run measured its fixed-draw loss, and the losses."""
        lines = Run(self.run, hold=False).log_lines() if self.run else []
        known = [(line["step"], line["fixed_draw_loss"]) for line in lines if line.get("fixed_draw_loss")]
        return [step for step, _ in known], [mean(losses) for _, losses in known]

    def real_pictures(self) -> list[Image.Image]:
        """Return the pictures that it was learned from, whole and upright; PicturesError if they are gone."""
        return [images.read_rgb(picture.source) for picture in self._found]


def words_of(path: str, asked: Asked, steps: Sequence[int] | None) -> list[Word]:
    """Return the words of a path: a file's, a run's last, or those that a run left at some steps (if empty, at all).

    RecipeError says what a file leaves open, and how to say it.
    """
    place = Path(path).expanduser()
    run = place if (place / "recipe.toml").is_file() else None
    recipe = Recipe.read(run / "recipe.toml") if run else None
    learned = recipe.concepts[0] if recipe else None
    base = asked.base or (recipe.base if recipe else None)
    if base is None:
        raise RecipeError(f"{path} does not say which base it is for; name it with --model.")
    pictures = asked.pictures or (Path(learned.pictures) if learned else None)
    if pictures is None:
        raise RecipeError(f"{path} does not say what it was learned from; name the folder with --pictures.")
    class_word = asked.class_word or (learned.initializer if learned else None)
    if class_word is None:
        raise RecipeError(f"{path} does not say what kind of thing it is; say it with --class-word, such as 'cat'.")
    if run is None or steps is None:
        concept = formats.read(place)
        return [Word(place.name, concept, base, pictures, class_word, concept.steps, run, recipe)]
    left = [(step, file) for step, file in Run(run, hold=False).words() if not steps or step in steps]
    if not left:
        raise RecipeError(f"{path} has left no word at the steps asked for; a run keeps some with --save-steps.")
    return [
        Word(f"{place.name} at {step}", formats.read(file), base, pictures, class_word, step, run, recipe)
        for step, file in left
    ]
