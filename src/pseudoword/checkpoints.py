"""Checkpoints: what a run's later steps depend on, read back, and what may not have changed when it is resumed."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from pseudoword.errors import RunError
from pseudoword.settings import flat

log = logging.getLogger(__name__)

BEST_ROWS = "best."
"""What the names of the best rows begin with among a checkpoint's arrays; after it the word's number and encoder."""


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
    "dataset",
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
            start = f"{BEST_ROWS}{i}."
            rows = {name.removeprefix(start): arrays.pop(name) for name in list(arrays) if name.startswith(start)}
            best[token] = Best(int(own["step"]), float(own["loss"]), rows)
        return Checkpoint(int(facts["step"]), arrays, facts, path, best)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunError(f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}).") from error


PLACES = ("initializer", "tokenizer", "vae")
"""Settings that may be files or folders, which a recipe may name from elsewhere when it is read again."""


def _same_choice(name: str, was: Any, now: Any) -> bool:
    """Whether a setting is the same choice. A file or folder may have moved, or be named from elsewhere."""
    if was == now or name.rpartition(".")[2] not in PLACES or not (isinstance(was, str) and isinstance(now, str)):
        return bool(was == now)
    before, after = Path(was).expanduser(), Path(now).expanduser()
    if before.name != after.name or not (before.is_absolute() or after.is_absolute()):
        return False
    both_there = before.is_absolute() and after.is_absolute() and before.exists() and after.exists()
    return not both_there or before.samefile(after)


def refuse_changes(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Raise RunError naming both values if a resumed run would not be the same run; say what else changed."""
    old, new = flat(checkpoint.facts["recipe"]), flat(facts["recipe"])
    names = sorted(old.keys() | new.keys())
    changed = {k: (old.get(k), new.get(k)) for k in names if not _same_choice(k, old.get(k), new.get(k))}
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
