"""OneTrainer: `emp_params`, or a tensor under each text encoder's name; `*_out` are rows for the encoders' outputs."""

from __future__ import annotations

from typing import Any

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.encoders import BY_KEY, CALLED, KEY
from pseudoword.errors import FormatError
from pseudoword.formats.names import OUTPUTS, by_key, by_width, says_key, token_of, word_of_keys

SUFFIXES: tuple[str, ...] = (".safetensors", ".pt")
BOTH = {"emp_params", "clip_l"}
"""Keys of the same rows, written where it is open whether they are for Stable Diffusion 1.x."""


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format: what kohya's files have not."""
    names = set(contents.values)
    inputs = names - OUTPUTS
    return ("emp_params" in inputs and inputs <= BOTH) or (inputs < names and inputs <= set(CALLED))


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's word; what acts on the encoders' outputs has no place in it."""
    values = blocks(contents.values)
    left = tuple(sorted(OUTPUTS & set(contents.values)))
    if len(left) == len(contents.values):
        raise FormatError(f"{', '.join(left)} act on what text encoders give out, and there is no word beside them.")
    if "emp_params" in values:
        rows = values["emp_params"]
        return [Word(token_of(stem), by_width(rows), says_key(set(values) - OUTPUTS), left=left)]
    keyed = {name: rows for name, rows in values.items() if name in CALLED}
    return [word_of_keys(token_of(stem), keyed, says_key(keyed), left)]


def refuses(concept: Concept) -> str | None:
    """Say why a word cannot be written so; None if it can."""
    unknown = [encoder for encoder in concept.rows if encoder in BY_KEY and not _trains(encoder)]
    return f"has no place for rows of {', '.join(unknown)}" if unknown else None


def _trains(encoder: str) -> bool:
    return encoder == "clip_h" or "onetrainer" in BY_KEY[encoder].readers


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values."""
    del name
    values = by_key(concept, "onetrainer", alone="emp_params")
    if concept.metadata.get(KEY) == "clip_l" and set(values) == {"emp_params"}:
        values["clip_l"] = values["emp_params"]  # it looks for this key where the base is FLUX.1
    return values
