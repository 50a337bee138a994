"""A1111's pictures that are words: as a text chunk of a PNG, and hidden in the low bits beside the picture.

The scheme is `modules/textual_inversion/image_embedding.py` of stable-diffusion-webui: JSON with tensors as lists, in
the chunk `sd-ti-embedding` in base64; in the pixels compressed, its half bytes exclusive-or'ed with a congruential
sequence, the low halves left of the picture and the high ones right of it, a black column beside each.
"""

from __future__ import annotations

import base64
import io
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from pseudoword.errors import FormatError

CHUNK = "sd-ti-embedding"
TENSOR = "TORCHTENSOR"
LARGEST_JSON = 16 * 2**20
"""Bytes of JSON that a picture's word may have; 75 vectors of SDXL have 4 MiB."""
LARGEST_HIDDEN = 8 * 2**20
"""Bytes of it compressed in the pixels."""
MOST_PARTS = 100_000
"""Lists and dicts of it, of which two letters take up 64 bytes and more when they are read; and a PNG's chunks."""
LETTERS = 25
"""Bytes that a number has in JSON at most, with its comma."""
MOST_PIXELS = 16 * 2**20
SIDE = 512
MULTIPLIER, INCREMENT = 1664525, 1013904223
"""Of the congruential sequence, modulo 2^32."""


class JustPicture(ValueError):
    """A picture that holds no word."""


def load(content: bytes) -> dict[str, Any]:
    """Return what a picture holds, tensors as fp32 arrays; JustPicture if none, or what a broken one leads to."""
    if _is_of_crumbs(content):
        raise JustPicture("it is too large to look for one")
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > MOST_PIXELS:
            raise JustPicture("it is too large to look for one")
        image.load()
        text = getattr(image, "text", {}).get(CHUNK)
        told = base64.b64decode(text, validate=True) if text else _extracted(np.array(image.convert("RGB")))
    if len(told) > LARGEST_JSON or told.count(b"[") + told.count(b"{") > MOST_PARTS:
        raise JustPicture("it unpacks to more than a word can have")
    values = json.loads(told, object_hook=_with_array)
    if not isinstance(values, dict):
        raise JustPicture("its text names no tensors")
    return values


def _is_of_crumbs(content: bytes) -> bool:
    """Whether a file has more chunks than a picture needs; of 12 bytes each, Pillow reads one MiB of them a second."""
    place = 8
    for _ in range(MOST_PARTS):
        if place >= len(content):
            return False
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return content.startswith(b"\x89PNG")


def _with_array(value: dict[str, Any]) -> Any:
    """Return a dict, or the array that it stands for; without infinite numbers, which nothing outside of arrays has."""
    if not all(name.isprintable() for name in value):
        raise JustPicture("its text names no tensors")
    "".join(own for own in value.values() if isinstance(own, str)).encode()  # half characters are no text
    if TENSOR in value:
        return np.array(value[TENSOR], dtype=np.float32)
    return {name: own for name, own in value.items() if not isinstance(own, float) or math.isfinite(own)}


def _extracted(pixels: np.ndarray) -> bytes:
    """Return the hidden JSON of a picture `[height, width, 3]`."""
    bright = (pixels > 0).all(2)
    rows, columns = np.flatnonzero(bright.any(axis=-1)), np.flatnonzero(bright.any(0))
    if not len(rows):
        raise JustPicture("it is black")
    halves = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(halves.sum((0, 2), dtype=np.int64) == 0)
    if len(black) < 2:
        raise JustPicture("it is just a picture")
    left, right = halves[:, : black[0]], halves[:, black[-1] + 1 :]
    if left.shape != right.shape or left.size > LARGEST_HIDDEN:
        raise JustPicture("it is just a picture")
    stream = zlib.decompressobj()
    return stream.decompress((_mixed(right) << 4 | _mixed(left)).tobytes(), LARGEST_JSON + 1)


def to_bytes(values: Mapping[str, Any], title: str) -> bytes:
    """Return a PNG that holds the values both ways, arrays among them as tensors, with a drawing of the first array."""
    arrays = [own for value in values.values() for own in (value.values() if isinstance(value, dict) else [value])]
    numbers = sum(own.size for own in arrays if isinstance(own, np.ndarray))
    if numbers * LETTERS > LARGEST_JSON:
        raise FormatError(f"A picture cannot hold a word of {numbers} numbers; write it as .safetensors.")
    told = json.dumps({name: _with_list(value) for name, value in values.items()}).encode()
    drawn = _drawing(next(own for own in arrays if isinstance(own, np.ndarray)), title)
    hidden = np.frombuffer(zlib.compress(told, level=9), np.uint8)
    columns = -(-len(hidden) // (SIDE * 3))
    blocks = [np.resize(part, (SIDE, columns, 3)) for part in (hidden & 0x0F, hidden >> 4)]
    low, high = (_mixed(block) | _texture(block.shape, drawn) for block in blocks)
    gap = np.zeros((SIDE, 1, 3), np.uint8)
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, base64.b64encode(told).decode())
    out = io.BytesIO()
    Image.fromarray(np.hstack([low, gap, drawn, gap, high])).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def _with_list(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {TENSOR: value.tolist()}
    return {name: _with_list(own) for name, own in value.items()} if isinstance(value, dict) else value


def _mixed(halves: np.ndarray) -> np.ndarray:
    """Return half bytes exclusive-or'ed with the low halves of the sequence's remainders by 255; its own inverse."""
    sequence = np.zeros(max(halves.size, 1), np.uint32)
    sequence[0], known = INCREMENT, 1
    multiplier, increment = MULTIPLIER, INCREMENT  # that lead `known` places further
    while known < len(sequence):
        more = sequence[:known][: len(sequence) - known]
        sequence[known : known + len(more)] = more * np.uint32(multiplier) + np.uint32(increment)
        multiplier, increment = multiplier * multiplier % 2**32, (multiplier * increment + increment) % 2**32
        known *= 2
    return halves ^ (sequence[: halves.size] % 255).astype(np.uint8).reshape(halves.shape) & 0x0F


def _texture(shape: tuple[int, ...], drawn: np.ndarray) -> np.ndarray:
    """Return high halves that go on with the drawing's background, so that the data look like its frame."""
    return np.broadcast_to(drawn[:, :1] & 0xF0, shape)


def _drawing(rows: np.ndarray, title: str) -> np.ndarray:
    """Return a picture `[side, side, 3]` of a word's rows: each a band of its numbers, blue below zero, red above."""
    scale = np.abs(rows).max() or 1.0
    shade = np.clip(rows / scale, -1, 1)
    red, blue = 0.15 + 0.85 * np.clip(shade, 0, 1), 0.15 + 0.85 * np.clip(-shade, 0, 1)
    bands = (np.stack([red, np.full_like(red, 0.15), blue], axis=-1) * 255).astype(np.uint8)
    image = Image.new("RGB", (SIDE, SIDE), (34, 34, 40))
    image.paste(Image.fromarray(bands).resize((SIDE - 32, SIDE - 112), Image.Resampling.NEAREST), (16, 80))
    draw = ImageDraw.Draw(image)
    size = 48
    while size > 12 and draw.textlength(title, ImageFont.load_default(size)) > SIDE - 32:
        size -= 2
    draw.text((16, 40), title, (240, 240, 240), ImageFont.load_default(size), anchor="lm")
    return np.array(image)
