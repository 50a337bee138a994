"""The table of augmentations: how a picture is changed at random before it is encoded.

An augmentation is a module with `USUAL`, its strength if none is given, and one or both of `box(box, rng, strength)`,
which part of the picture is seen instead, and `picture(image, rng, strength)`, how that part looks. `rng` is the same
for the same seed, concept, picture and step or variant, so a seeded run's pictures are, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pseudoword.augmentations import colour_jitter, crop_jitter
from pseudoword.errors import RecipeError
from pseudoword.settings import at_least, named_number

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

AUGMENTATIONS: dict[str, Any] = {"colour-jitter": colour_jitter, "crop-jitter": crop_jitter}
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Augmentation:
    """One of the table, with its strength."""

    name: str
    strength: float

    def box(self, box: Box, rng: np.random.Generator) -> Box:
        """Return which part of a picture is seen instead of a box: left, top, right, bottom."""
        change = getattr(AUGMENTATIONS[self.name], "box", None)
        return change(box, rng, self.strength) if change else box

    def picture(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return how the part that is seen looks instead, of the same size."""
        change = getattr(AUGMENTATIONS[self.name], "picture", None)
        return change(image, rng, self.strength) if change else image


def check(texts: Sequence[str] | None, variants: int | None) -> None:
    """Raise RecipeError for augmentations that there are not, and for a number of variants of none."""
    read(texts or ())
    if variants is None:
        return
    at_least(0, augment_variants=variants)
    if not texts:
        raise RecipeError(
            f"augment_variants is {variants}, but nothing is augmented; set augment, such as 'colour-jitter', or leave "
            "it out."
        )


def read(texts: Sequence[str]) -> list[Augmentation]:
    """Return the augmentations that 'NAME' or 'NAME=STRENGTH' stand for; RecipeError if one does not."""
    chosen: dict[str, Augmentation] = {}
    usual = {name: own.USUAL for name, own in AUGMENTATIONS.items()}
    for text in texts:
        name, strength = named_number(text, usual, "augment")
        if strength is None or not 0 < strength < 1:
            raise RecipeError(
                f"The strength of {name} must be above 0 and below 1, such as {name}=0.1, not {strength}."
            )
        if name in chosen:
            raise RecipeError(f"augment has {name} twice; leave one out.")
        chosen[name] = Augmentation(name, strength)
    return list(chosen.values())
