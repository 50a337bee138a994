"""The verdict of an evaluation: in a sentence or three, what its numbers come to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pseudoword.evaluate import statistics
from pseudoword.evaluate.groups import ALL, Evaluated, Pool
from pseudoword.evaluate.measures import measure
from pseudoword.evaluate.reference_lines import ReferenceLine
from pseudoword.evaluate.references import IN_WORDS, UNTRAINED, Reference

GOOD = "learned"
COPIES = "learned, but the rest of the prompt suffers"
NOTHING = "no better than untrained"
WORSE = "worse than untrained"
UNKNOWN = "not judged"
NAMED = 6
"""Words that a sentence names."""


def of_word(one: Evaluated) -> str:
    """Return which of the verdicts a word has, held against the untrained word from the same noises."""
    untrained = one.references.get(UNTRAINED)
    if untrained is None or not _has(one, untrained, one.fidelity):
        return UNKNOWN
    gained, sure = _gain(one, untrained, one.fidelity)
    if not sure:
        return NOTHING
    if gained < 0:
        return WORSE
    if _has(one, untrained, one.editability):
        lost, sure = _gain(one, untrained, one.editability)
        if sure and lost < 0:
            return COPIES
    return GOOD


def verdict(evaluated: Sequence[Evaluated], pooled: Sequence[Pool], references: Sequence[ReferenceLine]) -> str:
    """Return what the numbers come to: which setting is best and how sure that is, or which words are learned."""
    compared = [pool for pool in pooled if pool.kind == ALL and {pool.fidelity, pool.editability} & pool.spreads.keys()]
    if len(compared) > 1:
        return " ".join([*_of_settings(compared), *_of_references(compared[0], references)])
    if len(evaluated) == 1:
        return _of_one(evaluated[0])
    return _of_several(evaluated)


def _has(one: Evaluated, reference: Reference, name: str) -> bool:
    return name in one.done.scores and name in reference.done.scores


def _gain(one: Evaluated, reference: Reference, name: str) -> tuple[float, bool]:
    """Return how much more a word scores than its reference, and whether that is more than chance and can be seen."""
    gained, error = statistics.gain(one.done.scores[name], reference.done.scores[name])
    least = measure(name).matters
    return gained, abs(gained) >= max(least, 0.0 if math.isnan(error) else 2 * error)


# A word, or several


def _of_one(one: Evaluated) -> str:
    judged, token = of_word(one), one.word.concept.token
    names = [name for name in (one.fidelity, one.editability) if name in one.done.scores]
    scores = ", ".join(f"{name} {_score(one, name)}{_beside(one, name)}" for name in names)
    sentences = {
        GOOD: f"{token} is learned, and the rest of a prompt holds: {scores}.",
        COPIES: f"{token} is learned, but the rest of a prompt suffers: {scores}. Try an earlier step (--steps), fewer "
        "vectors or a lower learning rate.",
        NOTHING: f"{token} is no better than untrained: {scores}. Train for more steps or at a higher learning rate.",
        WORSE: f"{token} is worse than untrained: {scores}. Try a lower learning rate, and look at the pictures.",
        UNKNOWN: f"{token}: {scores}. There is no untrained word to judge that by.",
    }
    known = one.references.get(IN_WORDS)
    if known is None or not _has(one, known, one.fidelity):
        return sentences[judged]
    reached = statistics.mean(known.done.scores[one.fidelity])
    return f"{sentences[judged]} The base's own words, {known.text!r}, have a {one.fidelity} of {reached:.2f}."


def _score(one: Evaluated, name: str) -> str:
    value = statistics.mean(one.done.scores[name])
    return "—" if math.isnan(value) else f"{value:.2f}"


def _beside(one: Evaluated, name: str) -> str:
    untrained = one.references.get(UNTRAINED)
    if untrained is None or not _has(one, untrained, name):
        return ""
    return f" (untrained {statistics.mean(untrained.done.scores[name]):.2f})"


def _of_several(evaluated: Sequence[Evaluated]) -> str:
    by_verdict: dict[str, list[str]] = {}
    for one in evaluated:
        by_verdict.setdefault(of_word(one), []).append(one.name)
    learned = len(by_verdict.get(GOOD, []))
    sentence = f"{learned} of {len(evaluated)} words are learned, and the rest of their prompts holds."
    others = []
    for judged in (COPIES, NOTHING, WORSE, UNKNOWN):
        names = by_verdict.get(judged, [])
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            others.append(f"{judged[0].upper()}{judged[1:]}: {', '.join(names[:NAMED])}{more}.")
    return " ".join([sentence, *others])


# Settings


def _of_settings(pools: Sequence[Pool]) -> list[str]:
    """Return which setting is first in both numbers, or which in each, and how sure that is."""
    fidelity, editability = pools[0].fidelity, pools[0].editability
    several_steps = len({pool.step for pool in pools}) > 1
    first = {name: _ranked(pools, name) for name in (fidelity, editability) if any(name in p.spreads for p in pools)}
    leaders = {name: ranked[0] for name, ranked in first.items()}
    best, other = leaders.get(fidelity), leaders.get(editability)
    if best and other and editability in best.spreads and _mean(best, editability) == _mean(other, editability):
        first[editability].remove(best)
        first[editability].insert(0, best)
        leaders[editability] = best
    sentences: list[str] = []
    same = len({id(pool) for pool in leaders.values()}) == 1 and len(leaders) == 2
    if same:
        best = leaders[fidelity]
        numbers = f"{fidelity} {best.spreads[fidelity].mean:.2f} and {editability} {best.spreads[editability].mean:.2f}"
        sentences.append(f"{called(best, several_steps)} is first of {len(pools)} in both, {numbers}.")
    else:
        for name, best in leaders.items():
            mean = best.spreads[name].mean
            sentences.append(f"{called(best, several_steps)} has the highest {name} of {len(pools)}, {mean:.2f}.")
        if len(leaders) == 2:
            sentences.append("Choose by what you need.")
    for name, ranked in first.items():
        if len(ranked) > 1:
            sentences.append(_lead(ranked[0], ranked[1], name, called(ranked[1], several_steps)))
            if len(_common(ranked[0], ranked[1])) < statistics.FEWEST:
                sentences.append(_too_few(_common(ranked[0], ranked[1])))
    return list(dict.fromkeys(sentence for sentence in sentences if sentence))


def _mean(pool: Pool, name: str) -> float:
    return pool.spreads[name].mean


def called(pool: Pool, several_steps: bool) -> str:
    """Return what a sentence calls a setting."""
    step = f"step {pool.step}"
    if not pool.name:
        return step.capitalize()
    return f"{pool.name} at {step}" if several_steps else pool.name


def _ranked(pools: Sequence[Pool], name: str) -> list[Pool]:
    """Return the settings that have a measure, the highest first; of equal ones in the order of the report."""
    having = [pool for pool in pools if name in pool.spreads]
    return sorted(having, key=lambda pool: -pool.spreads[name].mean)


def _lead(best: Pool, second: Pool, name: str, called_second: str) -> str:
    """Say whether the first setting's lead is more than training seeds leave."""
    if round(best.spreads[name].mean, 2) == round(second.spreads[name].mean, 2):
        return f"In {name} {called_second} is as good."
    seeds = _common(best, second)
    if len(seeds) < statistics.FEWEST:
        return _too_few(seeds)
    leads = [_of_seed(best, name, seed) - _of_seed(second, name, seed) for seed in seeds]
    lead, half = float(np.mean(leads)), statistics.half_interval(leads)
    judged = "more than" if lead > half else "within what"
    leave = f"{len(seeds)} training seeds leave ({lead:.2f} ± {half:.2f})"
    return f"Its lead in {name} over {called_second} is {judged} {leave}."


def _common(one: Pool, other: Pool) -> list[int]:
    """Return the seeds that both settings were trained from."""
    return [seed for seed in one.seeds if seed in other.seeds]


def _too_few(seeds: Sequence[int]) -> str:
    few = {0: "No common seed is", 1: "One seed is"}.get(len(seeds), "Two seeds are")
    return f"{few} too few to tell settings apart: train {statistics.FEWEST} or more (--seeds {statistics.FEWEST})."


def _of_seed(pool: Pool, name: str, seed: int) -> float:
    return pool.spreads[name].each[list(pool.seeds).index(seed)]


def _of_references(pool: Pool, references: Sequence[ReferenceLine]) -> list[str]:
    """Say what was there before training."""
    sentences = []
    for line in references:
        numbers = [f"{name} {line.means[name]:.2f}" for name in (pool.fidelity, pool.editability) if name in line.means]
        if numbers and line.concepts == line.of:
            sentences.append(f"{line.name[0].upper()}{line.name[1:]}: {', '.join(numbers)}.")
    return sentences
