"""References over several concepts, as tables and the plane show them beside what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pseudoword.evaluate import statistics
from pseudoword.evaluate.groups import Evaluated
from pseudoword.evaluate.references import Reference


@dataclass(frozen=True)
class ReferenceLine:
    """What the base draws without learned words, over some concepts."""

    name: str
    concepts: int
    of: int
    means: dict[str, float]
    """By measure."""


def reference_lines(evaluated: Sequence[Evaluated]) -> list[ReferenceLine]:
    """Return a line for each kind of reference, over all concepts that have it.

    Where settings begin differently, such as with more vectors, each beginning has a line of its own.
    """
    of_kind: dict[str, dict[str, dict[str, Reference]]] = {}  # by kind, concept and beginning
    for one in evaluated:
        for kind, reference in one.references.items():
            beginning = f"{reference.text!r}, vectors: {one.word.concept.num_vectors}, on {one.word.base.model}"
            of_kind.setdefault(kind, {}).setdefault(one.concept, {}).setdefault(beginning, reference)
    of = len({one.concept for one in evaluated})
    lines: list[ReferenceLine] = []
    for kind, by_concept in of_kind.items():
        distinct = [_distinct(beginnings) for beginnings in by_concept.values()]
        if all(len(own) == 1 for own in distinct):
            several = [reference for own in distinct for reference in own.values()]
            lines.append(_line(kind, several, of))
            continue
        for beginning in dict.fromkeys(name for own in distinct for name in own):
            several = [own[beginning] for own in distinct if beginning in own]
            lines.append(_line(f"{kind}: {beginning}", several, of))
    return lines


def _distinct(beginnings: dict[str, Reference]) -> dict[str, Reference]:
    """Return references by their beginning, each that was sampled once once."""
    once: dict[str, Reference] = {}
    for beginning, reference in beginnings.items():
        if all(reference is not other for other in once.values()):
            once[beginning] = reference
    return once


def _line(name: str, several: Sequence[Reference], of: int) -> ReferenceLine:
    measures = dict.fromkeys(measure for reference in several for measure in reference.done.scores)
    means = {}
    for measure in measures:
        scores = [reference.done.scores[measure] for reference in several if measure in reference.done.scores]
        means[measure] = statistics.mean(np.concatenate(scores))
    return ReferenceLine(name, len(several), of, means)


def label(line: ReferenceLine) -> str:
    """Return a line's name, and how many concepts have it where that is not all."""
    return line.name if line.concepts == line.of else f"{line.name} ({line.concepts} of {line.of})"
