"""What the toybox's base cannot do: it draws its own world and nothing else."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pseudoword.data.folder import Picture
from pseudoword.toybox import BASES, suite, words, world
from pseudoword.toybox.cache import HELD_OUT
from pseudoword.toybox.render import SIDE, render


def is_toybox(model: str) -> bool:
    """Whether a base model is the one inside this package."""
    return model in BASES or Path(model) in BASES.values()


def strangers(pictures: Sequence[Picture]) -> list[Picture]:
    """Return the pictures that are not of the toybox's world, known by their pixels."""
    return [picture for picture in pictures if not _is_of_the_world(picture)]


def _is_of_the_world(picture: Picture) -> bool:
    if picture.size != (SIDE, SIDE):
        return False
    return picture.pixels in _of_the_suite() or picture.pixels in _of_the_seed(picture.path.stem)


@functools.cache
def _of_the_suite() -> frozenset[str]:
    return frozenset(_pixels(picture) for subject in suite.SUBJECTS for picture in suite.pictures(subject))


def _of_the_seed(stem: str) -> list[str]:
    """Return the pixels of what `pseudoword toybox render` draws into a file of this name: its seed."""
    if not (stem.isascii() and stem.isdigit() and len(stem) < 19):
        return []
    seed = int(stem)
    drawing_of = world.held_out_drawing if seed >= HELD_OUT else world.training_drawing
    return [_pixels(Image.fromarray(render(drawing_of(seed), seed)))]


def _pixels(image: Image.Image) -> str:
    """Return what `Picture.pixels` has of a picture."""
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def overstepped(pictures: Sequence[Picture]) -> str | None:
    """Say that pictures are not of the toybox's world, if some are not."""
    foreign = len(strangers(pictures))
    return _limits(foreign, len(pictures), len(words.words())) if foreign else None


def _limits(foreign: int, count: int, vocabulary: int) -> str:
    return (
        f"The toybox draws only its own world of {vocabulary} words, and {foreign} of {count} pictures are not of it, "
        "so its images will not look like them: good for trying commands out. For pictures of your own name a real "
        "--model, such as stable-diffusion-v1-5/stable-diffusion-v1-5."
    )
