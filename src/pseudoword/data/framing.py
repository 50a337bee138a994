"""Frames: which part of a picture is trained on, and at which size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from pseudoword.data.images import INTERPOLATION
from pseudoword.recipe import Fit

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

Placement = tuple[int, int, int, int, int, int]
"""Height and width of a picture, top and left of the frame once resized, and the frame's height and width: what
Stable Diffusion XL is told of a picture (Podell et al. 2023, sec. 2.2)."""


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

    def placement(self, size: tuple[int, int], *, flipped: bool = False) -> Placement:
        """Return where the frame is in a picture of this width and height, mirrored first if `flipped`."""
        left, top, right, bottom = self.box
        if flipped:
            left, right = size[0] - right, size[0] - left
        across, down = self.size[0] / (right - left), self.size[1] / (bottom - top)
        return size[1], size[0], round(top * down), round(left * across), self.size[1], self.size[0]

    @property
    def enlarged(self) -> bool:
        """Whether the frame has fewer pixels than it is trained at, on either side."""
        left, top, right, bottom = self.box
        return right - left < self.size[0] or bottom - top < self.size[1]


@dataclass(frozen=True)
class Framing:
    """How pictures become frames."""

    size: int
    """Side of a square frame in pixels; buckets have at most its area."""
    fit: Fit = "crop"
    crops: int = 1
    multiple: int = 1
    """Sides of buckets are multiples of it."""

    def frames(self, size: tuple[int, int]) -> list[Frame]:
        """Return the frames of a picture of this width and height, each different, all of one training size."""
        width, height = size
        square = (self.size, self.size)
        if self.fit == "squash":
            return [Frame((0, 0, width, height), square)]
        if self.fit == "bucket":
            bucket = nearest(size, buckets(self.size, self.multiple))
            return [Frame(_covered(size, bucket), bucket)]
        side = min(width, height)
        boxes = [(left, 0) if width > height else (0, left) for left in _offsets(max(width, height) - side, self.crops)]
        return [Frame((x, y, x + side, y + side), square) for x, y in dict.fromkeys(boxes)]


def buckets(size: int, multiple: int) -> list[tuple[int, int]]:
    """Return widths and heights of at most the area of a square of `size`, the largest for each width.

    Sides are multiples of `multiple`, as `size` must be, at least half of it and at most twice.
    """
    sides = [side for side in range(multiple, 2 * size + 1, multiple) if 2 * side >= size]
    found = [(width, max((h for h in sides if width * h <= size * size), default=0)) for width in sides]
    return [(width, height) for width, height in found if height]


def nearest(size: tuple[int, int], among: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the bucket whose aspect ratio is nearest to that of a size; of equal ones the largest."""
    width, height = size
    return min(among, key=lambda own: (abs(math.log(own[0] / own[1] * height / width)), -own[0] * own[1]))


def _covered(size: tuple[int, int], by: tuple[int, int]) -> Box:
    """Return the largest centred part of a picture that has the aspect ratio of another size."""
    (width, height), (wide, high) = size, by
    if width * high > height * wide:
        width = max(1, round(height * wide / high))
    else:
        height = max(1, round(width * high / wide))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _offsets(room: int, count: int) -> list[int]:
    """Return where `count` crops begin along a side that leaves so much room: the middle, or from end to end."""
    return [room // 2] if count == 1 else [round(i * room / (count - 1)) for i in range(count)]
