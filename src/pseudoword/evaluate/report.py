"""The report of an evaluation: report.html in one file, report.json for programs, contact-sheet.png and plane.png."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pseudoword import disk, sheets
from pseudoword.errors import RecipeError
from pseudoword.evaluate import losses, plane, statistics, verdict
from pseudoword.evaluate.examine import plain
from pseudoword.evaluate.groups import ALL, Evaluated, Group, Pool, groups, line, pools
from pseudoword.evaluate.losses import choices_that_differ
from pseudoword.evaluate.measures import MEASURES
from pseudoword.evaluate.reference_lines import ReferenceLine, label, reference_lines
from pseudoword.evaluate.references import Reference
from pseudoword.sheets import Line

SHOWN = 192
"""Pixels of a side that a picture has in the report at most; files beside it hold them whole."""
COLUMNS = 8
MANY = 8
"""Words beyond which a contact sheet has but a line for each, and the page folds their pictures."""
JSON = "report.json"
"""The file for programs, beside the page."""


def check_installed() -> None:
    """Raise RecipeError if what draws and lays out reports is missing."""
    for name in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f"A report needs {name}; install it with pip install 'pseudoword[eval]'.")


def measures(evaluated: Sequence[Evaluated]) -> list[str]:
    """Return the names of all that was measured, in the order of first appearance."""
    return list(dict.fromkeys(name for one in evaluated for name in one.done.scores))


def to_json(
    evaluated: Sequence[Evaluated], found: Sequence[Group], pooled: Sequence[Pool], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that was measured as plain values."""
    return {
        **facts,
        "verdict": verdict.verdict(evaluated, pooled, reference_lines(evaluated)),
        "words": [
            {
                "name": one.name,
                "token": one.word.concept.token,
                "step": one.word.step,
                "seed": one.word.seed,
                "base": one.word.base.model,
                "class_word": one.word.class_word,
                "training_seconds": one.word.seconds,
                "fidelity": one.fidelity,
                "editability": one.editability,
                "means": {name: plain(statistics.mean(scores)) for name, scores in one.done.scores.items()},
                "sampling_errors": {
                    name: plain(statistics.sampling_error(scores)) for name, scores in one.done.scores.items()
                },
                "prompts": [question.text for question in one.questions],
                "scores": {name: plain(scores) for name, scores in one.done.scores.items()},
                "references": {kind: _reference(reference) for kind, reference in one.references.items()},
                "verdict": verdict.of_word(one),
                "diagnosis": asdict(one.diagnosis),
                "recipe": one.word.choices,
                "how": list(one.told),
            }
            for one in evaluated
        ],
        "groups": [
            {
                "name": group.name,
                "words": [member.name for member in group.members],
                "spreads": _spreads(group.spreads),
            }
            for group in found
        ],
        "pools": [{**asdict(pool), "spreads": _spreads(pool.spreads)} for pool in pooled],
    }


def _reference(reference: Reference) -> dict[str, Any]:
    means = {name: plain(statistics.mean(scores)) for name, scores in reference.done.scores.items()}
    scores = {name: plain(scores) for name, scores in reference.done.scores.items()}
    return {"text": reference.text, "means": means, "scores": scores}


def _spreads(spreads: Mapping[str, statistics.Spread]) -> dict[str, Any]:
    return {name: {key: plain(value) for key, value in asdict(spread).items()} for name, spread in spreads.items()}


def write(
    evaluated: Sequence[Evaluated], folder: Path, facts: Mapping[str, Any], failed: Mapping[str, str] | None = None
) -> Path:
    """Write the report's files into a folder and return the page; each appears whole or not at all.

    `failed` says why, by name, of runs that have left no word.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, pooled = groups(evaluated), pools(evaluated)
    drawing = _drawing(found, pooled, reference_lines(evaluated))
    figure = drawing.figure
    values = {**to_json(evaluated, found, pooled, facts), "failed": failed or {}}
    disk.write(folder / JSON, json.dumps(values, indent=1) + "\n")
    sheets.save(contact_sheet(evaluated), folder / "contact-sheet.png", {})
    disk.write(folder / "plane.png", plane.png(figure))
    return disk.write(folder / "report.html", page(evaluated, found, pooled, drawing, facts, failed or {}))


def contact_sheet(evaluated: Sequence[Evaluated]) -> Image.Image:
    """Lay out each word's own pictures, and below them those of each of its prompts; of many words a line each."""
    lines: list[Line] = []
    for one in evaluated:
        if len(evaluated) > MANY:
            shown = [_squared(one.real[0]), *(pictures[0] for pictures in one.done.pictures)][:COLUMNS]
            lines.append(Line(f"{one.name}: learned from, then a picture of each prompt", shown))
            continue
        lines.append(Line(f"{one.name}: learned from", [_squared(picture) for picture in one.real[:COLUMNS]]))
        for question, pictures in zip(one.questions, one.done.pictures, strict=True):
            lines.append(Line(question.saying(one.word.concept.token), pictures[:COLUMNS]))
    return sheets.sheet(lines, min(SHOWN, max(96, evaluated[0].done.pictures[0][0].width)))


