"""A run's folder: recipe, log, checkpoints and outputs; opened, kept, resumed, rotated."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors
import safetensors.numpy
import tomli_w

from pseudoword import __version__, disk, formats, layout
from pseudoword.errors import RunError
from pseudoword.progress import Progress
from pseudoword.recipe import Recipe
from pseudoword.settings import flat

log = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WORD = re.compile(r"learned_embeds-steps-(\d+)\.\w+")
BEST = "learned_embeds-best"
WORDS = (*formats.IN_FOLDER, *formats.FURTHER_IN_FOLDER, *formats.TOLD_IN_FOLDER)
RESULTS = (*WORDS, "exports", "README.md", layout.SAMPLES)
"""What a finished run leaves for others to read."""
FREE = {"output", "engine", "validation"}
"""Sections of a recipe that may change when a run is resumed."""
FREE_FIELDS = {
    "base.family",
    "schedule.steps",
    "data.workers",
    "data.repeats",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "concepts.pictures",
    "concepts.templates",
}
"""Fields that may change; batch, pictures and templates are compared by what they come to, a family the base knows."""


def is_free(name: str) -> bool:
    """Whether a field of a recipe, by its dotted name, may change when a run is resumed."""
    return re.sub(r"^concepts\.\d+", "concepts", name) in FREE_FIELDS


@dataclass(frozen=True)
class Best:
    """The step so far after which a word's fixed-draw loss was lowest."""

    step: int
    loss: float
    rows: Mapping[str, np.ndarray]
    """The word's rows `[vectors, width]` per text encoder after that step."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the steps after `step` depend on."""

    step: int
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    """`recipe`, `pictures` (names and hashes), `batch` (global), `arithmetic`."""
    path: Path
    best: Mapping[str, Best] = field(default_factory=dict)
    """Of each word, by token."""

    @property
    def seed(self) -> int:
        """The seed of the run it was kept by."""
        return int(self.facts["recipe"]["training"]["seed"])

    @property
    def failed(self) -> Mapping[str, str]:
        """Why concepts were no longer learned, by token."""
        return self.facts.get("failed", {})

    @property
    def at_once(self) -> int:
        """Pictures that went through the model at once."""
        return int(self.facts["arithmetic"].get("micro-batch", 0))

    @property
    def memory(self) -> str:
        """The memory mode that it was kept in."""
        return self.facts["recipe"].get("engine", {}).get("memory", "auto")

    @property
    def compiled(self) -> bool:
        """Whether the denoiser was compiled."""
        return self.facts["arithmetic"].get("compiled") == "True"


