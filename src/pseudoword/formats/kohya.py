"""kohya's `emb_params` and, for several text encoders, one tensor under each encoder's name.

A1111/Forge, ComfyUI, InvokeAI and kohya's own tools read both; the trigger there is the file's name. T5 is written as
`t5xxl`, as ComfyUI looks for it. The files of diffusers' pivotal tuning, with `text_encoders_0` and `_1`, are read too.
"""

from __future__ import annotations

from typing import Any

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.formats.names import ENCODERS, by_encoder, by_key, by_width, token_of

SUFFIXES: tuple[str, ...] = (".safetensors", ".pt", ".bin", ".png")
PIVOTAL = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g"}
"""Keys of diffusers' first pivotal tuning (PR 4903)."""


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format."""
    names = set(contents.values)
    known = names == {"emb_params"} or (bool(names) and (names <= set(ENCODERS) or names <= set(PIVOTAL)))
    return known and len(blocks(contents.values)) == len(names)


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's word; the file does not say its token, its name does."""
    values = {PIVOTAL.get(name, name): rows for name, rows in blocks(contents.values).items()}
    if "emb_params" in values:
        rows = values["emb_params"]
        return [Word(token_of(stem), by_width(rows))]
    return [Word(token_of(stem), by_encoder(values))]


def refuses(concept: Concept) -> str | None:
    """Every word can be written so."""
    del concept


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values."""
    del name
    return by_key(concept, alone="emb_params", t5="t5xxl")
