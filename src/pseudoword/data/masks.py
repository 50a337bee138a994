"""Masks: how much each place of a picture counts in the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from pseudoword.data import images
from pseudoword.data.folder import Found, Picture
from pseudoword.data.framing import Frame
from pseudoword.errors import PicturesError


@dataclass(frozen=True)
class Mask:
    """What counts in a picture, white, and what does not, black; as large as the picture or of its aspect ratio."""

    of: Picture
    image: Image.Image
    """In mode L, upright."""
    fact: str
    """What a resumed run must find again."""

    def weights(self, frame: Frame, shape: tuple[int, int], outside: float) -> Float[np.ndarray, "height width"]:
        """Return the mean weight in each of a frame's `shape` places, between `outside` where it is black and 1."""
        (high, wide), scale = shape, self.image.width / self.of.size[0]
        down = self.image.height / self.of.size[1]
        left, top, right, bottom = frame.box
        box = (left * scale, top * down, right * scale, bottom * down)
        white = self.image.convert("F").resize((wide, high), Image.Resampling.BOX, box=box)
        return np.float32(outside) + np.float32(1 - outside) * np.asarray(white, dtype=np.float32) / np.float32(255)

    def refuse_black(self, frames: Sequence[Frame]) -> None:
        """Raise PicturesError if nothing would count in one of the frames."""
        if any(not self.weights(frame, (8, 8), 0.0).any() for frame in frames):
            raise PicturesError(
                f"The mask of {self.of.path.name} is black in all that is trained on, so nothing would count; "
                "make mask_outside more than 0, or mend the mask."
            )


def from_files(found: Found) -> list[Mask | None]:
    """Return each picture's mask from NAME-mask beside it; PicturesError names one that is not of its shape."""
    return [_from_file(picture, found.masks.get(picture.path)) for picture in found.pictures]


def from_alpha(pictures: Sequence[Picture]) -> list[Mask | None]:
    """Return each picture's own transparency as a mask; PicturesError if not one has any."""
    planes = [(picture, images.read_alpha(picture.source)) for picture in pictures]
    if not any(plane for _, plane in planes):
        raise PicturesError("masks is 'alpha', but no picture has transparency; use masks 'files' or 'none'.")
    return [Mask(picture, plane, "alpha") if plane else None for picture, plane in planes]


def _from_file(picture: Picture, path: Path | None) -> Mask | None:
    if path is None:
        return None
    try:
        content = path.read_bytes()
        image = images.read_rgb(path, "black").convert("L")
    except Exception as error:  # Pillow's decoders raise whatever their format makes of a broken file
        raise PicturesError(f"The mask {path.name} cannot be read: {error}.") from error
    width, height = picture.size
    if abs(image.width * height - image.height * width) > max(width, height):  # a pixel of rounding
        raise PicturesError(
            f"The mask {path.name} has {image.width} x {image.height} pixels, which is not the shape of "
            f"{picture.path.name} with {width} x {height}; they must have one aspect ratio, upright."
        )
    return Mask(picture, image, hashlib.sha256(content).hexdigest()[:16])
