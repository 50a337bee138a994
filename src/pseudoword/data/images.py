"""From a picture file to pixels: orientation, alpha, numbers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

INTERPOLATION = {
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
Source = str | Path | io.BytesIO


def read_rgb(source: Source, alpha_colour: str = "white") -> Image.Image:
    """Decode a picture upright and in RGB, transparency laid on a colour that `PIL.ImageColor` knows."""
    with Image.open(source) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            return _grey_from_wide(upright)
        if "A" in upright.getbands() or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            ground = Image.new("RGBA", rgba.size, alpha_colour)
            return Image.alpha_composite(ground, rgba).convert("RGB")
        return upright.convert("RGB")


def read_alpha(source: Source) -> Image.Image | None:
    """Return a picture's opacity, upright, in mode L; None if it has no transparency."""
    with Image.open(source) as image:
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or "transparency" in upright.info:
            return upright.convert("RGBA").getchannel("A")
        return None


def _grey_from_wide(image: Image.Image) -> Image.Image:
    """Bring a 16-bit, 32-bit or float picture to 8 bits; Pillow's own conversion would clip it to white."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).any():
        raise ValueError("no pixel has a finite value")
    top = 65535.0 if image.mode != "F" else max(1.0, float(np.nanmax(values)))
    eight = np.nan_to_num(values / top * 255).clip(0, 255).astype(np.uint8)
    return Image.fromarray(eight).convert("RGB")


def pixels(image: Image.Image, flipped: bool = False) -> Float[np.ndarray, "3 height width"]:
    """Return an RGB picture as values in [-1, 1], mirrored left to right if `flipped`."""
    values = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray(values[:, :, ::-1]) if flipped else values
