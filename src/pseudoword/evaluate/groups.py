"""Words put together: those of one recipe over training seeds, and those of one setting over all its concepts."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from pseudoword.evaluate import statistics
from pseudoword.evaluate.diagnostics import Diagnosis
from pseudoword.evaluate.examine import Examination
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.references import Reference
from pseudoword.evaluate.words import Word

log = logging.getLogger(__name__)

CONCEPT = ("concepts.0.token", "concepts.0.pictures")
"""Of a recipe's choices those that say what is learned, not how."""
WITH_IT = ("concepts.0.initializer", "concepts.0.property")
"""Those that come with the concept, unless one concept is learned with several of them."""
ALL = "all"


@dataclass(frozen=True)
class Evaluated:
    """A word, and all that was found of it."""

    name: str
    """Tells it from all others of the report."""
    word: Word
    questions: Sequence[Question]
    done: Examination
    diagnosis: Diagnosis
    fidelity: str
    """Which measure says whether it is the concept."""
    editability: str
    """Which measure says whether the rest of the prompt holds."""
    told: Sequence[str]
    """How its numbers were made, for people."""
    real: Sequence[Image.Image]
    kinds: Sequence[str] = ()
    """What sorts of concept it belongs to, if it is one of a suite."""
    references: Mapping[str, Reference] = field(default_factory=dict)
    """What it is held against, by kind: the untrained word, the base's own words."""

    @property
    def concept(self) -> str:
        """What is learned, whatever the setting."""
        return json.dumps([str(self.word.choices.get(name)) for name in CONCEPT])

    def setting(self, besides: Collection[str]) -> dict[str, str]:
        """Return how its training was set, but for some choices; empty if its recipe is not known."""
        return {name: str(value) for name, value in self.word.choices.items() if name not in besides}


@dataclass(frozen=True)
class Group:
    """Words of one recipe at one step, which differ by the seed of their training alone."""

    name: str
    members: Sequence[Evaluated]
    spreads: Mapping[str, statistics.Spread]
    """By measure."""


def groups(evaluated: Sequence[Evaluated]) -> list[Group]:
    """Put words of one recipe and step together, one for each seed; a word whose recipe is not known stands alone."""
    found: dict[str, list[Evaluated]] = {}
    for one in evaluated:
        key = json.dumps([line(one), one.word.step])
        if one.word.seed not in [other.word.seed for other in found.get(key, [])]:
            found.setdefault(key, []).append(one)
    return [
        Group(
            _named(members),
            members,
            {name: statistics.spread([m.done.scores[name] for m in members]) for name in members[0].done.scores},
        )
        for members in found.values()
    ]


def _named(members: Sequence[Evaluated]) -> str:
    more = len(members) - 1
    return members[0].name + (f" and {more} more seed{'s' if more > 1 else ''}" if more else "")


def line(one: Evaluated) -> str:
    """Return what words of one recipe have in common at all steps; without a recipe, a word stands alone."""
    word = one.word
    told = [word.choices, word.concept.token] if word.choices else [str(word.place)]
    return json.dumps(told, sort_keys=True, default=str)


@dataclass(frozen=True)
class Pool:
    """Words of one setting at one step: several concepts, each trained from the same seeds."""

    name: str
    """The settings in which it differs from the other pools of the report; empty if in none."""
    kind: str
    """Which of the concepts: all, or a sort of them."""
    setting: Mapping[str, str]
    step: int
    concepts: int
    """How many of them the setting has; where those are not all that there are, it cannot be compared."""
    of: int
    seeds: Sequence[int]
    """Those from which every concept was trained; others count for nothing."""
    spreads: Mapping[str, statistics.Spread]
    """By measure; a seed's score is the mean over all concepts and prompts. Empty if there is no whole seed."""
    fidelity: str
    editability: str
    seconds: float | None
    """What the training of one word took in the mean."""


def pools(evaluated: Sequence[Evaluated]) -> list[Pool]:
    """Put words of one setting and step together: all of them, and each kind where there are several.

    A setting that has not all the concepts of the others cannot be compared with them and has no scores.
    """
    found: dict[tuple[str, int], list[Evaluated]] = {}
    besides = _besides(evaluated)
    for one in evaluated:
        if setting := one.setting(besides):
            found.setdefault((json.dumps(setting, sort_keys=True), one.word.step), []).append(one)
    settings = [members[0].setting(besides) for members in found.values()]
    names = dict.fromkeys(name for setting in settings for name in setting)
    differing = [name for name in names if len({setting.get(name) for setting in settings}) > 1]
    kinds = [ALL, *dict.fromkeys(kind for one in evaluated for kind in one.kinds)]
    asked = {kind: _concepts(_of_kind(evaluated, kind)) for kind in kinds}
    made: list[Pool] = []
    for members in found.values():
        setting = members[0].setting(besides)
        name = ", ".join(f"{name.rpartition('.')[2]}={setting.get(name, '—')}" for name in differing)
        for kind, concepts in asked.items():
            if kind == ALL or concepts < asked[ALL]:
                made += _pool(name, kind, setting, _of_kind(members, kind), concepts)
    return made


def _besides(evaluated: Sequence[Evaluated]) -> tuple[str, ...]:
    """Return the choices that are no setting: what is learned, and what comes with it."""
    by_concept: dict[str, list[Evaluated]] = {}
    for one in evaluated:
        by_concept.setdefault(one.concept, []).append(one)
    varied = [
        name
        for name in WITH_IT
        if any(len({str(one.word.choices.get(name)) for one in own}) > 1 for own in by_concept.values())
    ]
    return (*CONCEPT, *(name for name in WITH_IT if name not in varied))


def _of_kind(words: Sequence[Evaluated], kind: str) -> list[Evaluated]:
    return [one for one in words if kind == ALL or kind in one.kinds]


def _concepts(words: Sequence[Evaluated]) -> set[str]:
    return {one.concept for one in words}


def _pool(
    name: str, kind: str, setting: Mapping[str, str], members: Sequence[Evaluated], concepts: Set[str]
) -> list[Pool]:
    """Return the pool of words of one setting, of a word that is there twice the first; none if there are no words."""
    if not members:
        return []
    by_seed: dict[int, dict[str, Evaluated]] = {}
    for one in members:
        first = by_seed.setdefault(one.word.seed or 0, {}).setdefault(one.concept, one)
        if first is not one:
            log.warning("%s was trained as %s was, so it counts for nothing beside it.", one.name, first.name)
    whole = {seed: list(own.values()) for seed, own in by_seed.items() if own.keys() == concepts}
    measures = dict.fromkeys(measure for own in whole.values() for one in own for measure in one.done.scores)
    spreads = {
        measure: statistics.spread([_joined(own, measure) for own in whole.values()])
        for measure in measures
        if all(_says(own, measure) for own in whole.values())
    }
    has = max(len(own) for own in by_seed.values())
    seconds = [one.word.seconds for one in members if one.word.seconds]
    first, taken = members[0], sum(seconds) / len(seconds) if seconds else None
    axes = (first.fidelity, first.editability)
    return [Pool(name, kind, setting, first.word.step, has, len(concepts), list(whole), spreads, *axes, taken)]


def _joined(words: Sequence[Evaluated], measure: str) -> statistics.Scores:
    """Return the scores of several concepts as if they were one with all their prompts."""
    return np.concatenate([one.done.scores[measure] for one in words if measure in one.done.scores])


def _says(words: Sequence[Evaluated], measure: str) -> bool:
    return any(measure in one.done.scores and not np.isnan(one.done.scores[measure]).all() for one in words)
