"""PyTorch files, read without PyTorch: what their pickles describe, from the bytes that are there.

Nothing of a file is carried out (`machine.py`), and no size is believed before it is compared with the file's own.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pseudoword.contents import Parameters
from pseudoword.formats.machine import Instance, Refused, Storage, Tensor, evaluate
from pseudoword.formats.numbers import DTYPES, as_float32

LARGEST = 32 * 2**20
"""Bytes that a file, and its tensors and texts as they are read, may have; an embedding has kilobytes."""
LARGEST_PICKLE = 8 * 2**20
"""Bytes of what describes the tensors."""
MOST_PARTS = 10_000
"""Dicts, lists, tensors, texts and numbers; an embedding has dozens."""
MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of files as torch wrote them before 1.6."""


def load(content: bytes, named: set[str] | None = None) -> tuple[Any, dict[str, str]]:
    """Return what a PyTorch file holds, as dicts, lists, texts, numbers and fp32 arrays, and how these are stored.

    The latter by name, dotted where one is in another. What the pickles name is added to `named`. ValueError, KeyError
    or what else a broken file leads to, if it holds more than that or less than it says.
    """
    if content[:2] != b"PK":
        return _load_legacy(content, named)
    if content.count(b"PK\x01\x02") > MOST_PARTS:  # each begins an entry in the table, of 46 bytes and more
        raise Refused("has more parts than an embedding can have")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Refused("is compressed, which PyTorch's files are not")
        if sum(member.file_size for member in members) > LARGEST:
            raise Refused("unpacks to more than an embedding can have")
        [name] = [member.filename for member in members if member.filename.split("/")[1:] == ["data.pkl"]]
        root = name.removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder") if f"{root}byteorder" in archive.namelist() else b"little"
        if order != b"little":
            raise Refused("was written by a machine of the other byte order")
        with archive.open(name) as file:
            value = evaluate(io.BytesIO(file.read(LARGEST_PICKLE)), named)
        return _filled(value, lambda storage: archive.read(f"{root}data/{storage.key}"))


def records(content: bytes) -> tuple[str, ...]:
    """Return the names of the records of a file that `load` has read; none if it is no zip."""
    if content[:2] != b"PK":
        return ()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return tuple(archive.namelist())


def _load_legacy(content: bytes, named: set[str] | None) -> tuple[Any, dict[str, str]]:
    """Read a file as torch wrote them before 1.6: five pickles, then each storage as its length and its numbers."""
    file = io.BytesIO(content[:LARGEST_PICKLE])
    if evaluate(file, named) != MAGIC:
        raise Refused("is a pickle of something else than tensors")
    evaluate(file, named)
    evaluate(file, named)
    value, keys = evaluate(file, named), evaluate(file, named)
    begins: dict[str, int] = {}
    lengths = _lengths(value)
    for key in map(str, keys):
        begins[key] = file.tell() + 8
        file.seek(lengths.get(key, 0), io.SEEK_CUR)
        file.seek(8, io.SEEK_CUR)

    def read(storage: Storage) -> memoryview:  # no copy: storages could be made to lie in one another
        begin = begins[storage.key]
        if int.from_bytes(content[begin - 8 : begin], "little") != storage.length:
            raise Refused("says of a storage what is not so")
        return memoryview(content)[begin : begin + storage.length * DTYPES[storage.dtype].itemsize]

    return _filled(value, read)


def _lengths(value: Any) -> dict[str, int]:
    """Return the bytes of each storage that a value refers to."""
    found = {}
    for part in _parts(value):
        if isinstance(part, Tensor):
            found[part.storage.key] = part.storage.length * DTYPES[part.storage.dtype].itemsize
    return found


def _parts(value: Any) -> list[Any]:
    """Return everything in a value, each once, however often it is referred to."""
    seen: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, Instance):
            waiting.append(part.state)
    return list(seen.values())


class _Room:
    """What a file may still become; it can refer to one large part again and again."""

    def __init__(self) -> None:
        self.parts, self.bytes = MOST_PARTS, LARGEST

    def take(self, size: int) -> None:
        self.parts -= 1
        self.bytes -= size
        if self.parts < 0 or self.bytes < 0:
            raise Refused("has more parts than an embedding can have")


def _filled(value: Any, read: Callable[[Storage], bytes | memoryview]) -> tuple[Any, dict[str, str]]:
    """Return the value with arrays in place of descriptions, as deep as embeddings are nested, and their types.

    Names are texts, whatever they were. Numbers that are infinite or longer than 64 bits are left out.
    """
    storages: dict[str, bytes | memoryview] = {}
    dtypes: dict[str, str] = {}
    room = _Room()

    def array(tensor: Tensor) -> np.ndarray:
        key, itemsize = tensor.storage.key, DTYPES[tensor.dtype].itemsize
        if key not in storages:
            storages[key] = read(tensor.storage)
        own, count = storages[key], math.prod(tensor.shape)
        if len(own) != tensor.storage.length * DTYPES[tensor.storage.dtype].itemsize:
            raise Refused("says of a storage what is not so")
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True)) if count else -1
        if (tensor.offset + reach + 1) * itemsize > len(own) or count * itemsize > len(own):
            raise Refused("has a tensor that is larger than its numbers")
        room.take(count * 4)
        flat = np.frombuffer(own, dtype=DTYPES[tensor.dtype])[tensor.offset :]
        steps = tuple(s * itemsize for s in tensor.strides)
        return as_float32(np.lib.stride_tricks.as_strided(flat, tensor.shape, steps), tensor.dtype)

    def filled(part: Any, depth: int, name: str) -> Any:
        room.take(len(name.encode()))  # UnicodeEncodeError for half a character, which no file can be written with
        if isinstance(part, Tensor):
            dtypes[name] = part.dtype
            return array(part)
        if isinstance(part, Instance) and depth:
            state = part.state[0] if isinstance(part.state, tuple) and part.state else part.state
            parameters = state.get("_parameters") if isinstance(state, Mapping) else None
            own = filled(parameters, depth - 1, name)
            return Parameters(own) if isinstance(own, dict) else own
        if isinstance(part, dict) and depth:
            return {
                str(key): filled(own, depth - 1, f"{name}.{key}" if name else str(key)) for key, own in part.items()
            }
        if isinstance(part, list | tuple) and depth:
            return [filled(own, depth - 1, f"{name}.{i}") for i, own in enumerate(part)]
        if isinstance(part, str):
            room.take(len(part.encode()))
            return part
        return part if isinstance(part, int | float) and abs(part) < 2**63 else None

    return filled(value, 8, ""), dtypes
