"""Pictures laid out beside each other: plain grids, and sheets with headings and captions."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from pseudoword import disk

GAP = 8
HEADING, CAPTION = 30, 22
"""Pixels that a line of heading or caption takes."""
HEADING_FONT, CAPTION_FONT = 17, 14


@dataclass(frozen=True)
class Line:
    """A row of pictures under a heading, with a caption under each if there are any."""

    heading: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()


def grid(pictures: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Return pictures of one size laid out in rows on white."""
    width, height = pictures[0].size
    lines = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, lines * (height + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet


def cut(grid: Image.Image, columns: int, lines: int, side: int, gap: int = 4) -> list[list[Image.Image]]:
    """Return the pictures that `grid` has laid out, of `side` pixels each, a list for each line."""
    stride = side + gap
    return [
        [grid.crop((x, y, x + side, y + side)) for x in range(0, columns * stride, stride)]
        for y in range(0, lines * stride, stride)
    ]


def sheet(lines: Sequence[Line], tile: int) -> Image.Image:
    """Return lines of square pictures, each shown with `tile` pixels a side; small ones keep their hard pixels."""
    columns = max(len(line.pictures) for line in lines)
    width = columns * (tile + GAP) + GAP
    heights = [HEADING + tile + GAP + (CAPTION if line.captions else 0) for line in lines]
    page = Image.new("RGB", (width, sum(heights) + GAP), "white")
    top = GAP
    for line, height in zip(lines, heights, strict=True):
        _write(page, (GAP, top + 4), line.heading, width - 2 * GAP, HEADING_FONT, "black")
        for i, picture in enumerate(line.pictures):
            left = GAP + i * (tile + GAP)
            page.paste(_sized(picture, tile), (left, top + HEADING))
            if line.captions:
                _write(page, (left + 2, top + HEADING + tile + 3), line.captions[i], tile, CAPTION_FONT, "dimgray")
        top += height
    return page


def _sized(picture: Image.Image, tile: int) -> Image.Image:
    grows = tile >= picture.width
    return picture.resize((tile, tile), Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


def _write(page: Image.Image, at: tuple[int, int], text: str, room: int, size: int, colour: str) -> None:
    """Write a line of text, cut where the room ends."""
    draw, font, text = ImageDraw.Draw(page), ImageFont.load_default(size), " ".join(text.split())
    if draw.textlength(text, font) > room:
        while text and draw.textlength(f"{text}…", font) > room:
            text = text[:-1]
        text += "…"
    draw.text(at, text, fill=colour, font=font)


def save(picture: Image.Image, path: Path, told: Mapping[str, str]) -> Path:
    """Write a PNG that says how it was made, as text that other tools show; it appears whole or not at all."""
    info = PngImagePlugin.PngInfo()
    for key, value in told.items():
        info.add_itxt(key, value)
    content = io.BytesIO()
    picture.save(content, format="PNG", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    return disk.write(path, content.getvalue())
