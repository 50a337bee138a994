"""Frames: which part of a picture is trained on, and at which size."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from pseudoword.data.images import INTERPOLATION
from pseudoword.recipe import Fit

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class Frame:
    """A part of a picture, and the size in pixels that it is resized to."""

    box: Box
    size: tuple[int, int]

    def cut(self, image: Image.Image, interpolation: str = "bicubic") -> Image.Image:
        """Return this part of the picture at its training size."""
        return image.crop(self.box).resize(self.size, resample=INTERPOLATION[interpolation])

    def share(self, size: tuple[int, int]) -> float:
        """Return how much of a picture of this size the frame holds, by area."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top) / (size[0] * size[1])

    @property
    def enlarged(self) -> bool:
        """Whether the frame has fewer pixels than it is trained at, on either side."""
        left, top, right, bottom = self.box
        return right - left < self.size[0] or bottom - top < self.size[1]


@dataclass(frozen=True)
class Framing:
    """How pictures become frames; `size` is the side of square ones in pixels."""

    size: int
    fit: Fit = "crop"
    crops: int = 1

    def frames(self, size: tuple[int, int]) -> list[Frame]:
        """Return the frames of a picture of this width and height, each different, all of one training size."""
        width, height = size
        square = (self.size, self.size)
        if self.fit == "squash":
            return [Frame((0, 0, width, height), square)]
        side = min(width, height)
        boxes = [(left, 0) if width > height else (0, left) for left in _offsets(max(width, height) - side, self.crops)]
        return [Frame((x, y, x + side, y + side), square) for x, y in dict.fromkeys(boxes)]


def _offsets(room: int, count: int) -> list[int]:
    """Return where `count` crops begin along a side that leaves so much room: the middle, or from end to end."""
    return [room // 2] if count == 1 else [round(i * room / (count - 1)) for i in range(count)]
