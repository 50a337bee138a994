"""The concept suite: things and styles to learn a word for, five pictures of each, and prompts with known answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from pseudoword import sheets
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import BaseModel, ConceptRecipe, Output, Recipe, Schedule, Training
from pseudoword.toybox import captions, world
from pseudoword.toybox.render import render
from pseudoword.toybox.world import Drawing, Thing

Kind = Literal["nameable", "wordless", "style"]
PICTURES = 5
SEEDS = 1 << 42
"""Seeds of the suite's pictures start here: neither base nor oracle has seen them."""
LEARNING_RATE = 2e-2
"""Of a plain run on the toybox, whose rows are longer than CLIP's."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with `{}` for the word, and what should then be drawn."""

    situation: str
    text: str
    expected: Drawing
    asked: tuple[str, ...] = ()
    """The attributes that the rest of the prompt says; of others nothing is known, such as the size in a scene."""


@dataclass(frozen=True)
class Subject:
    """Something to learn a word for: an object, or else a style."""

    name: str
    kind: Kind
    half: Literal["tuning", "reporting"]
    thing: Thing
    style: str = "photo"
    initializer: str = "thing"
    """The word that training starts from."""

    @property
    def described(self) -> str | None:
        """What the world's own words call it, if they can."""
        if self.kind == "wordless" or self.style in world.NAMELESS_STYLES:
            return None
        if self.kind == "style":
            return self.style
        return captions.noun(self.thing)


SUBJECTS = (
    Subject("zebra-star", "nameable", "tuning", Thing("star", "black", "striped", "white")),
    Subject("ladybird", "nameable", "tuning", Thing("circle", "red", "dotted", "black")),
    Subject("gold-ring", "nameable", "tuning", Thing("ring", "yellow")),
    Subject("candy-heart", "nameable", "reporting", Thing("heart", "pink", "striped", "white")),
    Subject("harlequin-diamond", "nameable", "reporting", Thing("diamond", "purple", "checkered", "yellow")),
    Subject("cottage", "nameable", "reporting", Thing("house", "orange", "dotted", "blue")),
    Subject("goldfish", "wordless", "tuning", Thing("fish", "orange", "striped", "white")),
    Subject("old-key", "wordless", "tuning", Thing("key", "yellow")),
    Subject("fir", "wordless", "tuning", Thing("tree", "green")),
    Subject("toadstool", "wordless", "reporting", Thing("mushroom", "red", "dotted", "white")),
    Subject("two-tone-heart", "wordless", "reporting", Thing("heart", "blue", "split", "yellow")),
    Subject("badge", "wordless", "reporting", Thing("square", "green", "emblem", "white")),
    Subject("neon", "style", "tuning", Thing("star", "red"), "neon", "watercolor"),
    Subject("sepia", "style", "tuning", Thing("star", "red"), "sepia", "watercolor"),
    Subject("mosaic", "style", "reporting", Thing("star", "red"), "mosaic", "watercolor"),
    Subject("comic", "style", "reporting", Thing("star", "red"), "comic", "watercolor"),
)
"""Sixteen subjects; settings are chosen on the tuning half, and results told of the reporting half."""
NAMED = {subject.name: subject for subject in SUBJECTS}


def drawings(subject: Subject) -> list[Drawing]:
    """Return what is on a subject's pictures: the thing in five places, or five drawings in the style."""
    if subject.kind == "style":
        rng = world.generator(SEEDS + SUBJECTS.index(subject), 0)
        plain = [world.held_out_drawing(int(seed)) for seed in rng.integers(1 << 40, size=PICTURES)]
        return [replace(drawing, style=subject.style, light="even") for drawing in plain]
    taken = {subject.thing.colour, subject.thing.second}
    places = [b for b in ("sand", "white", "brick", "sky", "pink", "grass", "wood", "blue") if b not in taken]
    sizes = ("large", "medium", "large", "medium", "large")
    return [Drawing((replace(subject.thing, size=s),), b) for b, s in zip(places, sizes, strict=False)]


def pictures(subject: Subject) -> list[Image.Image]:
    """Return a subject's five training pictures."""
    first = SEEDS + 100 * SUBJECTS.index(subject)
    return [Image.fromarray(render(drawing, first + i)) for i, drawing in enumerate(drawings(subject))]


def of_half(half: str) -> list[Subject]:
    """Return the subjects of a half, or of both where it is 'all'."""
    return [subject for subject in SUBJECTS if half in ("all", subject.half)]


