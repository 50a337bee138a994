"""A concept's pictures as a recipe asks for them: found before any model is loaded, then framed for one."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from pseudoword.contracts import Family
from pseudoword.data import captions, folder, images
from pseudoword.data.framing import Frame, Framing
from pseudoword.errors import RecipeError
from pseudoword.recipe import ConceptRecipe, Data

log = logging.getLogger(__name__)


class ConceptPictures:
    """The pictures of a concept; PicturesError says what is wrong with them."""

    def __init__(self, wanted: ConceptRecipe, data: Data) -> None:
        self.data = data
        self.pictures = folder.scan(wanted.pictures, recursive=data.recursive)
        self.texts = [template.format(wanted.token) for template in captions.TEMPLATES[wanted.property]]

    def __len__(self) -> int:
        """Return the length of an epoch: pictures times repeats."""
        return len(self.pictures) * self.data.repeats

    def facts(self) -> list[str]:
        """Return what a resumed run must find again: names and hashes."""
        return [picture.fact for picture in self.pictures]

    def framed(self, family: Family) -> FramedPictures:
        """Return the pictures cut to a base's sizes; names those that are enlarged for it."""
        framing = _framing(self.data, self.data.resolution or family.resolution, family)
        frames = [framing.frames(picture.size) for picture in self.pictures]
        small = [p.path.name for p, own in zip(self.pictures, frames, strict=True) if own[0].enlarged]
        if small:
            log.warning("Smaller than %d pixels, so enlarged, which teaches blur: %s", framing.size, ", ".join(small))
        return FramedPictures(self, frames)


def _framing(data: Data, size: int, family: Family) -> Framing:
    """Return how a base's pictures are framed; RecipeError if it cannot read pictures of this size."""
    multiple = family.bucket_multiple if data.fit == "bucket" else family.latent_factor
    if size % multiple:
        wanting = "fit 'bucket' on this base" if data.fit == "bucket" else "this base"
        raise RecipeError(f"resolution must be a multiple of {multiple} for {wanting}, but is {size}.")
    return Framing(size, data.fit, data.crops, multiple)


@dataclass(frozen=True)
class FramedPictures:
    """A concept's pictures at their training sizes."""

    own: ConceptPictures
    frames: list[list[Frame]]
    """Of each picture."""

    def __len__(self) -> int:
        """Return the length of an epoch."""
        return len(self.own)

    def pixels(self, picture: int, flipped: bool) -> list[Float[np.ndarray, "3 height width"]]:
        """Return each frame of a picture in [-1, 1], mirrored left to right if `flipped`."""
        image = images.read_rgb(self.own.pictures[picture].path, self.own.data.alpha_colour)
        return [images.pixels(frame.cut(image), flipped) for frame in self.frames[picture]]
