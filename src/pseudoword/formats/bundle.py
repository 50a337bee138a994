"""Words bundled with a LoRA: `bundle_emb.NAME.KEY` beside its tensors in a safetensors file.

A1111, SD.Next, ComfyUI and OneTrainer know them; KEY is an encoder's (`clip_l`), or what a word's own file would have
(`emb_params`, `string_to_param.*`). cloneofsimo's lora_pti instead names a tensor after its token and says `<embed>` of
it in the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.encoders import CALLED
from pseudoword.formats.names import OUTPUTS, by_width, key_for, token_of, word_of_keys
from pseudoword.formats.tensors import BUNDLED, EMBEDDED, shown

SUFFIXES: tuple[str, ...] = ()
"""A word is put into a LoRA that is there (`formats.bundle_into`)."""
ONE_ENCODER = ("emb_params", "emp_params")
PARAMETER = "string_to_param"
MOST_UNMATCHED = 12
"""Tensors of a LoRA's file that Forge may have no use for; with more, it leaves the LoRA out."""


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format."""
    told = contents.metadata
    return any(name.startswith(BUNDLED) or told.get(name) == EMBEDDED for name in contents.values)


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the words of a file."""
    del stem
    values = blocks(contents.values)
    found = [
        Word(token_of(name), by_width(rows)) for name, rows in values.items() if contents.metadata.get(name) == EMBEDDED
    ]
    bundles: dict[str, dict[str, np.ndarray]] = {}
    for key, rows in values.items():
        if key.startswith(BUNDLED):
            name, _, inner = parted(key.removeprefix(BUNDLED))
            bundles.setdefault(name, {})[inner] = rows
    return found + [_word(name, parts, contents.metadata) for name, parts in bundles.items()]


def parted(name: str) -> tuple[str, str, str]:
    """Return a bundled tensor's word and key: a word's name may have dots, a key's only after `string_to_param`."""
    word, dot, term = name.partition(f".{PARAMETER}.")
    return (word, dot, PARAMETER) if dot and term else name.rpartition(".")


def _word(name: str, parts: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Word:
    told = _told(metadata.get(f"{BUNDLED}{name}", ""))
    left = tuple(f"{BUNDLED}{shown(name)}.{key}" for key in sorted(OUTPUTS & set(parts)))
    alone = [rows for key, rows in parts.items() if key in (*ONE_ENCODER, PARAMETER)]
    if alone:
        return Word(token_of(name), by_width(alone[0]), told, left)
    keyed = {key: rows for key, rows in parts.items() if key in CALLED}
    if list(keyed) == ["clip_l"]:  # what OneTrainer calls the one encoder of Stable Diffusion 2.x too
        return Word(token_of(name), by_width(keyed["clip_l"]), told, left)
    return word_of_keys(token_of(name), keyed, told, left)


def _told(text: str) -> dict[str, str]:
    """Return what we wrote about a word into a LoRA's metadata."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {k: v for k, v in told.items() if isinstance(v, str)} if isinstance(told, dict) else {}


def a1111_drops(concept: Concept) -> bool:
    """Whether A1111 leaves out a LoRA with this word: it takes rows of one text encoder, or those of SDXL's two."""
    return len(concept.rows) > 1 and not {"clip_l", "clip_g"} <= set(concept.rows)


def refuses(concept: Concept) -> str | None:
    """Every word can be written so."""
    del concept


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the tensors to add to a LoRA's, under the keys that ComfyUI looks for; A1111 and SD.Next look at none."""
    rows = {f"{BUNDLED}{name}.{key_for('comfyui', encoder)}": block for encoder, block in concept.rows.items()}
    return {key: np.asarray(block) for key, block in rows.items()}
