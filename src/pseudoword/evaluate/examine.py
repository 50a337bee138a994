"""Examine a word: sample every question from the same noises, keep the pictures for next time, and measure them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pseudoword import disk, generate, sheets
from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.statistics import Scores
from pseudoword.families.weights import digest
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
    """How words are examined, all alike. Pictures sampled before are read from `folder` again, and measured anew."""

    family: Family
    sampling: Sampling
    """Of its seeds the first noise has the first."""
    noises: int
    """Pictures for each question; all questions and all words share their noises."""
    folder: Path

    def examine(self, concept: Concept, yardstick: Yardstick, questions: Sequence[Question]) -> Examination:
        """Sample a word's pictures, or read them if they were sampled earlier, and measure them."""
        return self._examined([concept], concept.token, yardstick, questions)

    def examine_text(self, text: str, yardstick: Yardstick, questions: Sequence[Question]) -> Examination:
        """Sample or read, and measure, pictures of words that the base knows, in the place of a learned one."""
        return self._examined([], text, yardstick, questions)

    def _examined(
        self, concepts: Sequence[Concept], text: str, yardstick: Yardstick, questions: Sequence[Question]
    ) -> Examination:
        prompts = [question.saying(text) for question in questions]
        path = self.folder / f"{self._key(concepts, text, prompts)}.png"
        lines = self._read(path, len(prompts)) or self._sample(concepts, prompts, path)
        return Examination(yardstick.measure(questions, lines), lines)

    def _sample(self, concepts: Sequence[Concept], prompts: Sequence[str], path: Path) -> list[list[Image.Image]]:
        """Sample a line of pictures for each prompt, and keep them as one picture without loss."""
        asked, seeds = generate.repeated(prompts, self.noises, self.sampling.seed)
        made = generate.generate(
            self.family, concepts, asked, sampling=self.sampling, seeds=seeds, batch_size=self._batch
        )
        with disk.writing(self.folder):
            sheets.save(sheets.grid(made, self.noises, gap=0), path, {"side": str(made[0].width)})
        return [made[i : i + self.noises] for i in range(0, len(made), self.noises)]

    @property
    def _batch(self) -> int:
        """Pictures sampled at once: as many pixels as four of 512 × 512 have, and four prompts at most."""
        return max(1, min(4 * self.noises, round(4 * (512 / self.family.resolution) ** 2)))

    @cached_property
    def _base(self) -> str:
        """A name for the base's weights and their precision."""
        return digest(self.family.modules)

    def _key(self, concepts: Sequence[Concept], text: str, prompts: Sequence[str]) -> str:
        """Return a name for everything that the pictures depend on."""
        rows = {}
        for concept in concepts:
            for encoder, block in concept.rows.items():
                rows[encoder] = hashlib.sha256(np.ascontiguousarray(block).tobytes()).hexdigest()
        facts = [text, rows, self._base, asdict(self.sampling), self.noises, list(prompts)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]

    def _read(self, path: Path, prompts: int) -> list[list[Image.Image]] | None:
        """Return the pictures of an earlier examination; None if there are none that can be read."""
        try:
            with Image.open(path) as grid:
                side, image = int(grid.info["side"]), grid.convert("RGB")
        except (OSError, ValueError, KeyError, SyntaxError):
            return None
        if image.size != (self.noises * side, prompts * side):
            return None
        return sheets.cut(image, self.noises, prompts, side, gap=0)


def plain(values: Any) -> Any:
    """Return an array or number for JSON, NaN as null."""
    if isinstance(values, np.ndarray):
        return plain(values.tolist())
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and math.isnan(values) else values
