"""A run's folder: recipe, log, checkpoints and outputs; opened, kept, resumed, rotated."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors
import safetensors.numpy
import tomli_w

from pseudoword import __version__, disk, formats, layout, recipe_paths
from pseudoword.checkpoints import BEST_ROWS, Best, Checkpoint, read_checkpoint
from pseudoword.errors import RunError
from pseudoword.progress import Progress
from pseudoword.recipe import Recipe

log = logging.getLogger(__name__)

WORD = re.compile(r"learned_embeds-steps-(\d+)\.\w+")
BEST = "learned_embeds-best"
WORDS = (*formats.IN_FOLDER, *formats.FURTHER_IN_FOLDER, *formats.TOLD_IN_FOLDER)
RESULTS = (*WORDS, "exports", "README.md", layout.SAMPLES)
"""What a finished run leaves for others to read."""


class Run:
    """The folder of one run; RunError if another process holds it. Without `hold` it is only looked at.

    That of concepts that were added to a run later lies inside that run's, its `home`; `places` has its words' folders.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        hold: bool = True,
        home: Path | None = None,
        places: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.home = home or self.folder
        self._places = places
        self._lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        if hold:
            self._hold()

    def _hold(self) -> None:
        if self.folder.is_file():
            raise RunError(f"The run's folder {str(self.folder)!r} is a file; name a folder, or move the file away.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except filelock.Timeout as error:
            raise RunError(
                f"The folder {str(self.folder)!r} is in use by another run; wait for it or choose another folder."
            ) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunError(f"Cannot write to the folder {str(self.folder)!r}: {reason}.") from error

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    # Checkpoints

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Return the kept checkpoints by step, oldest first."""
        found = [(_step_of(layout.CHECKPOINT, path), path) for path in self.folder.iterdir() if path.is_dir()]
        return sorted((at, path) for at, path in found if at >= 0)

    def find(self, resume: str | None) -> Checkpoint | None:
        """Return the checkpoint that `resume` names, 'latest' or a folder; None if there is nothing to resume from."""
        if resume is None:
            return None
        if not resume:
            raise RunError("resume needs 'latest' or the name of a checkpoint, but is empty.")
        if resume != "latest":
            return read_checkpoint(self._named(resume))
        for _, path in reversed(self.checkpoints()):
            try:
                return read_checkpoint(path)
            except RunError as error:
                log.warning("%s Trying the one before.", error)
        log.warning("No checkpoint in %s to resume from; starting from the beginning.", self.folder)
        return None

    def _named(self, resume: str) -> Path:
        own = self.folder / Path(resume).name
        candidates = [own] if Path(resume).name == resume else [Path(resume), own]
        for path in candidates:
            if path.is_dir():
                return path
        have = ", ".join(path.name for _, path in self.checkpoints()) or "none"
        raise RunError(f"There is no checkpoint {resume!r}; the folder {str(self.folder)!r} has: {have}.")

    def begin(self, recipe: Recipe, checkpoint: Checkpoint | None) -> None:
        """Write the recipe and make the folder say only what happened up to the checkpoint."""
        step = checkpoint.step if checkpoint else 0
        places, is_added = self.places(recipe), self.folder != self.home
        self.folder.mkdir(exist_ok=True)
        for place in (own for own in {self.folder, *places.values()} if own.is_dir()):
            for folder in [place, *(path for path in place.iterdir() if path.is_dir())]:
                disk.sweep(folder)
        stale = [path for at, path in self.checkpoints() if at > step]
        if checkpoint is None and is_added:
            stale += [path for path in (self.folder / "log.jsonl", self.logs(recipe)) if path.exists()]
            stale += [path for place in places.values() for path in word_files(place)]
        elif checkpoint is None:
            names = ["log.jsonl", "recipe.toml", layout.NOT_LEARNED, *RESULTS, *self._pipeline()]
            names += [layout.WORDS] if any((self.folder / layout.WORDS).glob("*/recipe.toml")) else []
            stale += [path for name in names if (path := self.folder / name).exists()]
            stale += [path for path in [self.logs(recipe)] if path.parent == self.folder.resolve() and path.exists()]
            stale += _later_words(self.folder, 0) + _best_words(self.folder) + layout.added(self.folder)
        else:
            for token, place in places.items():
                stale += _later_words(place, step)
                stale += [path for at, path in layout.grids(place / layout.SAMPLES) if at > step]
                stale += _best_words(place) if token not in checkpoint.best else []
        if stale:
            self.set_aside(stale)
        if self._places is None:  # else the recipe is that of a part of the run
            write_recipe(recipe, self.folder)
        self.describe_words(recipe)
        kept = [line for line in self.log_lines() if line["step"] <= step]
        disk.write(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def describe_words(self, recipe: Recipe) -> None:
        """Write each word's recipe into its folder, which other commands take for a run's, if that is not the run's."""
        concepts = {concept.token: concept for concept in recipe.concepts}
        for token, place in self.places(recipe).items():
            if place != self.home:
                place.mkdir(parents=True, exist_ok=True)
                output = dataclasses.replace(recipe.output, folder=str(place), hub_model_id=None)
                alone = dataclasses.replace(recipe.alone(concepts[token]), output=output)
                write_recipe(alone, place)

    def _pipeline(self) -> list[str]:
        """Return the names of what belongs to a pipeline that an earlier run wrote here."""
        index = self.folder / "model_index.json"
        try:
            parts = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [index.name, *(name for name in parts if not name.startswith("_"))]

    def places(self, recipe: Recipe) -> dict[str, Path]:
        """Return each word's folder by its token: the run's own, or where there are several, one of its own."""
        if self._places is not None:
            return dict(self._places)
        tokens = [concept.token for concept in recipe.concepts]
        return dict(zip(tokens, layout.places(self.folder, [formats.stem_of(t) for t in tokens]), strict=True))

    def words(self) -> list[tuple[int, Path]]:
        """Return the periodically written words by step."""
        return words_in(self.folder)

    def set_aside(self, paths: Sequence[Path]) -> None:
        """Move what an earlier run left out of the way; nothing is deleted."""
        number = 1
        while (aside := self.home / f"earlier-{number}").exists():
            number += 1
        aside.mkdir()
        for path in paths:
            to = aside / path.relative_to(self.home) if path.is_relative_to(self.home) else aside / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            disk.move(path, to)
        own = [path.relative_to(self.home) if path.is_relative_to(self.home) else path for path in paths]
        names = ", ".join(path.as_posix() for path in own)
        log.warning("Moved what an earlier run left (%s) to %s.", names, aside)

    def keep(
        self,
        step: int,
        arrays: Mapping[str, np.ndarray],
        facts: Mapping[str, Any],
        best: Mapping[str, Best] | None = None,
    ) -> Path:
        """Write a checkpoint; it appears whole or not at all."""
        best = best or {}
        for i, own in enumerate(best.values()):
            arrays = {**arrays, **{f"{BEST_ROWS}{i}.{encoder}": rows for encoder, rows in own.rows.items()}}
        facts = {**facts, "best": {token: {"step": own.step, "loss": own.loss} for token, own in best.items()}}
        tensors = safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        words = json.dumps({"step": step, "version": __version__, **facts}, indent=1)

        def fill(folder: Path) -> None:
            disk.write(folder / "state.safetensors", tensors)
            disk.write(folder / "checkpoint.json", words)

        return disk.write_folder(self.folder / f"checkpoint-{step}", fill)

    def rotate(self, limit: int | None) -> None:
        """Delete the oldest checkpoints above the limit; after the newest is kept, so there is always one."""
        if limit is not None:
            for _, path in self.checkpoints()[:-limit]:
                disk.remove_folder(path)

    # Log

    def logs(self, recipe: Recipe) -> Path:
        """Return the folder of a tracker's files: inside the run's own, unless the recipe says another place."""
        folder = (self.folder / Path(recipe.output.logging_dir).expanduser()).resolve()
        is_shared = self.folder != self.home and not folder.is_relative_to(self.folder.resolve())
        return folder / self.folder.name if is_shared else folder

    def report(self, progress: Progress) -> None:
        """Add a step to the log."""
        line = {"step": progress.step, "loss": dict(progress.loss), "lr": progress.lr, "seconds": progress.seconds}
        line["fixed_draw_loss"] = dict(progress.fixed_draw_loss)
        line = {name: value for name, value in line.items() if value != {}}
        disk.append(self.folder / "log.jsonl", json.dumps(line) + "\n")

    def failed(self) -> Mapping[str, str]:
        """Return why concepts of a run of several were not learned, by token."""
        path = self.folder / layout.NOT_LEARNED
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the lines of the log that are whole."""
        path = self.folder / "log.jsonl"
        lines = []
        for text in path.read_bytes().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
            except ValueError:  # the last line of a run that was killed while writing it, or whatever got in there
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write a recipe that means the same from every directory, and wherever the folder is moved."""
    disk.write(folder / "recipe.toml", tomli_w.dumps(recipe_paths.written(recipe.to_dict(), folder)))


def words_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the periodically written words in a folder by step."""
    return sorted((at, path) for path in folder.iterdir() if (at := _step_of(WORD, path)) >= 0)


def word_files(place: Path) -> list[Path]:
    """Return all that a run left of one word in its folder: the word, its steps, and what there is to read of it."""
    results = [path for name in RESULTS if (path := place / name).exists()]
    return results + _later_words(place, 0) + _best_words(place)


def _later_words(place: Path, step: int) -> list[Path]:
    """Return the files of words that were written after a step."""
    left = words_in(place) if place.is_dir() else []
    return [part for at, path in left if at > step for part in formats.parts_of(path)]


def _best_words(place: Path) -> list[Path]:
    return [part for path in place.glob(f"{BEST}.*") for part in formats.parts_of(path)]


def _step_of(pattern: re.Pattern[str], path: Path) -> int:
    """Return the step that a file's name tells, -1 if it tells none."""
    match = pattern.fullmatch(path.name)
    return int(match[1]) if match else -1
