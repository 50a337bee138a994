"""From a drawing and its seed to a picture of 64×64 pixels: placed, filled, lit, and painted in its style."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from pseudoword.toybox import backgrounds, shapes, styles
from pseudoword.toybox.world import COLOURS, Drawing, Thing, generator

SIDE = 64
"""Pixels of a picture; everything is drawn four times as large and averaged, which smooths its edges."""
FINE = 4

RADII = {"small": 12.0, "medium": 18.0, "large": 25.0}
TOGETHER = 12.5
"""The radius of each of two objects, whatever their size is called."""


@dataclass(frozen=True)
class Place:
    """Where an object is: its centre and radius in pixels, and its turn in radians."""

    x: float
    y: float
    radius: float
    angle: float


def render(drawing: Drawing, seed: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Draw a picture; the same drawing and seed give the same pixels in every process."""
    rng = generator(seed, 1)
    behind = backgrounds.background(drawing.background, SIDE * FINE, rng).reduce(FINE)
    things = [_cut(thing, place, rng) for thing, place in zip(drawing.things, _places(drawing, rng), strict=True)]
    layers = styles.Layers(np.asarray(behind, dtype=np.float32), things)
    pixels = styles.paint(layers, drawing.style, drawing.light, rng)
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def _places(drawing: Drawing, rng: np.random.Generator) -> list[Place]:
    """Choose where the objects are: one somewhere near the middle; two side by side, or the first above the second."""
    turns = rng.uniform(-0.3, 0.3, 2)
    nudges = rng.uniform(-1, 1, (2, 2))
    scale = rng.uniform(0.94, 1.06)
    middle = SIDE / 2
    if drawing.relation:
        apart = 15.0
        across, down = (apart, 0.0) if drawing.relation == "and" else (0.0, apart)
        return [
            Place(middle + sign * across + 1.5 * n[0], middle + sign * down + 1.5 * n[1], TOGETHER * scale, float(turn))
            for sign, n, turn in zip((-1, 1), nudges, turns, strict=True)
        ]
    radius = RADII[drawing.things[0].size] * scale
    room = min(10.0, middle - radius - 3)
    x, y = middle + room * nudges[0]
    return [Place(float(x), float(y), float(radius), float(turns[0]))]


def _cut(thing: Thing, place: Place, rng: np.random.Generator) -> styles.Sprite:
    """Draw an object's outline and pattern as coverage from 0 to 1."""
    side, center = SIDE * FINE, (place.x * FINE, place.y * FINE)
    outline = shapes.mask(thing.shape, side, center, place.radius * FINE, place.angle)
    pattern = Image.new("L", (side, side), 0)
    _draw_pattern(ImageDraw.Draw(pattern), thing.pattern, place)
    jitter = rng.uniform(-9, 9, (2, 3))
    first, second = (np.array(COLOURS[c], dtype=np.float32) for c in (thing.colour, thing.second))
    return styles.Sprite(_coverage(outline), _coverage(pattern), first + jitter[0], second + jitter[1])


def _coverage(image: Image.Image) -> Float[np.ndarray, "64 64"]:
    return np.asarray(image.reduce(FINE), dtype=np.float32) / 255


def _draw_pattern(draw: ImageDraw.ImageDraw, pattern: str, place: Place) -> None:
    """Draw where an object's second colour goes, in the object's own frame; no period is below 8 pixels.

    The second colour has about a third of the object, so that it is plain which of the two is the first.
    """
    center, scale = (place.x * FINE, place.y * FINE), place.radius * FINE

    def polygon(*corners: tuple[float, float]) -> None:
        draw.polygon(shapes.placed(np.array(corners), center, scale, place.angle), fill=255)

    def disc(x: float, y: float, r: float) -> None:
        [(cx, cy)] = shapes.placed(np.array([(x, y)]), center, scale, place.angle)
        draw.ellipse((cx - r * scale, cy - r * scale, cx + r * scale, cy + r * scale), fill=255)

    period = max(8.5 / place.radius, 0.56)
    steps = range(-4, 5)
    if pattern == "striped":
        for i in steps:
            left, right = (i - 0.18) * period, (i + 0.18) * period
            polygon((left + 0.7, -1.4), (right + 0.7, -1.4), (right - 0.7, 1.4), (left - 0.7, 1.4))
    elif pattern == "dotted":
        for row in steps:
            for column in steps:
                disc((column + 0.5 * (row % 2)) * period, row * 0.87 * period, 0.3 * period)
    elif pattern == "checkered":
        cell = max(4.8 / place.radius, 0.38)
        for row in steps:
            for column in steps:
                if (row + column) % 2:
                    x, y, half = column * cell, row * cell, 0.41 * cell
                    polygon((x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half))
    elif pattern == "split":
        polygon((0, -1.6), (1.6, -1.6), (1.6, 1.6), (0, 1.6))
    elif pattern == "emblem":
        disc(0, 0.05, 0.42)
