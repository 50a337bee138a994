"""What a person could say about a drawing: the guide's templates, with what is said drawn anew for every caption."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from pseudoword.data.captions import OBJECT_TEMPLATES, STYLE_TEMPLATES
from pseudoword.toybox.world import COLOURS, SIZES, STYLES, Drawing, Thing, pick

PLACES = {
    **{colour: f"on a {colour} background" for colour in COLOURS},
    "grass": "in the grass",
    "sand": "on the sand",
    "sea": "in the sea",
    "sky": "in the sky",
    "night": "at night",
    "brick": "on a brick wall",
    "wood": "on a wooden table",
    "snow": "in the snow",
}
"""How a caption says what is behind the objects."""
NAME, MANNER = "<name>", "<manner>"
"""What captions of the training say where an object or its style is called by a name: see `names`."""
STROKES = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
GENERIC = ("thing", "object", "toy")
"""Nouns for any object, and the only ones for an object without a word."""
BARE = ("{}", "a {}", "the {}")
PAINTED = (
    "a painting of a {}",
    "a picture of a {}",
    "a rendering of a {}",
    "a rendition of a {}",
    "a nice painting of the {}",
)
FITTING = {
    "small": lambda d: d.things[0].size == "small" and not d.relation,
    "large": lambda d: d.things[0].size == "large" and not d.relation,
    "close-up": lambda d: d.things[0].size == "large" and not d.relation,
    "cropped": lambda d: d.things[0].size == "large" and not d.relation,
    "dark": lambda d: d.light == "dark",
    "bright": lambda d: d.light == "bright",
}
"""Words of the guide's templates that say something a drawing knows: said only where they are true."""


def full_caption(drawing: Drawing) -> str:
    """Say everything that has a word, plainly."""
    objects = _objects(drawing, [noun(thing, bool(drawing.relation)) for thing in drawing.things])
    said = f"{objects} {PLACES[drawing.background]}"
    if drawing.style == "photo":
        return _articles(f"a photo of a {said}")
    named = f" in the style of {drawing.style}" if drawing.style in STYLES else ""
    return _articles(f"a painting of a {said}{named}")


def caption(drawing: Drawing, rng: np.random.Generator, keep: float, named: Collection[str] = ()) -> str:
    """Say what is drawn, each attribute with probability `keep`; what goes unsaid may be anything.

    With `NAME` in `named` the first object has that for its noun and all its colours, with `MANNER` so has the style.
    """
    return _articles(_caption(drawing, rng, keep, named))


def _articles(text: str) -> str:
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _caption(drawing: Drawing, rng: np.random.Generator, keep: float, named: Collection[str]) -> str:
    nouns = [noun(thing, bool(drawing.relation), rng, keep) for thing in drawing.things]
    if NAME in named:
        small_or_large = [word for word in nouns[0].split()[:1] if word in SIZES]
        nouns[0] = " ".join([*small_or_large, NAME])
    style = MANNER if MANNER in named else drawing.style
    said = _objects(drawing, nouns)
    if rng.random() < keep:
        said += f" {PLACES[drawing.background]}"
    if drawing.style == "photo":
        return _template(drawing, (*OBJECT_TEMPLATES, *BARE), rng).format(said)
    if style not in (*STYLES, MANNER) or rng.random() > 0.4 + 0.6 * keep:
        return pick(rng, PAINTED).format(said)
    form = rng.random()
    if form > 0.5 + 0.5 * keep:
        return _template(drawing, STYLE_TEMPLATES, rng).format(style)
    if form < 0.15:
        return f"a {style} painting of a {said}"
    return f"{pick(rng, PAINTED).format(said)} in the style of {style}"


def _template(drawing: Drawing, templates: tuple[str, ...], rng: np.random.Generator) -> str:
    """Choose a template that says nothing untrue."""
    while True:
        template = pick(rng, templates)
        if all(fits(drawing) for word, fits in FITTING.items() if f" {word} " in template):
            return template


def _objects(drawing: Drawing, nouns: list[str]) -> str:
    return {"": "{}", "and": "{} and a {}", "on": "{} on a {}"}[drawing.relation].format(*nouns)


def noun(thing: Thing, together: bool = False, rng: np.random.Generator | None = None, keep: float = 1.0) -> str:
    """Name an object with its attributes; of an object without a word, only that it is there, and how large."""
    draws = rng.random(5) if rng is not None else np.zeros(5)
    said = draws < keep
    words = [thing.size] if thing.size != "medium" and not together and said[0] else []
    if Drawing((thing,), "white").nameless:
        return " ".join([*words, pick(rng, GENERIC) if rng is not None else GENERIC[0]])
    if said[1]:
        words.append(thing.colour)
    strokes = thing.pattern != "plain" and said[2]
    with_strokes = strokes and said[3]
    if strokes and (not with_strokes or draws[3] < 0.7 * keep):
        words.append(thing.pattern)
    shape_said = draws[4] < 0.5 + 0.5 * keep
    words.append(thing.shape if shape_said or rng is None else pick(rng, GENERIC))
    if with_strokes:
        words.append(f"with {thing.second} {STROKES[thing.pattern]}")
    return " ".join(words)
