"""Many small pictures on one sheet, to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from pseudoword.toybox.render import SIDE

GAP = 2


def sheet(pictures: Sequence[Image.Image], columns: int, *, scale: int = 2) -> Image.Image:
    """Lay pictures out in rows, each pixel `scale` pixels wide."""
    step = SIDE * scale + GAP
    rows = -(-len(pictures) // columns)
    laid = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for i, picture in enumerate(pictures):
        large = picture.resize((SIDE * scale, SIDE * scale), Image.Resampling.NEAREST)
        laid.paste(large, (i % columns * step + GAP, i // columns * step + GAP))
    return laid
