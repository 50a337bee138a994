"""The original implementation's .pt (rinongal/textual_inversion): a ParameterDict of rows under their placeholders.

Files of several placeholders are the same; A1111's have one term, "*", and a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Parameters, Word, blocks
from pseudoword.formats.names import STAR, by_width, refuses_several_encoders, token_of

SUFFIXES: tuple[str, ...] = (".pt",)


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format."""
    terms = contents.values.get("string_to_param")
    return isinstance(terms, Mapping) and bool(blocks(terms))


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's words; one that is called "*", as in the paper, is called as the file."""
    terms = blocks(contents.values["string_to_param"])
    return [Word(token_of(stem if term == "*" else term), by_width(rows)) for term, rows in terms.items()]


def refuses(concept: Concept) -> str | None:
    """Say why a word cannot be written so; None if it can."""
    return refuses_several_encoders(concept)


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values."""
    del name
    [rows] = concept.rows.values()
    ids = np.array(STAR, dtype=np.int64)  # it replaces this id in prompts, so the word must be a token that CLIP has
    return {"string_to_token": {"*": ids}, "string_to_param": Parameters({"*": np.asarray(rows)})}
