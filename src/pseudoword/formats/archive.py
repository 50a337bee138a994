"""PyTorch files, written without PyTorch: a zip of a pickle and of each tensor's numbers.

Such a file has only the records `data.pkl`, `version` and `data/N`. Newer versions of `torch.save` add `byteorder`,
`.format_version` and others, for which A1111 refuses a file (`modules/safe.py`); no reader needs them.
Equal values give equal bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pseudoword.contents import Parameters
from pseudoword.formats.numbers import stored

ROOT = "archive"
"""The folder of all records, as torch calls it in a file without a name. Readers take whatever it is called."""
ALIGNMENT = 64
"""Numbers begin at a multiple of it, as torch writes them, so that a file can be mapped into memory."""
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I64": "LongStorage"}
"""What a pickle calls storages; all of them are on A1111's list."""
PROTOCOL, STOP = b"\x80\x02", b"."
NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"
MARK, TUPLE, EMPTY_TUPLE, EMPTY_DICT, SET_ITEMS = b"(", b"t", b")", b"}", b"u"
REDUCE, NEW_OBJECT, BUILD, PERSISTENT = b"R", b"\x81", b"b", b"Q"
INT, LONG, FLOAT, TEXT = b"J", b"\x8a", b"G", b"X"
MODULE_STATE = ("_buffers", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_modules")
"""Empty parts of a torch module; what else one has, `torch.nn.Module.__setstate__` adds itself."""


def to_bytes(values: Mapping[str, Any], dtype: str = "F32") -> bytes:
    """Return the content of a PyTorch file: dicts, texts, numbers and arrays, of which floats are stored as `dtype`."""
    storages: list[bytes] = []
    description = PROTOCOL + _pickled(values, dtype, storages) + STOP
    records = {"data.pkl": description, "version": b"3\n"}
    records |= {f"data/{number}": numbers for number, numbers in enumerate(storages)}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, record in records.items():
            archive.writestr(_entry(f"{ROOT}/{name}", content.tell()), record)
    return content.getvalue()


def _entry(name: str, offset: int) -> zipfile.ZipInfo:
    """Return a record's header that says the same on every system, filled up so that the record begins aligned."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 0
    begin = offset + 30 + len(name) + 4  # the header, the name, and how an extra field begins
    padding = -begin % ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding  # "FB" is torch's own mark of padding
    return entry


def _pickled(part: Any, dtype: str, storages: list[bytes]) -> bytes:
    """Return what a pickle says of a value; a tensor's numbers are added to the storages."""
    if isinstance(part, Parameters):
        return _parameter_dict(part, dtype, storages)
    if isinstance(part, Mapping):
        return _dict((str(key), _pickled(inner, dtype, storages)) for key, inner in part.items())
    if isinstance(part, np.ndarray):
        return _tensor(part, dtype, storages)
    if part is None:
        return NONE
    if isinstance(part, bool):
        return TRUE if part else FALSE
    if isinstance(part, int):
        return _integer(part)
    if isinstance(part, float):
        return FLOAT + struct.pack(">d", part)
    assert isinstance(part, str), f"a {type(part).__name__} has no place in an embedding file"
    return _text(part)


def _parameter_dict(parameters: Parameters, dtype: str, storages: list[bytes]) -> bytes:
    """Return a torch.nn.ParameterDict: its parameters, and their names, which torch keeps apart since 1.12."""
    pickled = []
    for name, array in parameters.items():
        arguments = _tuple(_tensor(array, dtype, storages), TRUE, _ordered_dict())
        pickled.append((name, _call("torch._utils", "_rebuild_parameter", arguments)))
    state = [("training", TRUE), ("_parameters", _dict(pickled))]
    state += [(name, EMPTY_DICT) for name in MODULE_STATE]
    state += [("_keys", _dict((name, NONE) for name in parameters))]
    return _global("torch.nn.modules.container", "ParameterDict") + EMPTY_TUPLE + NEW_OBJECT + _dict(state) + BUILD


def _tensor(array: np.ndarray, dtype: str, storages: list[bytes]) -> bytes:
    """Return a tensor: where its numbers are, its shape and its strides."""
    kind = dtype if array.dtype.kind == "f" else "I64"
    numbers = stored(array, kind)
    key = str(len(storages))
    storages.append(numbers.tobytes())
    storage = _tuple(
        _text("storage"), _global("torch", STORAGES[kind]), _text(key), _text("cpu"), _integer(numbers.size)
    )
    strides = []
    step = 1
    for length in reversed(array.shape):
        strides.insert(0, _integer(step))
        step *= length
    shape = [_integer(length) for length in array.shape]
    view = _tuple(storage + PERSISTENT, _integer(0), _tuple(*shape), _tuple(*strides), FALSE, _ordered_dict())
    return _call("torch._utils", "_rebuild_tensor_v2", view)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return _global(module, name) + arguments + REDUCE


def _ordered_dict() -> bytes:
    """Return an empty one; torch keeps hooks there."""
    return _call("collections", "OrderedDict", EMPTY_TUPLE)


def _tuple(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + TUPLE


def _dict(entries: Iterable[tuple[str, bytes]]) -> bytes:
    return EMPTY_DICT + MARK + b"".join(_text(name) + part for name, part in entries) + SET_ITEMS


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")  # as Python's own pickles have half characters
    return TEXT + struct.pack("<I", len(content)) + content


def _integer(number: int) -> bytes:
    if -(2**31) <= number < 2**31:
        return INT + struct.pack("<i", number)
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return LONG + bytes([len(content)]) + content