def _squared(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    return ImageOps.pad(picture, (side, side), color="white")


@dataclass(frozen=True)
class Drawing:
    """The plane of a report."""

    figure: Any
    is_cut: bool
    """Whether bars are cut where scores end."""


def _drawing(found: Sequence[Group], pooled: Sequence[Pool], references: Sequence[ReferenceLine]) -> Drawing:
    """Draw a point for each setting if there are several, over all its concepts; else one for each concept."""
    first = found[0].members[0]
    whole = [pool for pool in pooled if pool.kind == ALL]
    several = len({pool.name for pool in whole}) > 1
    if several:
        places, joined = _places_of(whole), len(whole) > len({pool.name for pool in whole})
    else:
        places, joined = _places(found), len(found) > len({line(group.members[0]) for group in found})
        places += _places_of(pool for pool in whole if pool.concepts > 1)
    axes = first.fidelity or "—", first.editability or "—"
    for reference in references:
        up, across = reference.means.get(axes[0]), reference.means.get(axes[1])
        if up is not None and across is not None:
            places.append(plane.Place(label(reference), reference.name, up, across, reference=True))
    return Drawing(plane.draw(places, *axes, steps=joined), plane.cut(places, *axes))


def _places(found: Sequence[Group]) -> list[plane.Place]:
    """Return a point for each group; groups of one recipe are a line over its steps."""
    lines: dict[str, list[Group]] = {}
    for group in found:
        lines.setdefault(line(group.members[0]), []).append(group)
    places: list[plane.Place] = []
    for members in lines.values():
        ordered = sorted(members, key=lambda group: group.members[0].word.step)
        name = ordered[0].name.removesuffix(f" at {ordered[0].members[0].word.step}")
        for group in ordered:
            one = group.members[0]
            label = str(one.word.step) if len(ordered) > 1 else name
            places += _place(label, name, group.spreads, one.fidelity, one.editability)
    return places


def _places_of(pooled: Iterable[Pool]) -> list[plane.Place]:
    """Return a point for each pool; those of one setting are a line over its steps."""
    places: list[plane.Place] = []
    ordered = sorted(pooled, key=lambda pool: pool.step)
    for pool in ordered:
        name = pool.name or f"{pool.kind} {pool.concepts}"
        label = str(pool.step) if sum(other.name == pool.name for other in ordered) > 1 else name
        places += _place(label, name, pool.spreads, pool.fidelity, pool.editability)
    return places


def _place(
    label: str, name: str, spreads: Mapping[str, statistics.Spread], fidelity: str, editability: str
) -> list[plane.Place]:
    one, other = spreads.get(fidelity), spreads.get(editability)
    if one is None or other is None:
        return []
    return [plane.Place(label, name, one.mean, other.mean, _half(one), _half(other))]


def _half(spread: statistics.Spread) -> float:
    """Return half an interval: over training seeds where there are enough, else two standard errors of sampling."""
    return 2 * spread.sampling if spread.seeds < statistics.FEWEST else spread.half


def page(
    evaluated: Sequence[Evaluated],
    found: Sequence[Group],
    pooled: Sequence[Pool],
    drawing: Drawing,
    facts: Mapping[str, Any],
    failed: Mapping[str, str],
) -> str:
    """Return the page, which needs no other file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pseudoword.evaluate", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    references = reference_lines(evaluated)
    environment.filters |= {"number": _number, "picture": _as_data}
    panels = losses.panels(evaluated)
    shown = panels[: losses.MOST]
    settings = [pool for pool in pooled if pool.kind == ALL]
    several = len({pool.name for pool in settings}) > 1
    return environment.get_template("report.html").render(
        evaluated=evaluated,
        groups=found,
        pools=[pool for pool in pooled if several or pool.concepts > 1 or len(pool.seeds) > 1],
        references=references,
        reference_label=label,
        verdict=verdict.verdict(evaluated, pooled, references),
        verdict_of_word=verdict.of_word,
        explained={name: MEASURES[name].meaning for name in measures(evaluated) if name in MEASURES},
        several=several,
        many=several or len(evaluated) > MANY,
        fewest=statistics.FEWEST,
        plane=plane.svg(drawing.figure),
        is_cut=drawing.is_cut,
        curves=plane.svg(plane.panels(shown, "fixed-draw loss")) if shown else "",
        more_curves=len(panels) - len(shown),
        facts=facts,
        failed=failed,
        measures=measures(evaluated),
        mean=statistics.mean,
        error=statistics.sampling_error,
        differing=choices_that_differ([one.word.choices for one in evaluated]),
        columns=COLUMNS,
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _as_data(picture: Image.Image) -> str:
    """Return a picture as the address of itself; a small one keeps every pixel."""
    content = io.BytesIO()
    small = picture.convert("RGB")
    small.thumbnail((SHOWN, SHOWN))
    small.save(content, format="WEBP", lossless=small.size == picture.size and picture.width <= 96, quality=88)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