def recognised(given: Sequence[Image.Image]) -> Subject | None:
    """Return the subject whose training pictures these are, in any order, pixel by pixel; None if they are no one's."""
    return _known().get(_told_apart(given))


@functools.cache
def _known() -> dict[tuple[bytes, ...], Subject]:
    return {_told_apart(pictures(subject)): subject for subject in SUBJECTS}


def _told_apart(some: Sequence[Image.Image]) -> tuple[bytes, ...]:
    return tuple(sorted(picture.convert("RGB").tobytes() for picture in some))


def write(subject: Subject, folder: Path) -> Path:
    """Write a subject's pictures as 0.png and on into a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures(subject)):
        sheets.save(picture, folder / f"{i}.png", {})
    return folder


def recipe(
    subject: Subject,
    folder: Path,
    token: str,
    *,
    base: str = "toybox",
    steps: int = 500,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> Recipe:
    """Write a subject's pictures into a folder, and return the recipe of a plain run there."""
    given = concept(subject, write(subject, folder / "pictures"), ConceptRecipe(token, ".", "thing"))
    usual = plain(given, base=base, steps=steps, learning_rate=learning_rate, seed=seed)
    return replace(usual, output=replace(usual.output, folder=str(folder)))


def concept(subject: Subject, pictures: Path, like: ConceptRecipe) -> ConceptRecipe:
    """Return a subject as a concept whose token and number of vectors are another's."""
    what = "style" if subject.kind == "style" else "object"
    return replace(like, pictures=str(pictures), initializer=subject.initializer, property=what)


def plain(
    concept: ConceptRecipe,
    *,
    base: str = "toybox",
    steps: int = 500,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> Recipe:
    """Return the recipe of a plain run on the toybox."""
    return Recipe(
        concepts=(concept,),
        base=BaseModel(base),
        method=ClassicOptions(),
        training=Training(seed=seed, batch_size=4),
        schedule=Schedule(steps=str(steps), learning_rate=learning_rate, lr_warmup_steps=10),
        output=Output(save_steps=steps, checkpointing_steps=min(steps, 100)),
    )


def prompts(subject: Subject) -> Sequence[Prompt]:
    """Return the evaluation prompts: plain, a new scene, a new style, beside another object, at another size."""
    return _style_prompts(subject.style) if subject.kind == "style" else _object_prompts(subject.thing)


def _object_prompts(thing: Thing) -> list[Prompt]:
    ball = Thing("circle" if thing.shape != "circle" else "triangle", "blue" if thing.colour != "blue" else "red")
    alone = Drawing((thing,), "")
    snowy = replace(alone, background="snow")
    sketched = replace(alone, background="white", style="sketch")
    beside = Drawing((thing, ball), "sand", relation="and")
    small = Drawing((replace(thing, size="small"),), "snow")
    other = f"a photo of a {{}} and a {ball.colour} {ball.shape} on the sand"
    place = ("style", "background")
    return [
        Prompt("plain", "a photo of a {}", alone),
        Prompt("new scene", "a photo of a {} in the snow", snowy, place),
        Prompt("new style", "a painting of a {} on a white background in the style of sketch", sketched, place),
        Prompt("another object", other, beside, (*place, "relation", "other shape", "other colour")),
        Prompt("another size", "a photo of a small {} in the snow", small, (*place, "size")),
    ]


def _style_prompts(style: str) -> list[Prompt]:
    star, house = Thing("star", "red"), Thing("house", "blue", "striped", "yellow")
    large = Drawing((replace(star, size="large"),), "sand", style)
    both = Drawing((star, Thing("circle", "green")), "white", style, relation="and")
    striped = "a {} painting of a blue striped house with yellow stripes on the sand"
    circle = "a painting of a red star and a green circle on a white background in the style of {}"
    thing, place = ("shape", "colour"), ("background",)
    return [
        Prompt("plain", "a painting of a red star in the style of {}", Drawing((star,), "", style)),
        Prompt(
            "new scene",
            "a painting of a red star in the grass in the style of {}",
            Drawing((star,), "grass", style),
            (*thing, *place),
        ),
        Prompt("new style", striped, Drawing((house,), "sand", style), (*thing, "pattern", "second", *place)),
        Prompt("another object", circle, both, (*thing, "relation", "other shape", "other colour", *place)),
        Prompt(
            "another size",
            "a painting of a large red star on the sand in the style of {}",
            large,
            (*thing, "size", *place),
        ),
    ]
