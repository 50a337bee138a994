"""The words to evaluate: files, or what runs have left at their steps, with what each was learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from pseudoword import formats, layout
from pseudoword.concept import Concept
from pseudoword.data import images
from pseudoword.data.folder import look, scan
from pseudoword.errors import PicturesError, RecipeError
from pseudoword.progress import mean
from pseudoword.recipe import BaseModel, Recipe
from pseudoword.run import Run


@dataclass(frozen=True)
class Asked:
    """What a command line says of all its words, over what their runs say."""

    base: BaseModel | None = None
    pictures: Path | None = None
    class_word: str | None = None


@dataclass(frozen=True)
class Word:
    """A word to evaluate."""

    place: Path
    """The file or the run's folder, resolved."""
    concept: Concept
    base: BaseModel
    pictures: Path
    """Folder of what it is compared with: what it was learned from, unless said otherwise."""
    class_word: str
    """A plain word for what it is: what training started from, unless said otherwise."""
    step: int
    run: Path | None = None
    recipe: Recipe | None = None
    """The run's, if it is a run's word."""

    @property
    def initializer(self) -> str | None:
        """What training started from, if that is known."""
        return self.recipe.concepts[0].initializer if self.recipe else None

    @property
    def seed(self) -> int | None:
        """The seed of its training, if that is known."""
        return self.recipe.training.seed if self.recipe else None

    @cached_property
    def choices(self) -> dict[str, Any]:
        """Everything that its training followed but the seed, by dotted name; empty if it is not known.

        Of the pictures it says what they are, not where.
        """
        if self.recipe is None:
            return {}
        values = self.recipe.of_the_word()
        values["concepts.0.pictures"] = self._pictures_told()
        return {name: value for name, value in values.items() if name != "training.seed"}

    def _pictures_told(self) -> str:
        """The number and a hash of the pictures that training saw, or where they were, if they are gone."""
        given = self.recipe.concepts[0].pictures if self.recipe else ""
        try:
            known = sorted(picture.sha256 for picture in look(given, recursive=self._recursive).pictures)
        except PicturesError:
            return given
        return f"{len(known)}, {hashlib.sha256(' '.join(known).encode()).hexdigest()[:8]}"

    @property
    def _recursive(self) -> bool:
        return self.recipe.data.recursive if self.recipe else False

    @property
    def seconds(self) -> float | None:
        """What its steps have taken by the run's log, if there is one."""
        taken = [line["seconds"] for line in self._log if 0 < line["step"] <= self.step and "seconds" in line]
        return float(sum(taken)) if taken else None

    @property
    def fixed_draw_loss(self) -> tuple[list[int], list[float]]:
        """The steps at which the run measured its fixed-draw loss, and the losses."""
        known = [(line["step"], line["fixed_draw_loss"]) for line in self._log if line.get("fixed_draw_loss")]
        return [step for step, _ in known], [mean(losses) for _, losses in known]

    @cached_property
    def _log(self) -> list[dict[str, Any]]:
        if self.run is None:
            return []
        if self.run.parent.name != layout.WORDS:
            return Run(self.run, hold=False).log_lines()
        # One of several words: its own losses, and its share of the time. The latest part that trained it counts.
        home = self.run.parent.parent
        lines: list[dict[str, Any]] = []
        for folder in [*reversed(layout.added(home)), home]:
            lines = Run(folder, hold=False).log_lines()
            if any(self.concept.token in line.get("loss", {}) for line in lines):
                break
        return [self._own(line) for line in lines]

    def _own(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return what a line of a log says of this word alone."""
        losses = {
            name: {token: loss for token, loss in line[name].items() if token == self.concept.token}
            for name in ("loss", "fixed_draw_loss")
            if name in line
        }
        return {**line, **losses, "seconds": line["seconds"] / max(1, len(line.get("loss", {})))}

    def real_pictures(self) -> list[Image.Image]:
        """Return the pictures that it is compared with, whole and upright; PicturesError if they are gone."""
        return [images.read_rgb(picture.source) for picture in scan(self.pictures, recursive=self._recursive)]


def words_of(path: str, asked: Asked, steps: Sequence[int] | None) -> list[Word]:
    """Return the words of a path: a file's, a run's last, or those that a run left at some steps (if empty, at all).

    RecipeError says what a file leaves open, and how to say it.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise RecipeError(f"There is no file or folder {path!r} to evaluate; name a run's folder or an embedding file.")
    place = place.resolve()
    run = place if (place / "recipe.toml").is_file() else None
    recipe = Recipe.read(run / "recipe.toml") if run else None
    if run and recipe and len(recipe.concepts) > 1:
        places = Run(run, hold=False).places(recipe).values()
        learned = [str(own) for own in places if any(formats.files_in(own))]
        if not learned:
            raise RecipeError(f"The run in {path!r} has not learned a word yet; go on with it: --resume latest.")
        return [word for own in learned for word in words_of(own, asked, steps)]
    learned = next(iter(recipe.concepts)) if recipe else None
    if steps is not None and run is None:
        raise RecipeError(f"--steps goes with the folders of runs, but {path!r} is none.")
    base = asked.base or (recipe.base if recipe else None)
    if base is None:
        raise RecipeError(f"{path!r} does not say which base it is for; name it with --model.")
    pictures = asked.pictures or (Path(learned.pictures) if learned else None)
    if pictures is None:
        raise RecipeError(f"{path!r} does not say what it was learned from; name the folder with --pictures.")
    class_word = asked.class_word or (learned.initializer if learned else None)
    if class_word is None:
        raise RecipeError(f"{path!r} does not say what kind of thing it is; say it with --class-word, such as 'cat'.")
    if run is None or steps is None:
        concept = formats.read(place)
        return [Word(place, concept, base, pictures, class_word, concept.steps, run, recipe)]
    left = dict(Run(run, hold=False).words())
    lacking = [str(step) for step in steps if step not in left]
    if lacking or not left:
        has = ", ".join(map(str, left)) or "none"
        missing = ", ".join(lacking) or "any"
        raise RecipeError(f"{path!r} has left no word at step {missing}; those it has kept (--save-steps): {has}.")
    return [
        Word(place, formats.read(file), base, pictures, class_word, step, run, recipe)
        for step, file in left.items()
        if not steps or step in steps
    ]


def names(words: Sequence[Word]) -> list[str]:
    """Return a name for each word: as much of its path as tells places apart, with the step where a run has several."""
    places = {word.place for word in words}
    short = {place: place.name for place in places}
    for place in places:
        depth = 1
        while sum(_tail(other, depth) == _tail(place, depth) for other in places) > 1 and depth < len(place.parts):
            depth += 1
        short[place] = _tail(place, depth)
    several = {place for place in places if len({word.step for word in words if word.place == place}) > 1}
    return [short[word.place] + (f" at {word.step}" if word.place in several else "") for word in words]


def _tail(place: Path, depth: int) -> str:
    return "/".join(place.parts[-depth:])
