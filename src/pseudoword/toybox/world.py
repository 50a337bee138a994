"""The toybox's world: what can be drawn, what has a word, and which drawing each seed stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (252, 220, 55),
    "green": (45, 160, 65),
    "blue": (45, 90, 215),
    "purple": (130, 55, 175),
    "pink": (245, 125, 180),
    "brown": (120, 75, 40),
    "white": (247, 247, 247),
    "black": (28, 28, 30),
}
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "ring",
    "cross",
    "diamond",
    "moon",
    "flower",
    "arrow",
    "house",
)
PATTERNS = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
SCENES = ("grass", "sand", "sea", "sky", "night", "brick", "wood", "snow")
BACKGROUNDS = (*COLOURS, *SCENES)
STYLES = ("photo", "mosaic", "sketch", "watercolor", "neon")
LIGHTS = ("dark", "even", "bright")

NAMELESS_SHAPES = ("fish", "key", "mushroom", "crown", "boat", "bolt")
"""Drawn in training and called nothing but "thing": what a word can be learned for."""
NAMELESS_PATTERNS = ("split", "emblem")
NAMELESS_STYLES = ("sepia", "comic")
UNSEEN_SHAPES = ("tree", "cup")
"""Never drawn in training at all."""

Relation = Literal["", "and", "on"]


@dataclass(frozen=True)
class Thing:
    """One object: `second` is the colour of its pattern, and says nothing where the pattern is plain."""

    shape: str
    colour: str
    pattern: str = "plain"
    second: str = "white"
    size: str = "medium"


@dataclass(frozen=True)
class Drawing:
    """Everything that is known about one picture: an object or two, where they are, and how it is drawn."""

    things: tuple[Thing, ...]
    background: str
    style: str = "photo"
    light: str = "even"
    relation: Relation = ""

    @property
    def nameless(self) -> bool:
        """Whether the object is one that no word names; its colours go unnamed as well."""
        thing = self.things[0]
        return thing.shape not in SHAPES or thing.pattern not in PATTERNS


def held_out(drawing: Drawing) -> bool:
    """Say whether a drawing pairs a shape with a colour or a scene that training never pairs."""
    return any(_colour_held(t) or _scene_held(t, drawing.background) for t in drawing.things)


def _colour_held(thing: Thing) -> bool:
    if thing.shape not in SHAPES:
        return False
    return list(COLOURS).index(thing.colour) == (7 * SHAPES.index(thing.shape) + 3) % len(COLOURS)


def _scene_held(thing: Thing, background: str) -> bool:
    if thing.shape not in SHAPES or background not in SCENES:
        return False
    return SCENES.index(background) == (5 * SHAPES.index(thing.shape) + 2) % len(SCENES)


def generator(seed: int, purpose: int) -> np.random.Generator:
    """Return the random numbers of one purpose (0 what to draw, 1 how to place it, 2 and on captions) of a picture."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose]))


def training_drawing(seed: int) -> Drawing:
    """Return the drawing that stands for a seed in training; none pairs what is held out."""
    rng = generator(seed, 0)
    while held_out(drawing := any_drawing(rng)):
        pass
    return drawing


def held_out_drawing(seed: int) -> Drawing:
    """Return a drawing of one object with words for all of it, in a pairing that training never shows."""
    rng = generator(seed, 0)
    while not held_out(drawing := _one_object(rng)) or drawing.style not in STYLES:
        pass
    return drawing


def any_drawing(rng: np.random.Generator) -> Drawing:
    """Return a drawing as training has them, held out or not."""
    kind = rng.random()
    if kind < 0.14:
        return _two_objects(rng)
    if kind < 0.24:
        return _nameless_object(rng)
    return _one_object(rng)


def pick(rng: np.random.Generator, choices: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """Choose one of a few words."""
    if weights is None:
        return choices[int(rng.integers(len(choices)))]
    return choices[int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))]


def _other(rng: np.random.Generator, *taken: str) -> str:
    return pick(rng, [colour for colour in COLOURS if colour not in taken])


def _thing(rng: np.random.Generator, background: str, plain: float = 0.4) -> Thing:
    colour = _other(rng, background)
    pattern = pick(rng, PATTERNS, (plain, *[(1 - plain) / 3] * 3))
    return Thing(pick(rng, SHAPES), colour, pattern, _other(rng, colour, background), pick(rng, SIZES, (1, 2, 2)))


def _background(rng: np.random.Generator) -> str:
    return pick(rng, list(COLOURS)) if rng.random() < 0.4 else pick(rng, SCENES)


def _style(rng: np.random.Generator) -> tuple[str, str]:
    """Return a style and, of photos, their light."""
    if rng.random() < 0.04:
        return pick(rng, NAMELESS_STYLES), "even"
    style = pick(rng, STYLES, (6, 1, 1, 1, 1))
    return style, pick(rng, LIGHTS, (1, 6, 1)) if style == "photo" else "even"


def _one_object(rng: np.random.Generator) -> Drawing:
    background = _background(rng)
    style, light = _style(rng)
    return Drawing((_thing(rng, background),), background, style, light)


def _two_objects(rng: np.random.Generator) -> Drawing:
    background = _background(rng)
    style, light = _style(rng)
    first, second = _thing(rng, background, plain=0.7), _thing(rng, background, plain=0.7)
    relation: Relation = "and" if rng.random() < 0.6 else "on"
    return Drawing((first, second), background, style, light, relation)


def _nameless_object(rng: np.random.Generator) -> Drawing:
    background = _background(rng)
    style, light = _style(rng)
    thing = _thing(rng, background)
    if rng.random() < 0.7:
        thing = Thing(pick(rng, NAMELESS_SHAPES), thing.colour, thing.pattern, thing.second, thing.size)
    else:
        thing = Thing(thing.shape, thing.colour, pick(rng, NAMELESS_PATTERNS), thing.second, thing.size)
    return Drawing((thing,), background, style, light)
