"""Embedding files as bytes: what is in one, whatever its extension says, and how one is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword.contents import Container, Contents
from pseudoword.errors import FormatError, NoWord, first_line
from pseudoword.formats import archive, pickles, pictures, tensors

LARGEST = pickles.LARGEST
PICTURE_STARTS = (b"\x89PNG", b"RIFF", b"\xff\x0a", b"\0\0\0\x0cJXL", b"\0\0\0\x1cftypavif", b"\0\0\0\x20ftypavif")
"""How PNG, WebP, JPEG XL and AVIF begin."""


def open_file(path: Path) -> Contents:
    """Return what a file holds, without carrying out anything of it; FormatError says why it is no embedding."""
    if not path.is_file():
        raise FormatError(f"There is no file {str(path)!r}.")
    size = path.stat().st_size
    if size == 0:
        raise FormatError(f"{path} is empty; an embedding has kilobytes. Download or copy it again.")
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":
        return tensors.read(path, LARGEST)
    if size > LARGEST:
        raise FormatError(f"{path} has {size / 2**20:.0f} MiB; an embedding has kilobytes. Is it a model?")
    if start.startswith(PICTURE_STARTS):
        return _open_picture(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _open_pickle(path)
    raise FormatError(
        f"{path} is no safetensors or PyTorch file, nor a picture that holds a word; an embedding is one of them."
    )


def _open_pickle(path: Path) -> Contents:
    content, classes = path.read_bytes(), set[str]()
    try:
        loaded, dtypes = pickles.load(content, classes)
    except pickles.Refused as error:
        raise FormatError(
            f"{path} is not read, because it {error}. Tensors alone are read, and nothing is carried out; "
            "get the word as .safetensors."
        ) from error
    except Exception as error:  # whatever a file that is cut off, damaged or made up leads to
        raise FormatError(
            f"{path} is a damaged PyTorch file ({tensors.shown(first_line(error))}); download or copy it again."
        ) from error
    if isinstance(loaded, np.ndarray):
        loaded = {"": loaded}
    if not isinstance(loaded, dict):
        raise FormatError(f"{path} holds a {type(loaded).__name__}, not named tensors.")
    values = {str(name): value for name, value in loaded.items()}
    return Contents("pickle", values, {}, dtypes, pickles.records(content), frozenset(classes))


def _open_picture(path: Path) -> Contents:
    try:
        return Contents("picture", pictures.load(path.read_bytes()))
    except pictures.JustPicture as error:
        raise NoWord(f"{path} is a picture that holds no word ({error}).") from error
    except Exception as error:  # Pillow, zlib, base64 and json each raise their own for what is damaged
        raise FormatError(
            f"{path} is a picture whose word, if it holds one, cannot be read ({tensors.shown(first_line(error))})."
        ) from error


def to_bytes(
    values: Mapping[str, Any], container: Container, metadata: Mapping[str, str], dtype: str = "F32", title: str = ""
) -> bytes:
    """Return a file's content; only safetensors files have a place for the metadata, and pictures no dtype."""
    if container == "safetensors":
        return tensors.to_bytes(values, metadata, dtype)
    if container == "picture":
        return pictures.to_bytes(values, title)
    return archive.to_bytes(values, dtype)
