"""The plane that personalisation papers draw, fidelity over editability, and curves over steps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pseudoword.evaluate.measures import measure

COLOURS = ("#3366cc", "#dc6e1e", "#2a9d55", "#b8336a", "#7d52c7", "#8a6d3b", "#1f9fb5", "#6b7280")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
REFERENCE = {"color": "#6b7280", "markerfacecolor": "white", "markersize": 7}
NARROWEST = 0.2
"""Of scores an axis shows at least so much, so that differences of nothing do not look large."""
RADII = (5, 12, 22, 34, 48, 64, 84, 108)
"""Points that a label may stand away from its place; farther than the second it gets a line to it."""
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
Interval = tuple[float, float]


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
    reference: bool = False
    """Whether it is no learned word, but what words are held against."""


def draw(places: Sequence[Place], fidelity: str, editability: str, *, steps: bool = False) -> Any:
    """Return a matplotlib figure of the points, which `svg` and `png` turn into files; NaN leaves a point out.

    Bars are cut where the measures' scores end, as `cut` says.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.2), layout="constrained")
    FigureCanvasAgg(figure)  # measures labels
    axes = figure.add_subplot()
    places = [place for place in places if not math.isnan(place.fidelity + place.editability)]
    across, up = _bounds(editability), _bounds(fidelity)
    lines = list(dict.fromkeys(place.line for place in places if not place.reference))
    for place in places:
        if place.reference:
            axes.plot(place.editability, place.fidelity, linestyle="none", marker="o", clip_on=False, **REFERENCE)
    for number, line in enumerate(lines):
        own = [place for place in places if place.line == line and not place.reference]
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
        axes.errorbar(
            [place.editability for place in own],
            [place.fidelity for place in own],
            xerr=_bars([(place.editability, place.editability_half) for place in own], across),
            yerr=_bars([(place.fidelity, place.fidelity_half) for place in own], up),
            linestyle="-" if steps else "none",
            elinewidth=0.8,
            capsize=2,
            clip_on=False,  # a mark on the edge stays whole
            label=_verbatim(line),
            **style,
        )
    axes.set_xlabel(f"{_axis('editability', editability)}: the rest of the prompt holds →")
    axes.set_ylabel(f"{_axis('fidelity', fidelity)}: it is the concept →")
    axes.set_xlim(*_limits([(place.editability, place.editability_half) for place in places], across))
    axes.set_ylim(*_limits([(place.fidelity, place.fidelity_half) for place in places], up))
    axes.grid(alpha=0.25)
    if steps and 1 < len(lines) <= 12:
        figure.legend(fontsize=8, loc="outside lower left", ncols=2)
    left_out = _label(figure, axes, places)
    if left_out:
        axes.set_title(f"{left_out} of {len(places)} labels have no room; the tables have every point", fontsize=8)
    return figure


def cut(places: Sequence[Place], fidelity: str, editability: str) -> bool:
    """Whether a bar would reach beyond where scores end."""
    for place in places:
        for middle, half, name in (
            (place.fidelity, place.fidelity_half, fidelity),
            (place.editability, place.editability_half, editability),
        ):
            lowest, highest = _bounds(name)
            if middle - half < lowest - 1e-9 or middle + half > highest + 1e-9:
                return True
    return False


def _bounds(name: str) -> Interval:
    return measure(name).lowest, measure(name).highest


def _bars(middles: Sequence[Interval], bounds: Interval) -> list[list[float]]:
    """Return how far bars reach down and up from their middles, no farther than scores go."""
    down, up = [], []
    for middle, half in middles:
        half = 0.0 if math.isnan(half) else half
        down.append(max(0.0, min(half, middle - bounds[0])))
        up.append(max(0.0, min(half, bounds[1] - middle)))
    return [down, up]


def _limits(middles: Sequence[Interval], bounds: Interval) -> Interval:
    """Return the ends of an axis: around all bars, never beyond the last score there is."""
    if not middles:
        return (0.0, 1.0)
    bars = _bars(middles, bounds)
    low = min(middle - down for (middle, _), down in zip(middles, bars[0], strict=True))
    high = max(middle + up for (middle, _), up in zip(middles, bars[1], strict=True))
    margin = max(0.12 * (high - low), (NARROWEST - (high - low)) / 2)
    low, high = max(low - margin, bounds[0]), min(high + margin, bounds[1])
    return max(min(low, high - NARROWEST), bounds[0]), min(max(high, low + NARROWEST), bounds[1])


def _label(figure: Any, axes: Any, places: Sequence[Place]) -> int:
    """Write each place's label where it covers neither another label nor a point; return how many found no room."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # the layout has to be settled before anything is measured
    renderer = figure.canvas.get_renderer()
    room = axes.get_window_extent(renderer)
    points = axes.transData.transform([(place.editability, place.fidelity) for place in places]) if places else []
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points]
    left_out = 0
    for place in sorted(places, key=lambda place: not place.reference):
        text = axes.annotate(
            _verbatim(place.label),
            (place.editability, place.fidelity),
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            color="#4b5563" if place.reference else "black",
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#6b7280", "shrinkA": 0, "shrinkB": 3},
            annotation_clip=False,
        )
        box = _free(text, taken, room, renderer)
        if box is None:
            text.remove()
            left_out += 1
        else:
            taken.append(box)
    return left_out


def _free(text: Any, taken: Sequence[Any], room: Any, renderer: Any) -> Any:
    """Move a label to the nearest place where it covers nothing, and return its box; None if there is none."""
    from matplotlib.text import Text

    for radius in RADII:
        text.arrow_patch.set_visible(radius > RADII[1])
        for right, up in DIRECTIONS:
            text.xyann = (radius * right, radius * up)
            text.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[right])
            text.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[up])
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer).expanded(1.08, 1.1)  # browsers' letters are wider
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return box
    return None


def _verbatim(label: str) -> str:
    """Return a label as matplotlib shows it as it is: no formulas between dollars, none hidden for its first letter."""
    shown = label.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _axis(name: str, measure: str) -> str:
    return name if measure == name else f"{name} ({measure})"


@dataclass(frozen=True)
class Panel:
    """Curves that can be compared with each other, on a scale of their own."""

    title: str
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]
    """Each with its name, steps and values."""


COLUMNS = 3


def panels(several: Sequence[Panel], what: str) -> Any:
    """Return a figure of values over steps, a panel for what shares a scale; one name has one colour in all."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(several))
    rows = -(-len(several) // columns)
    figure = Figure(figsize=(7 if columns > 1 else 5, 0.5 + 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    names = list(dict.fromkeys(name for panel in several for name, _, _ in panel.curves))
    handles: dict[str, Any] = {}
    for place, axes in enumerate(grid.flat):
        if place >= len(several):
            axes.set_visible(False)
            continue
        for name, steps, values in several[place].curves:
            colour = COLOURS[names.index(name) % len(COLOURS)]
            [handles[name]] = axes.plot(steps, values, marker=".", color=colour)
        axes.set_title(_verbatim(several[place].title), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel(what, fontsize=9)
    if len(names) > 1:
        shown = [_verbatim(name) for name in names]
        figure.legend([handles[name] for name in names], shown, fontsize=8, loc="outside upper left", ncols=2)
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