class Run:
    """The folder of one run; RunError if another process holds it. Without `hold` it is only looked at."""

    def __init__(self, folder: str | Path, *, hold: bool = True) -> None:
        self.folder = Path(folder).expanduser()
        self._lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        if hold:
            self._hold()

    def _hold(self) -> None:
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
        found = [(_step_of(CHECKPOINT, path), path) for path in self.folder.iterdir() if path.is_dir()]
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
        places = self.places(recipe)
        for place in (own for own in {self.folder, *places.values()} if own.is_dir()):
            for folder in [place, *(path for path in place.iterdir() if path.is_dir())]:
                disk.sweep(folder)
        stale = [path for at, path in self.checkpoints() if at > step]
        if checkpoint is None:
            names = ["log.jsonl", "recipe.toml", *RESULTS, *self._pipeline()]
            names += [layout.WORDS] if any((self.folder / layout.WORDS).glob("*/recipe.toml")) else []
            stale += [path for name in names if (path := self.folder / name).exists()]
            stale += [path for path in [self.logs(recipe)] if path.parent == self.folder.resolve() and path.exists()]
            stale += _later_words(self.folder, 0) + _best_words(self.folder)
        else:
            for token, place in places.items():
                stale += _later_words(place, step)
                stale += [path for at, path in layout.grids(place / layout.SAMPLES) if at > step]
                stale += _best_words(place) if token not in checkpoint.best else []
        if stale:
            self._set_aside(stale)
        disk.write(self.folder / "recipe.toml", tomli_w.dumps(recipe.to_dict()))
        if len(places) > 1:  # each word's folder is one that the other commands take for a run's
            for wanted in recipe.concepts:
                place = places[wanted.token]
                place.mkdir(parents=True, exist_ok=True)
                output = dataclasses.replace(recipe.output, folder=str(place), hub_model_id=None)
                alone = dataclasses.replace(recipe.alone(wanted), output=output)
                disk.write(place / "recipe.toml", tomli_w.dumps(alone.to_dict()))
        kept = [line for line in self.log_lines() if line["step"] <= step]
        disk.write(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

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
        tokens = [concept.token for concept in recipe.concepts]
        return dict(zip(tokens, layout.places(self.folder, [formats.stem_of(t) for t in tokens]), strict=True))

    def words(self) -> list[tuple[int, Path]]:
        """Return the periodically written words by step."""
        return words_in(self.folder)

    def _set_aside(self, paths: Sequence[Path]) -> None:
        """Move what an earlier run left out of the way; nothing is deleted."""
        number = 1
        while (aside := self.folder / f"earlier-{number}").exists():
            number += 1
        aside.mkdir()
        for path in paths:
            to = aside / path.relative_to(self.folder) if path.is_relative_to(self.folder) else aside / path.name
            to.parent.mkdir(parents=True, exist_ok=True)
            disk.move(path, to)
        own = [path.relative_to(self.folder) if path.is_relative_to(self.folder) else path for path in paths]
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
            arrays = {**arrays, **{f"{_BEST}{i}.{encoder}": rows for encoder, rows in own.rows.items()}}
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
        return (self.folder / Path(recipe.output.logging_dir).expanduser()).resolve()

    def report(self, progress: Progress) -> None:
        """Add a step to the log."""
        line = {"step": progress.step, "loss": dict(progress.loss), "lr": progress.lr, "seconds": progress.seconds}
        line["fixed_draw_loss"] = dict(progress.fixed_draw_loss)
        line = {name: value for name, value in line.items() if value != {}}
        disk.append(self.folder / "log.jsonl", json.dumps(line) + "\n")

    def failed(self) -> Mapping[str, str]:
        """Return why concepts were not learned, by token, as the newest checkpoint has it."""
        kept = self.checkpoints()
        return read_checkpoint(kept[-1][1]).failed if kept else {}

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


_BEST = "best."
"""What the names of the best rows begin with among a checkpoint's arrays; after it the word's number and encoder."""


def words_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the periodically written words in a folder by step."""
    return sorted((at, path) for path in folder.iterdir() if (at := _step_of(WORD, path)) >= 0)


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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; RunError says what is wrong with it."""
    try:
        facts = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        arrays = safetensors.numpy.load_file(path / "state.safetensors")
        for name, kind in (("recipe", dict), ("pictures", list), ("batch", int), ("arithmetic", dict)):
            if not isinstance(facts[name], kind):
                raise TypeError(f"{name} is {facts[name]!r}")
        int(facts["recipe"]["training"]["seed"])
        best = {}
        for i, (token, own) in enumerate(facts.get("best", {}).items()):
            start = f"{_BEST}{i}."
            rows = {name.removeprefix(start): arrays.pop(name) for name in list(arrays) if name.startswith(start)}
            best[token] = Best(int(own["step"]), float(own["loss"]), rows)
        return Checkpoint(int(facts["step"]), arrays, facts, path, best)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}).") from error


def refuse_changes(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Raise RunError naming both values if a resumed run would not be the same run; say what else changed."""
    old, new = flat(checkpoint.facts["recipe"]), flat(facts["recipe"])
    changed = {k: (old.get(k), new.get(k)) for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)}
    fixed = {k: v for k, v in changed.items() if not is_free(k) and k.partition(".")[0] not in FREE}
    if checkpoint.facts["batch"] != facts["batch"]:
        fixed["global batch"] = (checkpoint.facts["batch"], facts["batch"])
    was, now = checkpoint.facts["pictures"], facts["pictures"]
    if was != now:  # only those that differ: hashes say little to people
        fixed["pictures"] = ([p for p in was if p not in now], [p for p in now if p not in was])
    if fixed:
        differences = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in fixed.items())
        raise RunError(
            f"Cannot resume from {checkpoint.path.name}: {differences}. "
            "Set it back, or start a new run in another folder."
        )
    was, now = checkpoint.facts["arithmetic"], facts["arithmetic"]
    drift = [f"{k} was {was[k]} and is {now[k]}" for k in now if k in was and was[k] != now[k]]
    if drift:
        log.warning("Resuming, but not bit for bit: %s.", "; ".join(drift))
    if "schedule.steps" in changed and new["schedule.lr_scheduler"] not in ("constant", "constant_with_warmup"):
        log.warning(
            "The length was %s and is %s: from here the learning rate follows the %s curve of the new length.",
            *changed["schedule.steps"],
            new["schedule.lr_scheduler"],
        )
