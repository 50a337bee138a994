"""safetensors files: read no further than their words, and written so that equal words give equal bytes."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors

from pseudoword.contents import Contents
from pseudoword.errors import FormatError, NoWord, first_line
from pseudoword.formats.numbers import DTYPES, FLOATS, as_float32, stored

LARGEST_HEADER = 8 * 2**20
"""Bytes; the largest LoRAs have one of 1 MiB."""
MOST_TENSORS = 10_000
"""Tensors that are read of a file: a word's, or those of the words that are bundled with a LoRA."""
BUNDLED, EMBEDDED = "bundle_emb.", "<embed>"
"""What tensors of words begin with in a LoRA file, and what metadata say of them in lora_pti's."""
OF_A_LORA = re.compile(r"^lora_|[._](lora|hada|lokr|oft)_[\w.]+|:\d+:(up|down)$|\.(alpha|dora_scale)$")
"""In the names that kohya's, diffusers', LyCORIS' and cloneofsimo's LoRAs give their tensors."""


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header and where its tensors begin; FormatError if it does not fit the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise _damaged(path, f"a header of {length} bytes")
        try:
            with safetensors.safe_open(path, "np"):  # the library checks shapes, offsets and the file's length
                header = json.loads(file.read(length))
        except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
            raise _damaged(path, shown(first_line(error))) from error
    told = header.pop("__metadata__", None) or {}
    if not all(isinstance(entry, dict) for entry in header.values()):  # the library takes lists too
        raise _damaged(path, "lists in place of names")
    return {"__metadata__": told, **header}, 8 + length


def _damaged(path: Path, reason: str) -> FormatError:
    return FormatError(f"{path} is a damaged safetensors file ({reason}); download or copy it again.")


def shown(text: str) -> str:
    """Return the beginning of what a library or a file says, as it can be shown: some of it may steer a terminal."""
    return "".join(c for c in text[:100] if c.isprintable())


def is_lora(header: Mapping[str, Any]) -> bool:
    """Whether a safetensors file is a LoRA, by the names of its tensors; a word may be called what it likes."""
    return len(header) > 1 and any(OF_A_LORA.search(name) for name in header if name != "__metadata__")


def read(path: Path, largest: int) -> Contents:
    """Read a safetensors file; of a LoRA's only the words that are bundled with it. FormatError says why not."""
    header, start = header_of(path)
    metadata: dict[str, str] = header.pop("__metadata__")
    bundled = [name for name in header if name.startswith(BUNDLED) or metadata.get(name) == EMBEDDED]
    if not bundled and is_lora(header):
        raise NoWord(f"{path} is a LoRA, and no word is bundled with it.")
    wanted = bundled or list(header)
    if len(wanted) > MOST_TENSORS:
        raise FormatError(f"{path} holds {len(wanted)} tensors; an embedding has few. Is it a model?")
    size = sum(header[name]["data_offsets"][1] - header[name]["data_offsets"][0] for name in wanted)
    if 4 * sum(math.prod(header[name]["shape"]) for name in wanted) > largest:
        raise FormatError(f"{path} has {size / 2**20:.0f} MiB; an embedding has kilobytes. Is it a model?")
    with path.open("rb") as file:
        values = {name: _array(path, file, start, name, header[name]) for name in wanted}
    dtypes = {name: header[name]["dtype"] for name in wanted}
    return Contents("safetensors", values, metadata, dtypes, others=len(header) - len(wanted))


def _array(path: Path, file: BinaryIO, start: int, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtype, (begin, end) = entry["dtype"], entry["data_offsets"]
    if dtype not in FLOATS:
        raise FormatError(f"{path} holds {name[:60]!a} as {dtype}; expected one of {', '.join(FLOATS)}.")
    if not name.isprintable():
        raise _damaged(path, f"a tensor is called {name[:60]!a}")
    file.seek(start + begin)
    try:
        return as_float32(np.frombuffer(file.read(end - begin), DTYPES[dtype]), dtype).reshape(entry["shape"])
    except (ValueError, OverflowError) as error:  # a shape of more dimensions, or larger ones, than NumPy has
        raise _damaged(path, shown(str(error))) from error


def to_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], dtype: str = "F32") -> bytes:
    """Return the content of a safetensors file, names in order: the library shuffles them, and cannot write BF16."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    content = bytearray()
    for name, array in sorted(arrays.items()):
        numbers = stored(array, dtype).tobytes()
        header[name] = _entry(dtype, array.shape, len(content), len(numbers))
        content += numbers
    return with_header(header) + content


def _entry(dtype: str, shape: Sequence[int], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def with_header(header: Mapping[str, Any]) -> bytes:
    """Return the beginning of a safetensors file, up to its tensors."""
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def copy_with(source: Path, out: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file's tensors and metadata, and more, leaving out what begins as `arrays` are bundled."""
    header, start = header_of(source)
    with source.open("rb") as file:
        told = {**header.pop("__metadata__"), **metadata}
        replaced = tuple(f"{name.rpartition('.')[0]}." for name in arrays)
        kept = {name: own for name, own in header.items() if not name.startswith(replaced)}
        order = sorted(kept, key=lambda name: kept[name]["data_offsets"])
        added = {name: np.ascontiguousarray(array, dtype="<f4") for name, array in sorted(arrays.items())}
        entries, end = dict[str, Any]({"__metadata__": told}), 0
        for name in order:
            size = kept[name]["data_offsets"][1] - kept[name]["data_offsets"][0]
            entries[name], end = _entry(kept[name]["dtype"], kept[name]["shape"], end, size), end + size
        for name, array in added.items():
            entries[name], end = _entry("F32", array.shape, end, array.nbytes), end + array.nbytes
        out.write(with_header(entries))
        for name in order:
            begin, end = kept[name]["data_offsets"]
            file.seek(start + begin)
            shutil.copyfileobj(_Part(file, end - begin), out)  # pyright: ignore[reportArgumentType]
        for array in added.values():
            out.write(array.tobytes())


class _Part:
    """The next bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def read(self, size: int) -> bytes:
        part = self.file.read(min(size, self.left))
        self.left -= len(part)
        return part
