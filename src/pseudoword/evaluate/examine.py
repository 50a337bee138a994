"""Examine a word: sample every question from the same noises, measure the pictures, and keep both for next time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pseudoword import disk, generate, sheets
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.statistics import Scores
from pseudoword.generate import Sampling


class Yardstick(Protocol):
    """What measures pictures of a word."""

    fidelity: str
    """Which of its measures says whether it is the concept; empty if none does."""
    editability: str
    """Which of its measures says whether the rest of the prompt still holds; empty if none does."""

    @property
    def told(self) -> list[str]:
        """What the numbers depend on, for people."""
        ...

    def measure(self, questions: Sequence[Question], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Scores]:
        """Return each measure's scores `[questions, noises]`, NaN where it says nothing."""
        ...


@dataclass(frozen=True)
class Examination:
    """What came of examining a word."""

    scores: Mapping[str, Scores]
    pictures: Sequence[Sequence[Image.Image]]
    """A list for each question, a picture for each noise."""


@dataclass(frozen=True)
class Examiner:
    """How words are examined, all alike; what was examined before is read from `folder` again."""

    family: Family
    base: str
    """What the base is called, for telling examinations apart."""
    sampling: Sampling
    """Of its seeds the first noise has the first."""
    noises: int
    """Pictures for each question; all questions and all words share their noises."""
    folder: Path

    def examine(self, concept: Concept, yardstick: Yardstick, questions: Sequence[Question]) -> Examination:
        """Sample and measure a word, or read what came of it earlier."""
        key = self._key(concept, yardstick, questions)
        known = self._read(key, len(questions))
        if known:
            return known
        prompts, seeds = generate.repeated(
            [question.text.format(concept.token) for question in questions], self.noises, self.sampling.seed
        )
        made = generate.generate(
            self.family, [concept], prompts, sampling=self.sampling, seeds=seeds, batch_size=self._batch
        )
        lines = [made[i : i + self.noises] for i in range(0, len(made), self.noises)]
        done = Examination(yardstick.measure(questions, lines), lines)
        self._keep(key, done)
        return done

    @property
    def _batch(self) -> int:
        """Pictures sampled at once: as many as four of 512 × 512, so far as a prompt's noises go round."""
        return max(1, min(4 * self.noises, round(4 * (512 / self.family.resolution) ** 2)))

    def _key(self, concept: Concept, yardstick: Yardstick, questions: Sequence[Question]) -> str:
        """Return a name for everything that the numbers depend on."""
        rows = {name: hashlib.sha256(np.ascontiguousarray(r).tobytes()).hexdigest() for name, r in concept.rows.items()}
        facts = [concept.token, rows, self.base, asdict(self.sampling), self.noises, yardstick.told]
        facts.append([[question.text, question.plain] for question in questions])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def _keep(self, key: str, done: Examination) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        flat = [picture for line in done.pictures for picture in line]
        sheets.save(sheets.grid(flat, self.noises, gap=0), self.folder / f"{key}.png", {})
        scores = {name: plain(values) for name, values in done.scores.items()}
        disk.write(self.folder / f"{key}.json", json.dumps({"side": flat[0].width, "scores": scores}))

    def _read(self, key: str, questions: int) -> Examination | None:
        """Return an earlier examination; None if there is none that can be read."""
        try:
            told = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
            side = int(told["side"])
            scores = {name: np.array(values, dtype=np.float64) for name, values in told["scores"].items()}
            with Image.open(self.folder / f"{key}.png") as grid:
                image = grid.convert("RGB")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if image.size != (self.noises * side, questions * side):
            return None
        lines = [
            [image.crop((x * side, y * side, (x + 1) * side, (y + 1) * side)) for x in range(self.noises)]
            for y in range(questions)
        ]
        return Examination(scores, lines)


def plain(values: Any) -> Any:
    """Return an array or number for JSON, NaN as null."""
    if isinstance(values, np.ndarray):
        return plain(values.tolist())
    if isinstance(values, list):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values
