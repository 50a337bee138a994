"""The plane that personalisation papers draw, fidelity over editability, and curves over steps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#3366cc", "#dc6e1e", "#2a9d55", "#b8336a", "#7d52c7", "#8a6d3b", "#1f9fb5", "#6b7280")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Place:
    """One point of the plane."""

    label: str
    line: str
    """What it belongs to; points of one line are joined in their order and share a colour."""
    fidelity: float
    editability: float
    fidelity_half: float = float("nan")
    """Half the width of the interval; NaN if there is none."""
    editability_half: float = float("nan")


def draw(places: Sequence[Place], fidelity: str, editability: str, *, steps: bool = False) -> Any:
    """Return a matplotlib figure of the points, which `svg` and `png` turn into files; NaN leaves a point out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.add_subplot()
    lines = list(dict.fromkeys(place.line for place in places))
    for number, line in enumerate(lines):
        own = [p for p in places if p.line == line and not math.isnan(p.fidelity + p.editability)]
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
        axes.errorbar(
            [p.editability for p in own],
            [p.fidelity for p in own],
            xerr=[_bar(p.editability_half) for p in own],
            yerr=[_bar(p.fidelity_half) for p in own],
            linestyle="-" if steps else "none",
            elinewidth=0.8,
            capsize=2,
            label=_verbatim(line),
            **style,
        )
        for p in own:
            axes.annotate(
                _verbatim(p.label), (p.editability, p.fidelity), (5, 5), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel(f"{_axis('editability', editability)}: the rest of the prompt holds →")
    axes.set_ylabel(f"{_axis('fidelity', fidelity)}: it is the concept →")
    axes.grid(alpha=0.25)
    axes.margins(0.15)
    if 1 < len(lines) <= 12:
        axes.legend(fontsize=8)
    return figure


def _verbatim(label: str) -> str:
    """Return a label as matplotlib shows it as it is: no formulas between dollars, none hidden for its first letter."""
    shown = label.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _axis(name: str, measure: str) -> str:
    return name if measure == name else f"{name} ({measure})"


def _bar(half: float) -> float:
    return 0.0 if math.isnan(half) else half


def curves(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], what: str) -> Any:
    """Return a figure of values over steps, a line for each of `series` (name, steps, values)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, steps, values) in enumerate(series):
        axes.plot(steps, values, marker=".", color=COLOURS[number % len(COLOURS)], label=_verbatim(name))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(what)
    axes.grid(alpha=0.25)
    if 1 < len(series) <= 12:
        axes.legend(fontsize=8)
    return figure


def svg(figure: Any) -> str:
    """Return a figure as an <svg> element whose text is text and whose content depends on the figure alone."""
    import matplotlib as mpl

    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pseudoword"}):
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()[content.getvalue().index("<svg") :]


def png(figure: Any) -> bytes:
    """Return a figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()
