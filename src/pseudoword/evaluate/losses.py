"""Fixed-draw losses of runs, put together where they were measured on the same draws, which alone can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pseudoword.evaluate.groups import Evaluated
from pseudoword.evaluate.plane import Panel

MOST = 12
"""Panels on a page."""
OF_THE_DRAWS = ("concepts.0.pictures", "concepts.0.templates", "concepts.0.property", "base.", "data.")
"""Choices that the draws depend on, besides the seed and the token; those with a dot at the end are whole sections."""


def panels(evaluated: Sequence[Evaluated]) -> list[Panel]:
    """Return a panel for each seed and concept, with the curves of the settings that were measured on its draws."""
    runs = {one.word.run: one for one in evaluated if one.word.run and one.word.fixed_draw_loss[0]}
    alike: dict[str, list[Evaluated]] = {}
    for one in runs.values():
        alike.setdefault(_draws(one), []).append(one)
    one_concept = len({one.concept for one in evaluated}) == 1
    made = []
    for members in alike.values():
        first = members[0]
        if len(members) == 1 and len(alike) == 1:
            made.append(Panel("", [(_name(first), *first.word.fixed_draw_loss)]))
            continue
        differing = choices_that_differ([one.word.choices for one in members])
        curves = []
        for one in members:
            settings = ", ".join(f"{name.rpartition('.')[2]}={one.word.choices.get(name, '—')}" for name in differing)
            curves.append((settings or first.word.concept.token, *one.word.fixed_draw_loss))
        about = first.word.concept.token if one_concept else first.word.pictures.name
        made.append(Panel(about if first.word.seed is None else f"{about}, seed {first.word.seed}", curves))
    return made


def _draws(one: Evaluated) -> str:
    """Return a name for everything that a run's fixed draws depend on."""
    draws = {}
    for name, value in one.word.choices.items():
        if name in OF_THE_DRAWS or name.startswith(tuple(own for own in OF_THE_DRAWS if own.endswith("."))):
            draws[name] = str(value)
    return json.dumps([one.word.seed, one.word.concept.token, draws], sort_keys=True)


def _name(one: Evaluated) -> str:
    return one.name.removesuffix(f" at {one.word.step}")


def choices_that_differ(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of choices that are not the same for all."""
    names = dict.fromkeys(name for choices in several for name in choices)
    return [name for name in names if len({str(choices.get(name)) for choices in several}) > 1]
