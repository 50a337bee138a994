"""Words that runs of a benchmark have left, and what the runs said of themselves, in one small file."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from pseudoword import disk, formats
from pseudoword.concept import Concept


class Kept:
    """The file at `path`, which is written anew whenever a run is added; threads may add runs at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, np.ndarray] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if path.exists():
            with safetensors.safe_open(path, "numpy") as file:
                self.rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                self.outcomes = json.loads(file.metadata()["outcomes"])

    def has(self, run: str, steps: Sequence[int], made_by: Mapping[str, Any]) -> bool:
        """Whether a run is done, was made by the same means, and its words of these steps are here."""
        told = self.outcomes.get(run, {}).get("made_by", {})
        same = all(told.get(name) == value for name, value in made_by.items())
        return run in self.outcomes and same and all(f"{run}/{step}" in self.rows for step in steps)

    def add(self, run: str, words: Mapping[int, Path], outcome: Mapping[str, Any]) -> None:
        """Take a run's words, of one text encoder, out of their files."""
        with self._lock:
            for step, path in words.items():
                [self.rows[f"{run}/{step}"]] = formats.read(path).rows.values()
            self.outcomes[run] = dict(outcome)
            metadata = {"outcomes": json.dumps(self.outcomes, sort_keys=True)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            disk.write(self.path, safetensors.numpy.save(dict(sorted(self.rows.items())), metadata))

    def word(self, run: str, step: int, token: str, encoder: str) -> Concept:
        """Return the word of a run after a step."""
        return Concept(token, {encoder: self.rows[f"{run}/{step}"]})
