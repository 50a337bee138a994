"""The plane and the panels of losses: axes end where scores end, bars too, and no label covers another."""

from __future__ import annotations

import itertools
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.text import Annotation, Text

from pseudoword.evaluate import groups, losses, plane
from pseudoword.evaluate.plane import Place


def test_a_label_is_shown_as_it_is():
    places = [plane.Place(r"run$\frac$", "_hidden$1$", 0.5, 0.5), plane.Place("b", "b", 0.1, 0.2)]
    drawn = plane.svg(plane.draw(places, "fidelity", "editability", steps=True))
    assert r"run$\frac$" in drawn
    assert "_hidden$1$" in drawn


def limits(figure: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    [axes] = figure.axes
    return axes.get_xlim(), axes.get_ylim()


def test_axes_and_bars_end_where_scores_end():
    two_seeds = [Place("a", "a", 0.5, 0.95, 0.953, 0.3), Place("b", "b", 0.1, 1.0, 0.2, 0.0)]
    figure = plane.draw(two_seeds, "fidelity", "editability")
    across, up = limits(figure)
    assert up == (0.0, 1.0)
    assert (across[0], across[1]) == (pytest.approx(0.65 - 0.12 * 0.35), 1.0)
    ends = [end for bars in figure.axes[0].collections for segment in bars.get_segments() for end in segment.tolist()]
    assert len(ends) == 8
    assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in ends)
    assert plane.cut(two_seeds, "fidelity", "editability")
    assert not plane.cut([Place("a", "a", 0.5, 0.9, 0.5, 0.1)], "fidelity", "editability")
    assert not plane.cut([Place("a", "a", 0.5, 0.9)], "fidelity", "editability")


def test_an_axis_does_not_make_much_of_little():
    across, up = limits(
        plane.draw([Place("a", "a", 0.99, 1.0), Place("b", "b", 0.995, 1.0)], "fidelity", "editability")
    )
    assert across == up == (pytest.approx(0.8), 1.0)
    across, up = limits(plane.draw([Place("a", "a", 0.3, 0.28)], "dino", "clip-t"))
    assert up == (pytest.approx(0.2), pytest.approx(0.4)), "cosines go on below and above"
    assert limits(plane.draw([Place("a", "a", math.nan, 0.5)], "fidelity", "editability")) == ((0, 1), (0, 1))


@pytest.mark.parametrize("crowd", ["one place", "a corner", "steps"])
def test_labels_cover_neither_each_other_nor_points(crowd: str):
    rng = random.Random(0)
    spots = {
        "one place": [(0.5, 0.9)] * 6,
        "a corner": [(rng.uniform(0.8, 1), rng.choice([0.98, 1.0])) for _ in range(10)],
        "steps": [(0.4 + i / 50, 1 - i / 60) for i in range(12)],
    }[crowd]
    places = [Place(f"learning_rate={i / 100}", str(i), *spot) for i, spot in enumerate(spots)]
    places.append(Place("untrained", "untrained", 0.08, 1.0, reference=True))
    figure = plane.draw(places, "fidelity", "editability", steps=crowd == "steps")
    [axes] = figure.axes
    renderer = figure.canvas.get_renderer()
    figure.draw_without_rendering()
    room = axes.get_window_extent(renderer)
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    boxes = [Text.get_window_extent(label, renderer) for label in labels]
    assert len(boxes) + _left_out(axes.get_title()) == len(places)
    assert len(boxes) >= 6
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    points = axes.transData.transform([(place.editability, place.fidelity) for place in places])
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1 for box in boxes)


def _left_out(title: str) -> int:
    return int(title.split()[0]) if title else 0


def run(name: str, seed: int, losses_of_it: list[float], **choices: object) -> Any:
    """A word of a run, as far as its losses are concerned."""
    steps = list(range(len(losses_of_it)))
    known = {"concepts.0.pictures": "5, abc", "data.flip_p": 0.5, "schedule.learning_rate": 0.1, **choices}
    token, pictures = SimpleNamespace(token="<a>"), SimpleNamespace(name="cat")
    word: Any = SimpleNamespace(
        run=name,
        seed=seed,
        choices=known,
        concept=token,
        pictures=pictures,
        step=5,
        fixed_draw_loss=(steps, losses_of_it),
    )
    nothing: Any = None
    return groups.Evaluated(name, word, [], nothing, nothing, "f", "e", [], [])


def test_losses_share_a_panel_only_where_they_share_their_draws():
    faster = {"schedule.learning_rate": 0.5}
    words = [
        run("a", 0, [1.0, 0.9]),
        run("b", 0, [1.0, 0.8], **faster),
        run("c", 1, [3.0, 2.9]),
        run("d", 1, [3.0], **faster),
    ]
    first, second = losses.panels(words)
    assert (first.title, second.title) == ("<a>, seed 0", "<a>, seed 1")
    assert first.curves == [("learning_rate=0.1", [0, 1], [1.0, 0.9]), ("learning_rate=0.5", [0, 1], [1.0, 0.8])]
    mirrored = losses.panels([run("a", 0, [1.0]), run("b", 0, [2.0], **{"data.flip_p": 1.0})])
    assert len(mirrored) == 2, "other data are other draws"
    other = run("b", 0, [2.0], **{"concepts.0.pictures": "4, def"})
    assert len(losses.panels([run("a", 0, [1.0]), other])) == 2
    assert [panel.title for panel in losses.panels([run("a", 0, [1.0]), run("e", 0, [])])] == [""]
    assert "seed 1" in plane.svg(plane.panels([first, second, first, second], "fixed-draw loss"))
