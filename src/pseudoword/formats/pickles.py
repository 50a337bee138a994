"""PyTorch files, read without PyTorch: what their pickles describe, from the bytes that are there.

Nothing of a file is carried out (`machine.py`), and no size is believed before it is compared with the file's own.
"""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pseudoword.formats.machine import Instance, Refused, Storage, Tensor, evaluate
from pseudoword.formats.numbers import DTYPES, as_float32

LARGEST = 256 * 2**20
"""Bytes that a file's tensors may have together; an embedding has kilobytes."""
MOST_PARTS = 100_000
"""Dicts, lists, tensors, texts and numbers that are looked at; a file may refer to the same ones again and again."""
MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of files as torch wrote them before 1.6."""


def load(content: bytes) -> tuple[Any, dict[str, str]]:
    """Return what a PyTorch file holds, as dicts, lists, texts, numbers and fp32 arrays, and how these are stored.

    The latter by name, dotted where one is in another. ValueError, KeyError or what else a broken file leads to, if it
    holds more than that or less than it says.
    """
    if content[:2] != b"PK":
        return _load_legacy(content)
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
        value = evaluate(io.BytesIO(archive.read(name)))
        return _filled(value, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _load_legacy(content: bytes) -> tuple[Any, dict[str, str]]:
    """Read a file as torch wrote them before 1.6: five pickles, then each storage as its length and its numbers."""
    file = io.BytesIO(content)
    if evaluate(file) != MAGIC:
        raise Refused("is a pickle of something else than tensors")
    evaluate(file)
    evaluate(file)
    value, keys = evaluate(file), evaluate(file)
    begins: dict[str, int] = {}
    lengths = _lengths(value)
    for key in keys:
        begins[key] = file.tell() + 8
        file.seek(lengths.get(key, 0), io.SEEK_CUR)
        file.seek(8, io.SEEK_CUR)

    def read(storage: Storage) -> bytes:
        begin = begins[storage.key]
        if int.from_bytes(content[begin - 8 : begin], "little") != storage.length:
            raise Refused("says of a storage what is not so")
        return content[begin : begin + storage.length * DTYPES[storage.dtype].itemsize]

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


def _filled(value: Any, read: Callable[[Storage], bytes]) -> tuple[Any, dict[str, str]]:
    """Return the value with arrays in place of descriptions, as deep as embeddings are nested, and their types."""
    storages: dict[str, bytes] = {}
    dtypes: dict[str, str] = {}
    visits = itertools.count()

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
        flat = np.frombuffer(own, dtype=DTYPES[tensor.dtype])[tensor.offset :]
        steps = tuple(s * itemsize for s in tensor.strides)
        return as_float32(np.lib.stride_tricks.as_strided(flat, tensor.shape, steps), tensor.dtype)

    def filled(part: Any, depth: int, name: str) -> Any:
        if next(visits) > MOST_PARTS:
            raise Refused("has more parts than an embedding can have")
        if isinstance(part, Tensor):
            dtypes[name] = part.dtype
            return array(part)
        if isinstance(part, Instance) and depth:
            state = part.state[0] if isinstance(part.state, tuple) and part.state else part.state
            parameters = state.get("_parameters") if isinstance(state, Mapping) else None
            return filled(parameters, depth - 1, name)
        if isinstance(part, dict) and depth:
            return {key: filled(own, depth - 1, f"{name}.{key}" if name else str(key)) for key, own in part.items()}
        if isinstance(part, list | tuple) and depth:
            return [filled(own, depth - 1, f"{name}.{i}") for i, own in enumerate(part)]
        return part if isinstance(part, str | int | float) else None

    return filled(value, 8, ""), dtypes
