"""kohya's `emb_params` and, for several text encoders, one tensor under each encoder's name.

A1111/Forge, ComfyUI, InvokeAI and kohya's own tools read both; the trigger there is the file's name. T5 is written as
`t5xxl`, as ComfyUI looks for it. The files of diffusers' pivotal tuning, with `text_encoders_0` and `_1`, are read too.
"""

from __future__ import annotations

from typing import Any

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.formats.names import are_keys, by_key, by_width, says_key, token_of, word_of_keys

SUFFIXES: tuple[str, ...] = (".safetensors", ".pt", ".bin", ".png")
PIVOTAL = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
"""Keys of diffusers' first pivotal tuning (PR 4903)."""


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format."""
    names, rows = set(contents.values), blocks(contents.values)
    known = names == {"emb_params"} or (bool(names) and names <= set(PIVOTAL)) or are_keys(rows)
    return known and len(rows) == len(names)


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's word; the file does not say its token, its name does."""
    values = {PIVOTAL.get(name, name): rows for name, rows in blocks(contents.values).items()}
    if "emb_params" in values:
        rows = values["emb_params"]
        return [Word(token_of(stem), by_width(rows))]
    return [word_of_keys(token_of(stem), values, says_key(contents.values))]


def refuses(concept: Concept) -> str | None:
    """Every word can be written so."""
    del concept


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values."""
    del name
    return by_key(concept, "comfyui", alone="emb_params")
