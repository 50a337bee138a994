"""Whether a word was learned: what in its rows and its fixed-draw losses says that it was not, and what to try."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pseudoword.judging.lengths import LEAST_MOVED, LONGEST, longest, moved

log = logging.getLogger(__name__)

NAMED = 5
"""Words that are named for each sign; of more, their number is told."""


@dataclass(frozen=True)
class Suspicion:
    """A sign that a word was not learned."""

    sign: str
    """'long', 'still', 'rose' or 'ends worse': what of several words is told together."""
    sentence: str
    """What is wrong, and what to try."""


def suspicions(
    rows: Mapping[str, np.ndarray],
    start: Mapping[str, np.ndarray],
    usual: Mapping[str, float],
    losses: Sequence[float],
    learning_rate: float,
) -> list[Suspicion]:
    """Return what speaks against a word.

    `rows` and `start` are `[vectors, width]` per text encoder, `usual` the vocabulary's usual length there.
    `losses` are the fixed-draw losses, the first from before training; empty where they were not measured.
    """
    lengths = {encoder: longest(block) / usual[encoder] for encoder, block in rows.items()}
    distance = max(moved(block, start[encoder], usual[encoder]) for encoder, block in rows.items())
    if distance < LEAST_MOVED:
        return [Suspicion("still", _still(distance, learning_rate))]  # its loss says no more
    signs: list[Suspicion] = []
    if max(lengths.values()) > LONGEST:
        signs.append(Suspicion("long", _long(max(lengths.values()), learning_rate)))
    before, after = losses[:1], losses[1:]
    if before and after:
        if min(after) >= before[0]:
            signs.append(Suspicion("rose", _rose(before[0], learning_rate)))
        elif after[-1] > before[0]:
            signs.append(Suspicion("ends worse", _ends_worse(before[0], after[-1], min(after))))
    return signs


def _still(distance: float, learning_rate: float) -> str:
    return (
        f"its rows have moved by only {100 * distance:.2g}% of their length, so it is still what it started as. "
        f"Try a higher --learning-rate (it is {learning_rate:g}; 5e-4 to 5e-3 is usual), or more --steps."
    )


def _long(times: float, learning_rate: float) -> str:
    return (
        f"its rows are {times:,.0f} times as long as the vocabulary's, which drowns out the rest of a prompt. "
        f"Try a lower --learning-rate (it is {learning_rate:g}; 5e-4 to 5e-3 is usual), or fewer --steps."
    )


def _rose(before: float, learning_rate: float) -> str:
    return (
        f"its fixed-draw loss never fell below the {before:.4f} from before training. "
        f"Try another --learning-rate (it is {learning_rate:g}), --gradient-clip 1, or a closer --initializer."
    )


def _ends_worse(before: float, last: float, lowest: float) -> str:
    return (
        f"its fixed-draw loss ended at {last:.4f}, above the {before:.4f} from before training, though it had fallen "
        f"to {lowest:.4f}. Take learned_embeds-best, or try a lower --learning-rate or fewer --steps."
    )


def sentences(suspicious: Mapping[str, Sequence[Suspicion]]) -> dict[str, tuple[str, ...]]:
    """Return the sentences alone."""
    return {token: tuple(sign.sentence for sign in signs) for token, signs in suspicious.items()}


def warn(suspicious: Mapping[str, Sequence[Suspicion]]) -> None:
    """Say which words are suspicious, by token; of many with one sign, the first few."""
    by_sign: dict[str, list[tuple[str, str]]] = {}
    for token, signs in suspicious.items():
        for suspicion in signs:
            by_sign.setdefault(suspicion.sign, []).append((token, suspicion.sentence))
    for pairs in by_sign.values():
        for token, sentence in pairs[:NAMED]:
            log.warning("%s is suspicious: %s", token, sentence)
        if len(pairs) > NAMED:
            log.warning("%d more words are suspicious for the same reason.", len(pairs) - NAMED)
