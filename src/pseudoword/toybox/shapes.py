"""Outlines of the toybox's objects: polygons about the origin, in units of the object's radius, y downwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

Points = Float[np.ndarray, "corners 2"]
Part = tuple[bool, Points]
"""A polygon, and whether it is added to the outline (or cut out of it)."""


def _points(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _ellipse(x: float, y: float, across: float, down: float | None = None) -> Points:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + across * np.cos(angles), y + (down or across) * np.sin(angles)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return _points((left, top), (right, top), (right, bottom), (left, bottom))


def _regular(corners: int, radius: float, inner: float | None = None, y: float = 0.0) -> Points:
    """Return a regular polygon that stands on its base, or a star if there is an inner radius."""
    count = corners if inner is None else 2 * corners
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radii = np.where((np.arange(count) % 2 == 0) | (inner is None), radius, inner or radius)
    return np.stack([radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([1.05 * np.sin(t) ** 3, -y / 15.5 - 0.08], axis=1)


def _whole(*polygons: Points) -> list[Part]:
    return [(True, polygon) for polygon in polygons]


def _petals() -> list[Part]:
    angles = 2 * np.pi * np.arange(5) / 5 - np.pi / 2
    return _whole(*(_ellipse(0.62 * np.cos(a), 0.62 * np.sin(a), 0.44) for a in angles), _ellipse(0, 0, 0.45))


def _arrow() -> list[Part]:
    return _whole(_points((0, -1.1), (0.9, -0.1), (0.36, -0.1), (0.36, 1), (-0.36, 1), (-0.36, -0.1), (-0.9, -0.1)))


def _house() -> list[Part]:
    return _whole(
        _points((0, -1.1), (1.05, -0.15), (0.75, -0.15), (0.75, 0.9), (-0.75, 0.9), (-0.75, -0.15), (-1.05, -0.15))
    )


def _cross() -> list[Part]:
    return _whole(_box(-0.36, -1, 0.36, 1), _box(-1, -0.36, 1, 0.36))


def _fish() -> list[Part]:
    tail = _points((0.4, 0), (1.05, -0.6), (0.9, 0), (1.05, 0.6))
    fin = _points((-0.3, -0.4), (0.25, -0.85), (0.3, -0.3))
    return [*_whole(_ellipse(-0.2, 0, 0.8, 0.56), tail, fin), (False, _ellipse(-0.6, -0.15, 0.11))]


def _key() -> list[Part]:
    teeth = (_box(0.4, 0, 0.62, 0.52), _box(0.8, 0, 1.02, 0.57))
    return [*_whole(_ellipse(-0.5, 0, 0.52), _box(-0.1, -0.16, 1.02, 0.16), *teeth), (False, _ellipse(-0.54, 0, 0.22))]


def _mushroom() -> list[Part]:
    cap = _ellipse(0, -0.05, 1.05, 0.95)
    return [(True, cap), (False, _box(-1.2, 0.05, 1.2, 1.2)), (True, _box(-0.32, 0, 0.32, 0.95))]


def _crown() -> list[Part]:
    zigzag = ((-0.95, -0.6), (-0.48, 0.05), (0, -0.85), (0.48, 0.05), (0.95, -0.6), (0.8, 0.75), (-0.8, 0.75))
    return _whole(_points(*zigzag))


def _boat() -> list[Part]:
    hull = _points((-1.05, 0.3), (1.05, 0.3), (0.65, 0.9), (-0.65, 0.9))
    sails = (_points((-0.08, -1.05), (-0.08, 0.15), (-0.8, 0.15)), _points((0.08, -0.75), (0.08, 0.15), (0.75, 0.15)))
    return _whole(hull, *sails, _box(-0.08, -1.05, 0.08, 0.35))


def _bolt() -> list[Part]:
    return _whole(_points((0.25, -1.1), (-0.65, 0.15), (-0.1, 0.15), (-0.35, 1.1), (0.65, -0.25), (0.1, -0.25)))


def _tree() -> list[Part]:
    layers = (_points((0, -1.1), (0.6, -0.2), (-0.6, -0.2)), _points((0, -0.6), (0.85, 0.6), (-0.85, 0.6)))
    return _whole(*layers, _box(-0.2, 0.5, 0.2, 1.05))


def _cup() -> list[Part]:
    handle = [(True, _ellipse(0.65, -0.05, 0.45)), (False, _ellipse(0.68, -0.05, 0.2))]
    return [*handle, (True, _points((-0.85, -0.75), (0.6, -0.75), (0.42, 0.8), (-0.67, 0.8)))]


OUTLINES: dict[str, Callable[[], Sequence[Part]]] = {
    "circle": lambda: _whole(_ellipse(0, 0, 0.95)),
    "square": lambda: _whole(_box(-0.85, -0.85, 0.85, 0.85)),
    "triangle": lambda: _whole(_regular(3, 1.15, y=0.22)),
    "star": lambda: _whole(_regular(5, 1.15, 0.5)),
    "heart": lambda: _whole(_heart()),
    "ring": lambda: [(True, _ellipse(0, 0, 1)), (False, _ellipse(0, 0, 0.48))],
    "cross": _cross,
    "diamond": lambda: _whole(_points((0, -1.15), (0.72, 0), (0, 1.15), (-0.72, 0))),
    "moon": lambda: [(True, _ellipse(0, 0, 1.02)), (False, _ellipse(0.55, -0.15, 0.85))],
    "flower": _petals,
    "arrow": _arrow,
    "house": _house,
    "fish": _fish,
    "key": _key,
    "mushroom": _mushroom,
    "crown": _crown,
    "boat": _boat,
    "bolt": _bolt,
    "tree": _tree,
    "cup": _cup,
}
"""Every outline by name, whether or not the world has a word for it."""


def placed(points: Points, center: tuple[float, float], radius: float, angle: float) -> list[tuple[float, float]]:
    """Turn, scale and move points from an object's own units to pixels."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return [(float(x), float(y)) for x, y in points @ turn * radius + center]


def mask(shape: str, side: int, center: tuple[float, float], radius: float, angle: float) -> Image.Image:
    """Draw a shape's outline, filled, as a picture in which 255 is inside."""
    image = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(image)
    for added, points in OUTLINES[shape]():
        draw.polygon(placed(points, center, radius, angle), fill=255 if added else 0)
    return image
