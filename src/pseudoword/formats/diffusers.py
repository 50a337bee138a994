"""diffusers: one tensor `[vectors, width]` under the token; older files of the concepts library are 1-D."""

from __future__ import annotations

from typing import Any

import numpy as np

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.formats.names import by_width, refuses_several_encoders, token_of
from pseudoword.placeholder import is_key

SUFFIXES: tuple[str, ...] = (".safetensors", ".bin", ".pt")


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format (diffusers' loader: exactly one key, a tensor)."""
    return len(contents.values) == 1 and len(blocks(contents.values)) == 1


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's word; a tensor without a name is called as the file."""
    [(token, rows)] = blocks(contents.values).items()
    return [Word(token or token_of(stem), by_width(rows))]


def refuses(concept: Concept) -> str | None:
    """Say why a word cannot be written so; None if it can."""
    if is_key(concept.token):
        return "would have its token for a key of another format"
    return refuses_several_encoders(concept)


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values."""
    del name
    [rows] = concept.rows.values()
    return {concept.token: np.asarray(rows)}
