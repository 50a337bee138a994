"""The words to evaluate: files, or what runs have left at their steps, with what each was learned from."""

from __future__ import annotations

import hashlib
import logging
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

log = logging.getLogger(__name__)


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
        # One of several words: its own losses, and its share of the time.
        trained = _trained_in(self.run.parent.parent, self.concept.token)
        return [self._own(line) for line in Run(trained, hold=False).log_lines()]

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
    run = layout.folder_around(place)
    if steps is not None and place != run:
        raise RecipeError(f"--steps goes with the folders of runs, but {path!r} is none.")
    checkpoint = layout.CHECKPOINT.fullmatch(place.name)
    if run and checkpoint and place != run:  # the same as the run at that step
        return words_of(str(run), asked, [int(checkpoint[1])])
    recipe = Recipe.read(run / "recipe.toml") if run else None
    if recipe and place.is_file() and not any(own.token == formats.read(place).token for own in recipe.concepts):
        run = recipe = None  # another word's file, which lies there
    if run and recipe and len(recipe.concepts) > 1:
        return _words_of_several(path, run, recipe, asked, steps)
    learned = next(iter(recipe.concepts)) if recipe else None
    base = asked.base or (recipe.base if recipe else None)
    if base is None:
        raise RecipeError(f"{path!r} does not say which base it is for; name it with --model.")
    pictures = asked.pictures or (Path(learned.pictures) if learned and recipe and recipe.dataset is None else None)
    if pictures is None:
        raise RecipeError(f"{path!r} does not say what it was learned from; name the folder with --pictures.")
    class_word = asked.class_word or (learned.initializer if learned else None)
    if class_word is None:
        raise RecipeError(f"{path!r} does not say what kind of thing it is; say it with --class-word, such as 'cat'.")
    left = _left(run, learned.token) if run and learned else {}
    if run and steps is None and place == run and left and not formats.files_in(run):
        steps = [max(left)]
        log.warning("The run in %s has not finished; its step %d is evaluated.", path, steps[0])
    if run is None or steps is None:
        concept = formats.read(place)
        return [Word(place, concept, base, pictures, class_word, concept.steps, run, recipe)]
    lacking = [str(step) for step in steps if step not in left]
    if lacking or not left:
        has = ", ".join(map(str, left)) or "none"
        missing = ", ".join(lacking) or "any"
        raise RecipeError(f"{path!r} has left no word or checkpoint at step {missing}; those it has kept: {has}.")
    if not steps:
        steps = [step for step, _ in Run(run, hold=False).words()] or list(left)
    token = learned.token if learned else None
    return [
        Word(place, formats.read(left[step], token=token), base, pictures, class_word, step, run, recipe)
        for step in sorted(set(steps))
    ]


def _words_of_several(path: str, run: Path, recipe: Recipe, asked: Asked, steps: Sequence[int] | None) -> list[Word]:
    """Return the words of a run of several, without those that it could not learn."""
    opened = Run(run, hold=False)
    failed, has_checkpoints = opened.failed(), bool(opened.checkpoints())
    found: list[Word] = []
    for token, place in opened.places(recipe).items():
        is_there = any(formats.files_in(place)) or (has_checkpoints and place.is_dir())
        if is_there and token not in failed:
            found += words_of(str(place), asked, steps)
    if not found:
        raise RecipeError(f"The run in {path!r} has not learned a word yet; go on with it: --resume latest.")
    return found


def _trained_in(home: Path, token: str) -> Path:
    """Return the folder of the part of a run of several words that trained one of them: the latest that did."""
    for folder in reversed(layout.added(home)):
        lines = Run(folder, hold=False).log_lines()
        if any(token in line.get("loss", {}) for line in lines):
            return folder
    return home


def _left(run: Path, token: str) -> dict[int, Path]:
    """Return where a word is at the steps that its run kept: in checkpoints, or in files of its own."""
    around = _trained_in(run.parent.parent if run.parent.name == layout.WORDS else run, token)
    places = {**dict(Run(around, hold=False).checkpoints()), **dict(Run(run, hold=False).words())}
    return dict(sorted(places.items()))


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
