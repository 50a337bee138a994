"""Fidelity and editability of a word of the toybox's suite, whose answers are known, as the oracle reads its pictures.

Fidelity is the share of the word's own attributes read right (shape, colours and pattern, or the style), editability
the share of what the rest of each prompt asks for. Both are counted, so they can be checked by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.statistics import Scores
from pseudoword.toybox import suite
from pseudoword.toybox.oracle import Judge, Reading, truth
from pseudoword.toybox.score import as_array
from pseudoword.toybox.suite import Prompt, Subject

ITSELF = {"object": ("shape", "colour", "pattern", "second"), "style": ("style",)}
"""What the word is to say; all other attributes are what the rest of the prompt says."""


def hits(subject: Subject, prompt: Prompt, reading: Reading) -> tuple[list[bool], list[bool]]:
    """Return which of the word's own attributes were read right, and which of those that the prompt adds."""
    own = ITSELF["style" if subject.kind == "style" else "object"]
    right = {name: reading[name][0] == value for name, value in truth(prompt.expected).items()}
    itself = [right[name] for name in own if name in right]
    rest = [right[name] for name in prompt.asked]
    return itself, rest


def own_embedding(subject: Subject, judge: Judge) -> Float[np.ndarray, 64]:
    """Return the direction of a subject's own pictures."""
    mean = judge.embed(as_array(suite.pictures(subject))).mean(axis=0)
    return mean / np.linalg.norm(mean)


class AnswerKey:
    """A yardstick of a subject of the suite, whose attributes are known."""

    fidelity, editability = "fidelity", "editability"

    def __init__(self, subject: Subject, judge: Judge) -> None:
        self.subject, self.judge = subject, judge
        self.questions = tuple(Question(p.text, plain=p.situation == "plain") for p in suite.prompts(subject))
        self._own = own_embedding(subject, judge)

    @property
    def told(self) -> list[str]:
        """What the numbers depend on, for people."""
        own = ", ".join(ITSELF["style" if self.subject.kind == "style" else "object"])
        return [
            f"fidelity: share of {self.subject.name}'s own attributes ({own}) that the toybox's oracle reads right",
            "editability: share of what the rest of each prompt asks for that it reads right",
            "similarity: cosine of the oracle's embedding with that of the pictures given (of objects alone)",
        ]

    def measure(self, questions: Sequence[Question], pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Scores]:
        """Measure pictures, a list for each of the subject's own questions: the answer key knows no others."""
        prompts = suite.prompts(self.subject)
        shape = (len(prompts), len(pictures[0]))
        values = as_array([picture for line in pictures for picture in line])
        fidelity, editability = np.full(shape, np.nan), np.full(shape, np.nan)
        for i, reading in enumerate(self.judge.read(values)):
            place = divmod(i, shape[1])
            itself, rest = hits(self.subject, prompts[place[0]], reading)
            fidelity[place] = np.mean(itself)
            if rest:
                editability[place] = np.mean(rest)
        found = {"fidelity": fidelity, "editability": editability}
        if self.subject.kind != "style":
            found["similarity"] = (self.judge.embed(values) @ self._own).astype(np.float64).reshape(shape)
        return found
