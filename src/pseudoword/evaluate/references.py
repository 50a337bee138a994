"""What a word is held against: the same prompts from the same noises, drawn without anything learned."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.errors import PseudowordError
from pseudoword.evaluate.examine import Examination, Examiner, Yardstick
from pseudoword.evaluate.prompts import Question
from pseudoword.starting import file_of
from pseudoword.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pseudoword.evaluate.words import Word

log = logging.getLogger(__name__)

UNTRAINED = "untrained"
"""The word as it was before its first step."""
IN_WORDS = "in the base's own words"
"""What the base draws where a description that it knows stands for the word."""


@dataclass(frozen=True)
class Reference:
    """What the base draws without a learned word."""

    kind: str
    text: str
    """What it starts from, or what is written in the word's place."""
    done: Examination


class References:
    """The references of one base's words; each is sampled once, however many seeds and settings are held against it."""

    def __init__(self, examiner: Examiner) -> None:
        self.examiner = examiner
        self._known: dict[Hashable, Reference | None] = {}

    def of(
        self, word: Word, yardstick: Yardstick, questions: Sequence[Question], description: str | None
    ) -> dict[str, Reference]:
        """Return a word's references by kind: those that are known of it."""
        place = (str(word.pictures), word.class_word, tuple(questions))
        found: dict[str, Reference | None] = {}
        if word.recipe is not None:
            wanted = word.recipe.concepts[0]
            key = (UNTRAINED, wanted.initializer, wanted.num_vectors, *place)
            if key not in self._known:
                self._known[key] = self._untrained(word, yardstick, questions)
            found[UNTRAINED] = self._known[key]
        if description is not None:
            key = (IN_WORDS, description, *place)
            if key not in self._known:
                done = self.examiner.examine_text(description, yardstick, questions)
                self._known[key] = Reference(IN_WORDS, description, done)
            found[IN_WORDS] = self._known[key]
        return {kind: reference for kind, reference in found.items() if reference is not None}

    def _untrained(self, word: Word, yardstick: Yardstick, questions: Sequence[Question]) -> Reference | None:
        """Return what the word's first rows give; None if what it started from is gone."""
        concept = first_concept(word, self.examiner.family.vocabularies)
        if concept is None:
            return None
        return Reference(UNTRAINED, word.initializer or "", self.examiner.examine(concept, yardstick, questions))


def first_concept(word: Word, vocabularies: Mapping[str, Vocabulary]) -> Concept | None:
    """Return a run's word as it was before its first step; None if what it started from cannot be read."""
    if word.recipe is None:
        return None
    wanted = word.recipe.concepts[0]
    file = file_of(wanted)
    try:
        earlier = formats.read(file) if file else None
        rows = {}
        for encoder, vocabulary in vocabularies.items():
            if earlier is None:
                rows[encoder], _ = vocabulary.initial_rows(wanted.initializer, wanted.num_vectors)
            else:
                rows[encoder] = vocabulary.rows_of(earlier, encoder)
    except PseudowordError as error:
        log.warning("%s is not compared with an untrained word, as that cannot be made again: %s", wanted.token, error)
        return None
    return Concept(wanted.token, rows, property=wanted.property)
