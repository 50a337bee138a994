"""How well a word learned from the toybox's suite says what it was learned from, in every situation asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pseudoword.concept import Concept
from pseudoword.contracts import Family
from pseudoword.evaluate.answer_key import hits, own_embedding
from pseudoword.generate import Sampling, generate
from pseudoword.toybox import suite, words
from pseudoword.toybox.oracle import Judge
from pseudoword.toybox.score import Goal, as_array
from pseudoword.toybox.suite import Subject

PICTURES = 4
"""Pictures for each prompt."""
SAMPLING = Sampling(seed=1000, steps=20, guidance_scale=4.0)


@dataclass(frozen=True)
class Said:
    """Shares of attributes read right: of the word's own, and of those that the rest of the prompt says."""

    itself: float
    rest: float
    situations: Mapping[str, float] = field(default_factory=dict)
    """The word's own, by situation."""


@dataclass(frozen=True)
class WordScore:
    """What was measured of one subject's word."""

    subject: Subject
    learned: Said
    described: Said | None
    """The same prompts with the world's own words instead, where it has them."""
    similarity: float
    """Mean similarity of its plain pictures to those it was learned from."""
    best_word: str
    """The single word of the world whose pictures come closest."""
    best_similarity: float

    @property
    def line(self) -> str:
        """What there is to say in a line."""
        beside = f", its words {self.described.itself:.0%}" if self.described else ""
        return (
            f"{self.subject.name}: itself {self.learned.itself:.0%}{beside}, the rest {self.learned.rest:.0%}, "
            f"similarity {self.similarity:.2f}, best single word {self.best_word!r} {self.best_similarity:.2f}"
        )


def pictures_of(
    family: Family, concepts: Sequence[Concept], text: str, prompts: Sequence[str]
) -> UInt8[np.ndarray, "pictures 64 64 3"]:
    """Draw each prompt several times, with a text where `{}` stands; all prompts share their noises."""
    asked = [prompt.format(text) for prompt in prompts for _ in range(PICTURES)]
    seeds = [SAMPLING.seed + i for _ in prompts for i in range(PICTURES)]
    return as_array(generate(family, concepts, asked, sampling=SAMPLING, seeds=seeds, batch_size=20))


def said(subject: Subject, judge: Judge, pictures: UInt8[np.ndarray, "pictures 64 64 3"]) -> Said:
    """Compare pictures of a subject's prompts, in their order, with what was asked for."""
    itself: dict[str, list[bool]] = {}
    rest: list[bool] = []
    expected = [prompt for prompt in suite.prompts(subject) for _ in range(PICTURES)]
    for prompt, reading in zip(expected, judge.read(pictures), strict=True):
        own, others = hits(subject, prompt, reading)
        itself.setdefault(prompt.situation, []).extend(own)
        rest += others
    shares = {situation: float(np.mean(hits)) for situation, hits in itself.items()}
    return Said(float(np.mean([hit for hits in itself.values() for hit in hits])), float(np.mean(rest)), shares)


def single_words(family: Family, judge: Judge) -> dict[str, Float[np.ndarray, "pictures 64"]]:
    """Return embeddings of the pictures that each single word of the world gives."""
    known = words.words()
    made = judge.embed(pictures_of(family, (), "", [f"a photo of a {word}" for word in known]))
    return dict(zip(known, made.reshape(len(known), PICTURES, -1), strict=True))


def word_score(
    family: Family, concept: Concept, subject: Subject, judge: Judge, singles: Mapping[str, Any]
) -> WordScore:
    """Measure a learned word against its subject, the world's own words for it, and every single word."""
    prompts = [prompt.text for prompt in suite.prompts(subject)]
    made = pictures_of(family, [concept], concept.token, prompts)
    in_words = subject.described
    described = said(subject, judge, pictures_of(family, (), in_words, prompts)) if in_words else None
    own = own_embedding(subject, judge)
    similar = {word: float((embeddings @ own).mean()) for word, embeddings in singles.items()}
    best = max(similar, key=lambda word: similar[word])
    similarity = float((judge.embed(made[:PICTURES]) @ own).mean())
    return WordScore(subject, said(subject, judge, made), described, similarity, best, similar[best])


def goals_of_words(scores: Sequence[WordScore]) -> list[Goal]:
    """Return the goals that learned words are held to."""
    known = [score for score in scores if score.subject.kind == "nameable" and score.described]
    shares = [s.learned.itself / s.described.itself for s in known if s.described and s.described.itself]
    wordless = [score for score in scores if score.subject.kind == "wordless"]
    closer = sum(score.similarity > score.best_similarity for score in wordless)
    return [
        Goal(
            "nameable concepts, agreement against their own words' (mean)",
            100 * float(np.mean(shares)) if shares else 0.0,
            85,
        ),
        Goal(
            "concepts without a word, closer to their pictures than any single word",
            closer,
            len(wordless) * 5 / 6,
            f"of {len(wordless)}",
        ),
    ]
