"""Many small pictures on one sheet, to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageOps

from pseudoword import sheets
from pseudoword.toybox.render import SIDE

GAP = 2


def sheet(pictures: Sequence[Image.Image], columns: int, *, scale: int = 2) -> Image.Image:
    """Lay pictures out in rows, each pixel `scale` pixels wide."""
    large = [picture.resize((SIDE * scale, SIDE * scale), Image.Resampling.NEAREST) for picture in pictures]
    return ImageOps.expand(sheets.grid(large, columns, GAP), GAP, "white")
