"""The report of an evaluation: report.html in one file, report.json for programs, contact-sheet.png and plane.png."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pseudoword import disk, sheets
from pseudoword.errors import RecipeError
from pseudoword.evaluate import plane, statistics
from pseudoword.evaluate.diagnostics import Diagnosis
from pseudoword.evaluate.examine import Examination, plain
from pseudoword.evaluate.prompts import Question
from pseudoword.evaluate.words import Word
from pseudoword.sheets import Line

SHOWN = 192
"""Pixels of a side that a picture has in the report at most; files beside it hold them whole."""
COLUMNS = 8
JSON = "report.json"
"""The file for programs, beside the page."""


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


@dataclass(frozen=True)
class Group:
    """Words of one recipe at one step, which differ by the seed of their training alone."""

    name: str
    members: Sequence[Evaluated]
    spreads: Mapping[str, statistics.Spread]
    """By measure."""


def check_installed() -> None:
    """Raise RecipeError if what draws and lays out reports is missing."""
    for name in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f"A report needs {name}; install it with pip install 'pseudoword[eval]'.")


def groups(evaluated: Sequence[Evaluated]) -> list[Group]:
    """Put words of one recipe and step together, one for each seed; a word whose recipe is not known stands alone."""
    found: dict[str, list[Evaluated]] = {}
    for one in evaluated:
        key = json.dumps([_line(one), one.word.step])
        if one.word.seed not in [other.word.seed for other in found.get(key, [])]:
            found.setdefault(key, []).append(one)
    return [
        Group(
            members[0].name if len(members) == 1 else f"{members[0].name} and {len(members) - 1} more seeds",
            members,
            {name: statistics.spread([m.done.scores[name] for m in members]) for name in members[0].done.scores},
        )
        for members in found.values()
    ]


def measures(evaluated: Sequence[Evaluated]) -> list[str]:
    """Return the names of all that was measured, in the order of first appearance."""
    return list(dict.fromkeys(name for one in evaluated for name in one.done.scores))


def _line(one: Evaluated) -> str:
    """Return what words of one recipe have in common at all steps; without a recipe, a word stands alone."""
    word = one.word
    told = [word.choices, word.concept.token] if word.choices else [str(word.place)]
    return json.dumps(told, sort_keys=True, default=str)


def to_json(evaluated: Sequence[Evaluated], found: Sequence[Group], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that was measured as plain values."""
    return {
        **facts,
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
                "spreads": {
                    measure: {key: plain(value) for key, value in asdict(spread).items()}
                    for measure, spread in group.spreads.items()
                },
            }
            for group in found
        ],
    }


def write(evaluated: Sequence[Evaluated], folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write the report's files into a folder and return the page; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    found = groups(evaluated)
    figure = _plane(found)
    disk.write(folder / JSON, json.dumps(to_json(evaluated, found, facts), indent=1) + "\n")
    sheets.save(contact_sheet(evaluated), folder / "contact-sheet.png", {})
    disk.write(folder / "plane.png", plane.png(figure))
    return disk.write(folder / "report.html", page(evaluated, found, figure, facts))


def contact_sheet(evaluated: Sequence[Evaluated]) -> Image.Image:
    """Lay out each word's own pictures, and below them those of each of its prompts."""
    lines: list[Line] = []
    for one in evaluated:
        lines.append(Line(f"{one.name}: learned from", [_squared(picture) for picture in one.real[:COLUMNS]]))
        for question, pictures in zip(one.questions, one.done.pictures, strict=True):
            lines.append(Line(question.saying(one.word.concept.token), pictures[:COLUMNS]))
    return sheets.sheet(lines, min(SHOWN, max(96, evaluated[0].done.pictures[0][0].width)))


def _squared(picture: Image.Image) -> Image.Image:
    side = max(picture.size)
    return ImageOps.pad(picture, (side, side), color="white")


def _plane(found: Sequence[Group]) -> Any:
    """Draw a point for each group; groups of one recipe are a line over its steps."""
    lines: dict[str, list[Group]] = {}
    for group in found:
        lines.setdefault(_line(group.members[0]), []).append(group)
    places: list[plane.Place] = []
    for members in lines.values():
        ordered = sorted(members, key=lambda group: group.members[0].word.step)
        name = ordered[0].name.removesuffix(f" at {ordered[0].members[0].word.step}")
        for group in ordered:
            one = group.members[0]
            fidelity, editability = (group.spreads.get(measure) for measure in (one.fidelity, one.editability))
            if fidelity and editability:
                label = str(one.word.step) if len(ordered) > 1 else name
                halves = (_half(fidelity), _half(editability))
                places.append(plane.Place(label, name, fidelity.mean, editability.mean, *halves))
    first = found[0].members[0]
    joined = any(len(members) > 1 for members in lines.values())
    return plane.draw(places, first.fidelity or "—", first.editability or "—", steps=joined)


def _half(spread: statistics.Spread) -> float:
    """Return half an interval: over training seeds where there are several, else two standard errors of sampling."""
    return 2 * spread.sampling if spread.seeds == 1 else spread.half


def page(evaluated: Sequence[Evaluated], found: Sequence[Group], figure: Any, facts: Mapping[str, Any]) -> str:
    """Return the page, which needs no other file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pseudoword.evaluate", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "picture": _as_data}
    curves = _curves(evaluated)
    return environment.get_template("report.html").render(
        evaluated=evaluated,
        groups=found,
        plane=plane.svg(figure),
        curves=plane.svg(curves) if curves else "",
        facts=facts,
        measures=measures(evaluated),
        mean=statistics.mean,
        error=statistics.sampling_error,
        differing=_differing(evaluated),
        columns=COLUMNS,
    )


def _curves(evaluated: Sequence[Evaluated]) -> Any:
    """Draw the fixed-draw loss of every run that has one."""
    runs = {one.word.run: one for one in evaluated if one.word.run}
    named = {one.name.removesuffix(f" at {one.word.step}"): one.word.fixed_draw_loss for one in runs.values()}
    series = [(name, *loss) for name, loss in named.items() if loss[0]]
    return plane.curves(series, "fixed-draw loss") if series else None


def _differing(evaluated: Sequence[Evaluated]) -> list[str]:
    """Return which choices are not the same for all words."""
    names = dict.fromkeys(name for one in evaluated for name in one.word.choices)
    return [name for name in names if len({str(one.word.choices.get(name)) for one in evaluated}) > 1]


def _number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _as_data(picture: Image.Image) -> str:
    """Return a picture as the address of itself; a small one keeps every pixel."""
    content = io.BytesIO()
    small = picture.convert("RGB")
    small.thumbnail((SHOWN, SHOWN))
    small.save(content, format="WEBP", lossless=small.size == picture.size and picture.width <= 96, quality=88)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
