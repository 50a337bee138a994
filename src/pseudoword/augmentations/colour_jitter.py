"""Colour jitter: brightness, contrast and saturation, each by a factor between 1 - strength and 1 + strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

USUAL = 0.1


def picture(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Return a picture with other brightness, contrast and saturation. Hues stay: they belong to the concept."""
    from PIL import ImageEnhance

    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return image
