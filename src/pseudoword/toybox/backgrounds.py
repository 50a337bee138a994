"""What stands behind the objects: plain colours and scenes, each of a few large strokes that a small VAE can keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from pseudoword.toybox.world import COLOURS

Colour = tuple[int, int, int]
Pixels = np.ndarray


def shade(colour: Colour, by: float) -> Colour:
    """Lighten (above 0) or darken (below 0) a colour by a share of what is left."""
    toward = 255 if by > 0 else 0
    return tuple(round(c + (toward - c) * abs(by)) for c in colour)  # pyright: ignore[reportReturnType]


def _wave(
    draw: ImageDraw.ImageDraw, y: float, side: int, swing: float, length: float, phase: float, **style: object
) -> None:
    x = np.arange(-8, side + 9, 8)
    heights = y + swing * np.sin(2 * np.pi * x / length + phase)
    draw.line(list(zip(x.tolist(), heights.tolist(), strict=True)), joint="curve", **style)  # pyright: ignore[reportArgumentType]


def _hill(
    draw: ImageDraw.ImageDraw, y: float, side: int, swing: float, length: float, phase: float, fill: Colour
) -> None:
    x = np.arange(-8, side + 9, 8)
    heights = y + swing * np.sin(2 * np.pi * x / length + phase)
    draw.polygon([(-8, side), *zip(x.tolist(), heights.tolist(), strict=True), (side + 8, side)], fill=fill)


def _grass(side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (side, side), (96, 170, 66))
    draw = ImageDraw.Draw(image)
    unit = side / 64
    for row in range(4):
        for column in range(6):
            x = (column + 0.5 * (row % 2) + rng.uniform(-0.15, 0.15)) * 11.5 * unit
            y = (row + 0.8 + rng.uniform(-0.1, 0.1)) * 16 * unit
            lean, tall = rng.uniform(-3, 3) * unit, rng.uniform(9, 12) * unit
            draw.polygon([(x - 2.6 * unit, y), (x + lean, y - tall), (x + 2.6 * unit, y)], fill=(58, 128, 44))
    return image


def _sand(side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (side, side), (240, 217, 160))
    draw = ImageDraw.Draw(image)
    phase = rng.uniform(0, 2 * np.pi)
    for i, y in enumerate((0.22, 0.5, 0.78)):
        fill = shade((226, 196, 132), -0.07 * i)
        _hill(draw, (y + rng.uniform(-0.04, 0.04)) * side, side, 0.05 * side, 0.9 * side, phase + 2 * i, fill)
    return image


def _snow(side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (side, side), (196, 216, 238))
    draw = ImageDraw.Draw(image)
    phase = rng.uniform(0, 2 * np.pi)
    for i, y in enumerate((0.3, 0.62)):
        fill = ((226, 237, 248), (244, 248, 253))[i]
        _hill(draw, (y + rng.uniform(-0.05, 0.05)) * side, side, 0.06 * side, 1.3 * side, phase + 2.5 * i, fill)
    for i in range(9):
        x, y = (i % 3 + rng.uniform(0.2, 0.8)) * side / 3, (i // 3 + rng.uniform(0.2, 0.8)) * side / 3
        r = 1.5 * side / 64
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
    return image


def _sea(side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (side, side), (38, 116, 178))
    draw = ImageDraw.Draw(image)
    offset = rng.uniform(0, 1)
    for i in range(6):
        y = (i + offset) * side / 5.5
        phase = rng.uniform(0, 2 * np.pi)
        _wave(draw, y, side, 0.022 * side, 0.33 * side, phase, fill=(120, 190, 226), width=round(0.035 * side))
    return image


def _sky(side: int, rng: np.random.Generator) -> Image.Image:
    ramp = np.linspace(0, 1, side)[:, None, None]
    rows = (1 - ramp) * np.array([94, 166, 238]) + ramp * np.array([186, 220, 248])
    image = Image.fromarray(np.broadcast_to(rows, (side, side, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for i in range(3):
        x, y = rng.uniform(0.05, 0.95) * side, (i + rng.uniform(0.3, 0.7)) * side / 3
        r = rng.uniform(0.055, 0.075) * side
        for dx, dy, k in ((-1.5, 0.25, 0.9), (0, -0.2, 1.2), (1.5, 0.25, 0.9), (0, 0.4, 1.0)):
            cx, cy = x + dx * r, y + dy * r
            draw.ellipse((cx - k * 1.2 * r, cy - k * r, cx + k * 1.2 * r, cy + k * r), fill=(252, 253, 255))
    return image


def _night(side: int, rng: np.random.Generator) -> Image.Image:
    ramp = np.linspace(0, 1, side)[:, None, None]
    rows = (1 - ramp) * np.array([14, 16, 48]) + ramp * np.array([44, 42, 98])
    image = Image.fromarray(np.broadcast_to(rows, (side, side, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for i in range(12):
        x, y = (i % 4 + rng.uniform(0.15, 0.85)) * side / 4, (i // 4 + rng.uniform(0.15, 0.85)) * side / 3
        r = rng.uniform(1.1, 1.7) * side / 64
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 244, 190))
    return image


def _brick(side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (side, side), (222, 206, 190))
    draw = ImageDraw.Draw(image)
    unit = side / 64
    left = rng.uniform(0, 10.667)
    for row in range(6):
        y = row * 10.667 * unit
        for column in range(-1, 5):
            x = (column * 21.333 + (row % 2) * 10.667 - left) * unit
            colour = shade((178, 82, 60), rng.uniform(-0.08, 0.08))
            draw.rectangle((x + unit, y + unit, x + 20.3 * unit, y + 9.7 * unit), fill=colour)
    return image


def _wood(side: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (side, side), (110, 68, 34))
    draw = ImageDraw.Draw(image)
    unit = side / 64
    top = rng.uniform(0, 16)
    for plank in range(-1, 4):
        y = (plank * 16 + top) * unit
        colour = shade((186, 128, 74), rng.uniform(-0.08, 0.08))
        draw.rectangle((0, y + 0.7 * unit, side, y + 15.3 * unit), fill=colour)
        phase, middle = rng.uniform(0, 2 * np.pi), y + rng.uniform(6, 10) * unit
        _wave(draw, middle, side, 1.3 * unit, 46 * unit, phase, fill=shade(colour, -0.22), width=round(1.6 * unit))
    return image


SCENE: dict[str, Callable[[int, np.random.Generator], Image.Image]] = {
    "grass": _grass,
    "sand": _sand,
    "sea": _sea,
    "sky": _sky,
    "night": _night,
    "brick": _brick,
    "wood": _wood,
    "snow": _snow,
}


def background(name: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Draw a scene or a plain colour."""
    if name in SCENE:
        return SCENE[name](side, rng)
    return Image.new("RGB", (side, side), shade(COLOURS[name], rng.uniform(-0.06, 0.06)))
