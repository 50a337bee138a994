"""Embedding files put together byte by byte, as no tool writes them, and what every outcome of reading one must be."""

from __future__ import annotations

import base64
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from pseudoword import converting, formats, inspection
from pseudoword.concept import Concept
from pseudoword.errors import FormatError, TokenError
from pseudoword.formats import pictures

MAGIC = 0x1950A86A20F9469CFC6C
NUMBERS = bytes(32)
"""What `tensor()` says is in the storage "0": eight zeros."""


# Pieces of pickles


def text(value: str | bytes) -> bytes:
    content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(content)) + content


def numbers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, called: str) -> bytes:
    return f"c{module}\n{called}\n".encode()


def put(index: int) -> bytes:
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    return b"j" + struct.pack("<I", index)


def named(values: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def tensor(
    key: str = "0",
    length: int = 8,
    shape: Iterable[int] = (2, 4),
    strides: Iterable[int] = (4, 1),
    offset: int = 0,
    kind: str = "FloatStorage",
) -> bytes:
    storage = b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(length) + b"tQ"
    view = storage + number(offset) + numbers(shape) + numbers(strides)
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + view + b"\x89}tR"


def a1111(**more: bytes) -> bytes:
    """Return A1111's values for a word called x."""
    return named({"string_to_param": named({"*": tensor()}), "name": text("x"), **more})


# Files


def pickled(*bodies: bytes) -> bytes:
    return b"".join(b"\x80\x02" + body + b"." for body in bodies)


def zipped(body: bytes, storages: Mapping[str, bytes] = {"0": NUMBERS}, **told: Any) -> bytes:
    """Return a file as torch writes it; `told` are for the zip's writer."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **told) as archive:
        archive.writestr("word/data.pkl", pickled(body))
        for key, content in storages.items():
            archive.writestr(f"word/data/{key}", content)
    return out.getvalue()


def archive(records: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip of records, which may have one name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file, warnings.catch_warnings(action="ignore"):
        for called, content in records:
            file.writestr(called, content)
    return out.getvalue()


def legacy(body: bytes, keys: Iterable[str] = ("0",), storages: bytes = struct.pack("<Q", 8) + NUMBERS) -> bytes:
    """Return a file as torch wrote them before 1.6."""
    return pickled(number(MAGIC), number(1001), b"}", body, b"](" + b"".join(map(text, keys)) + b"e") + storages


def entry(shape: Iterable[int] = (1, 1), begin: int = 0, end: int = 4, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safe(header: Any, content: bytes = bytes(4)) -> bytes:
    """Return a safetensors file; a header of bytes is taken as it is."""
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + content


def png(
    chunk: bytes | str | None = None, pixels: Any = None, size: tuple[int, int] = (8, 8), mode: str = "RGB"
) -> bytes:
    """Return a picture; its chunk is put into base64 unless it is a text."""
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    if chunk is not None:
        info.add_text(pictures.CHUNK, chunk if isinstance(chunk, str) else base64.b64encode(chunk).decode())
    image = Image.new("L", size) if pixels is None else Image.fromarray(pixels)
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def hidden(content: bytes) -> bytes:
    """Return a picture whose pixels hide this very content."""
    columns = -(-len(content) // (512 * 3))
    padded = np.zeros((512, columns, 3), np.uint8)
    padded.reshape(-1)[: len(content)] = np.frombuffer(content, np.uint8)
    low, high = (pictures._mixed(half) | 0x20 for half in (padded & 0x0F, padded >> 4))
    gap, middle = np.zeros((512, 1, 3), np.uint8), np.full((512, 8, 3), 0x21, np.uint8)
    return png(pixels=np.hstack([low, gap, middle, gap, high]))


# What may come of them


def outcome(path: Path, out: Path) -> str:
    """Read a file in every way, and convert it into the folder `out`; return the refusal, or else "word"."""
    refusals = [_refusal(act, path) for act in (formats.open_file, formats.read_all, inspection.inspect)]
    told = [one.error for one in converting.convert([path], ["comfyui"], out)]
    assert bool(refusals[1]) == bool(refusals[2]) == any(told), f"refused or not, whatever is done: {refusals}, {told}"
    return refusals[1] or "word"


def bundled(path: Path, out: Path) -> str:
    """Bundle a word with a file; return the refusal, or else "word"."""
    word = Concept("x", {"clip_l": np.ones((1, 4), np.float32)})
    return _refusal(lambda lora: formats.bundle_into(lora, [word], out / "bundled.safetensors"), path) or "word"


def _refusal(act: Any, path: Path) -> str:
    try:
        act(path)
    except (FormatError, TokenError) as error:
        said = str(error)
        assert said.isprintable(), f"not one line that can be shown: {said!a}"
        assert said.endswith((".", "?"))
        assert len(said) < len(str(path)) + 400
        return said
    return ""
