"""diffusers: one tensor `[vectors, width]` under the token; older files of the concepts library are 1-D.

Scripts that learn several words at once leave one tensor under each token; diffusers' own loader takes one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.formats.names import by_width, refuses_several_encoders, token_of
from pseudoword.placeholder import is_key

SUFFIXES: tuple[str, ...] = (".safetensors", ".bin", ".pt")
MOST_VECTORS = 75
"""Of a word among several; as many as a prompt has room for."""
BRACKETS = ("<>", "[]", "{}", "()")


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format: one tensor, whatever it is called, or several under tokens."""
    rows = blocks(contents.values)
    return len(rows) == len(contents.values) and (len(rows) == 1 or are_words(rows))


def are_words(values: Mapping[str, np.ndarray]) -> bool:
    """Whether tensors of several names are words: short, of one width, and one of them in brackets as tokens are."""
    alike = len({rows.shape[1] for rows in values.values()}) == 1
    short = all(0 < len(rows) <= MOST_VECTORS for rows in values.values())
    bracketed = any(name[:1] + name[-1:] in BRACKETS and len(name) > 2 for name in values)
    return alike and short and bracketed and not any("." in name or is_key(name) for name in values)


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's words; a tensor without a name is called as the file."""
    words = _joined(blocks(contents.values))
    return [Word(token or token_of(stem), by_width(rows)) for token, rows in words.items()]


def _joined(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows by word: `<t>`, `<t>_1`, … of one vector each are the vectors of one, as diffusers calls them."""
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in values}
    for name in sorted(values, key=lambda name: (len(name), name)):
        word, _, number = name.rpartition("_")
        before = vectors.get(word, [])
        is_next = number == str(len(before)) and len(values[name]) == 1 and len(values.get(word, ())) == 1
        vectors[word if is_next else name].append(values[name])
    return {name: np.concatenate(rows) for name, rows in vectors.items() if rows}


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
