"""How a picture is painted: each style keeps every colour, shape and pattern readable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

Pixels = Float[np.ndarray, "side side 3"]
Coverage = Float[np.ndarray, "side side"]
Colour = Float[np.ndarray, "3"]


@dataclass(frozen=True)
class Sprite:
    """One object, not yet painted: where it is, where its pattern is, and its two colours."""

    inside: Coverage
    pattern: Coverage
    first: Colour
    second: Colour

    @property
    def fill(self) -> Pixels:
        """The object's colours, wherever its outline may be."""
        return self.first + (self.second - self.first) * self.pattern[..., None]


@dataclass(frozen=True)
class Layers:
    """A picture before it is painted: what is behind, and the objects in front of it."""

    behind: Pixels
    sprites: list[Sprite]


def paint(layers: Layers, style: str, light: str, rng: np.random.Generator) -> Pixels:
    """Put the layers together in a style; only photos are lit."""
    pixels = PAINTERS[style](layers, rng)
    return pixels * (LIGHT[light] * rng.uniform(0.97, 1.03)) if style == "photo" else pixels


LIGHT = {"dark": 0.74, "even": 1.0, "bright": 1.16}


def _blur(values: np.ndarray, radius: float) -> np.ndarray:
    """Blur coverage or pixels; coverage goes from 0 to 1, pixels from 0 to 255."""
    scale = 255.0 if values.ndim == 2 else 1.0
    image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / scale


def _over(pixels: Pixels, colour: np.ndarray, coverage: Coverage) -> Pixels:
    """Lay a colour, or pixels, over others where there is coverage."""
    return pixels + (colour - pixels) * coverage[..., None]


def _rim(inside: Coverage, width: float) -> Coverage:
    """Return coverage that reaches `width` pixels, more or less, beyond the outline."""
    return np.clip(3.0 * _blur(inside, width), 0, 1)


def _line(colour: Colour) -> Colour:
    """Return the colour an object is outlined in: its own, much darker; black things get a gray line."""
    return colour * 0.38 if colour.max() > 70 else np.full(3, 92, dtype=np.float32)


def _flat(layers: Layers, rim: float = 1.0, line: Callable[[Colour], Colour] = _line) -> Pixels:
    pixels = layers.behind
    for sprite in layers.sprites:
        pixels = _over(pixels, line(sprite.first), _rim(sprite.inside, rim))
        pixels = _over(pixels, sprite.fill, sprite.inside)
    return pixels


def _photo(layers: Layers, rng: np.random.Generator) -> Pixels:
    """Soft shadow below, light from the upper left."""
    pixels = layers.behind
    side = pixels.shape[0]
    slope = (np.add.outer(np.arange(side), np.arange(side)) / side - 1.0).astype(np.float32)
    for sprite in layers.sprites:
        shadow = _blur(np.roll(sprite.inside, (3, 2), axis=(0, 1)), 2.0)
        pixels = pixels * (1 - 0.42 * shadow[..., None])
        pixels = _over(pixels, _line(sprite.first), _rim(sprite.inside, 0.9))
        pixels = _over(pixels, sprite.fill * (1 - 0.22 * slope[..., None]), sprite.inside)
    return pixels


def _mosaic(layers: Layers, rng: np.random.Generator) -> Pixels:
    """Square tiles of 4 pixels with dark joints; the outline shows through, so that small shapes stay what they are."""
    whole = _flat(layers, rim=0.7)
    side, tile = whole.shape[0], 4
    rows = side // tile
    means = whole.reshape(rows, tile, rows, tile, 3).mean(axis=(1, 3))
    pixels = 0.5 * (means.repeat(tile, axis=0).repeat(tile, axis=1) + whole)
    joint = np.arange(side) % tile == tile - 1
    return np.where((joint[:, None] | joint[None, :])[..., None], pixels * 0.76, pixels)


def _sketch(layers: Layers, rng: np.random.Generator) -> Pixels:
    """Dark lines and pale colour on paper."""
    paper = np.array([246, 243, 234], dtype=np.float32)
    pixels = paper + (layers.behind - paper) * 0.3
    for sprite in layers.sprites:
        pixels = _over(pixels, np.full(3, 52, dtype=np.float32), _rim(sprite.inside, 1.1))
        pixels = _over(pixels, paper + (sprite.fill - paper) * 0.66, sprite.inside)
        edge = 4 * sprite.pattern * (1 - sprite.pattern)
        pixels = _over(pixels, np.full(3, 70, dtype=np.float32), 0.7 * edge * sprite.inside)
    return pixels


def _watercolor(layers: Layers, rng: np.random.Generator) -> Pixels:
    """Washes that run into each other, darker at their rims, on uneven white."""
    cloud = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
    uneven = (np.asarray(cloud, dtype=np.float32)[..., None] / 255 - 0.5) * 34
    pixels = _blur(layers.behind, 2.2) * 0.55 + 255 * 0.45
    for sprite in layers.sprites:
        soft = _blur(sprite.inside, 1.0)
        rim = np.clip(4 * soft * (1 - soft), 0, 1)
        pixels = _over(pixels, _blur(sprite.fill, 1.0) * 0.78 + 255 * 0.22, soft)
        pixels = _over(pixels, sprite.first * 0.7, 0.5 * rim)
    return pixels + uneven


def _neon(layers: Layers, rng: np.random.Generator) -> Pixels:
    """Glowing tubes in the dark."""
    pixels = layers.behind * 0.2 + np.array([8, 4, 22], dtype=np.float32)
    for sprite in layers.sprites:
        bright = np.minimum(255, sprite.first * 1.25 + 25) if sprite.first.max() > 70 else np.full(3, 105, np.float32)
        glow = np.clip(1.3 * _blur(sprite.inside, 5.0), 0, 1) * 0.55
        pixels = _over(pixels, bright, glow)
        pixels = _over(pixels, bright, _rim(sprite.inside, 1.4))
        pixels = _over(pixels, sprite.fill * 0.66, _blur(sprite.inside, 0.6))
    return pixels


def _sepia(layers: Layers, rng: np.random.Generator) -> Pixels:
    """A brown old print with dark corners."""
    gray = _photo(layers, rng) @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
    steps = np.linspace(-1, 1, gray.shape[0], dtype=np.float32) ** 2
    corners = np.clip(np.add.outer(steps, steps) - 0.7, 0, 1.3)
    toned = 40 + gray[..., None] * np.array([0.82, 0.66, 0.44], dtype=np.float32)
    return toned * (1 - 0.5 * corners[..., None])


def _comic(layers: Layers, rng: np.random.Generator) -> Pixels:
    """Thick black lines, a white rim, and a black frame."""
    pixels = layers.behind
    black = np.full(3, 12, dtype=np.float32)
    for sprite in layers.sprites:
        pixels = _over(pixels, np.full(3, 255, dtype=np.float32), _rim(sprite.inside, 3.2))
        pixels = _over(pixels, black, _rim(sprite.inside, 1.7))
        pixels = _over(pixels, sprite.fill, sprite.inside)
    frame = np.zeros(pixels.shape[:2], dtype=np.float32)
    frame[:3] = frame[-3:] = frame[:, :3] = frame[:, -3:] = 1
    return _over(pixels, black, frame)


PAINTERS: dict[str, Callable[[Layers, np.random.Generator], Pixels]] = {
    "photo": _photo,
    "mosaic": _mosaic,
    "sketch": _sketch,
    "watercolor": _watercolor,
    "neon": _neon,
    "sepia": _sepia,
    "comic": _comic,
}
