"""Draw what each way to fit pictures trains on: python examples/frames.py PICTURE… --output frames.png"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pseudoword.data import folder, images, masks
from pseudoword.data.framing import Frame, Framing

SIDE = 192
"""Pixels of a square frame in the drawing; buckets have multiples of an eighth of it, as at 512 pixels of 64."""
WAYS = {
    "--fit crop": Framing(SIDE),
    "--crops 3": Framing(SIDE, crops=3),
    "--fit bucket": Framing(SIDE, "bucket", multiple=SIDE // 8),
    "--fit squash": Framing(SIDE, "squash"),
}
GAP, HEADING = 12, 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a row for each picture and write them under each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("frames.png"))
    args = parser.parse_args(arguments)
    rows = [row(path) for path in args.pictures]
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), "white")
    for i, drawn in enumerate(rows):
        sheet.paste(drawn, (0, sum(r.height for r in rows[:i])))
    sheet.save(args.output)


def row(path: Path) -> Image.Image:
    """Return a picture, the frames of each way, and the weights of its mask if it has one, side by side."""
    picture, image = folder.read(path), images.read_rgb(path)
    whole = image.resize((round(SIDE * image.width / image.height), SIDE), Image.Resampling.BICUBIC)
    cells = [("the picture", [whole])]
    cells += [(name, [frame.cut(image) for frame in way.frames(image.size)]) for name, way in WAYS.items()]
    mask = folder.look(path.parent, masks=True).masks.get(path)
    if mask:
        cells.append(("its mask's weights", [weights(path, mask, WAYS["--fit crop"].frames(picture.size)[0])]))
    return drawn(cells)


def weights(path: Path, mask: Path, frame: Frame) -> Image.Image:
    """Return how much each place of a frame counts, white for 1, black for 0, a latent for 8 pixels of 512."""
    found = folder.Found(path.parent, [folder.read(path)], [], masks={path: mask})
    [read] = masks.from_files(found)
    assert read is not None
    values = read.weights(frame, (64, 64), outside=0.1)
    return Image.fromarray((values * 255).astype(np.uint8)).resize(frame.size, Image.Resampling.NEAREST)


def drawn(cells: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Return cells of pictures side by side, each under its name."""
    font: Any = ImageFont.load_default(14)
    widths = [sum(image.width + GAP // 2 for image in own) + GAP for _, own in cells]
    high = max(image.height for _, own in cells for image in own)
    sheet = Image.new("RGB", (sum(widths) + GAP, high + HEADING + GAP), "white")
    pen, left = ImageDraw.Draw(sheet), GAP
    for (name, own), width in zip(cells, widths, strict=True):
        pen.text((left, 4), name, fill="black", font=font)
        at = left
        for image in own:
            sheet.paste(image.convert("RGB"), (at, HEADING))
            at += image.width + GAP // 2
        left += width
    return sheet


if __name__ == "__main__":
    main()
