"""OneTrainer: `emp_params`, or a tensor under each text encoder's name; `*_out` are rows for the encoders' outputs."""

from __future__ import annotations

from typing import Any

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.errors import FormatError
from pseudoword.formats.names import ENCODERS, OUTPUTS, by_encoder, by_key, by_width, token_of

SUFFIXES: tuple[str, ...] = (".safetensors", ".pt")


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format: what kohya's files have not."""
    names = set(contents.values)
    inputs = names - OUTPUTS
    return bool(names) and (inputs == {"emp_params"} or inputs <= set(ENCODERS))


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's word; what acts on the encoders' outputs has no place in it."""
    values = blocks(contents.values)
    left = tuple(sorted(OUTPUTS & set(contents.values)))
    if len(left) == len(contents.values):
        raise FormatError(f"{', '.join(left)} act on what text encoders give out, and there is no word beside them.")
    if "emp_params" in values:
        rows = values["emp_params"]
        return [Word(token_of(stem), by_width(rows), left=left)]
    return [Word(token_of(stem), by_encoder({k: v for k, v in values.items() if k in ENCODERS}), left=left)]


def refuses(concept: Concept) -> str | None:
    """Every word can be written so."""
    del concept


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values."""
    del name
    return by_key(concept, alone="emp_params", t5="t5")
