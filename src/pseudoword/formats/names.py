"""What files call text encoders, and words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from pseudoword import encoders
from pseudoword.concept import Concept
from pseudoword.contents import Container, Word
from pseudoword.encoders import ALONE, CALLED, encoder_of_width
from pseudoword.errors import FormatError

STAR = 265
"""The id of "*" in CLIP's vocabulary, under which the original learns a word, and A1111 files it."""
OUTPUTS = frozenset(f"{name}_out" for name in (*CALLED, "emp_params"))
"""OneTrainer's rows for the outputs of text encoders."""
UNMISTAKABLE = ("clip_l", "clip_h", "clip_g", "t5", "t5xxl")
"""Keys that are no words; a lone tensor called `llama` may as well be a word of that name."""
PICTURES = (".png", ".webp", ".jxl", ".avif")
"""How pictures end that A1111 looks for words in."""
LONGEST_STEM = 150
"""Bytes; disks take 255 for a name, with its ending and what a temporary file has besides."""


def container_of(suffix: str) -> Container:
    """Return what kind of file one with this ending is, where it is what it says."""
    if suffix in PICTURES:
        return "picture"
    return "safetensors" if suffix == ".safetensors" else "pickle"


def stem_of(token: str) -> str:
    """Return a stem for a word's own folder, close to its token: no brackets, spaces or slashes. See `safe_stem`."""
    short = re.sub(r"[^\w.-]+", "-", token).encode()[:LONGEST_STEM].decode(errors="ignore")
    return short.strip("-.") or "word"


def refuses_several_encoders(concept: Concept) -> str | None:
    """Say why a word for several text encoders cannot be written in a format that has one."""
    return "holds rows of one text encoder" if len(concept.rows) > 1 else None


def token_of(name: str) -> str:
    """Return a file's or a word's name as a token: spaces as hyphens."""
    return "-".join(name.split())


def are_keys(values: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays are called as text encoders are, and are not words of such names."""
    if not values or not set(values) <= set(CALLED):
        return False
    if len(values) > 1:
        return True
    [(name, rows)] = values.items()
    return name in UNMISTAKABLE or rows.shape[-1] in encoders.BY_KEY[CALLED[name]].bases


def word_of_keys(
    token: str, values: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, left: tuple[str, ...] = ()
) -> Word:
    """Return a word from rows by a file's keys; a key that contradicts the width of its rows is corrected.

    FormatError if two keys mean one encoder differently.
    """
    keys: dict[str, str] = {}
    for key in sorted(values):
        encoder = CALLED[key]
        if encoder in keys and not np.array_equal(values[keys[encoder]], values[key]):
            raise FormatError(
                f"rows for {keys[encoder]} and for {key} differ, though both names mean one encoder; delete one."
            )
        keys.setdefault(encoder, key)
    corrected = encoders.corrected({encoder: values[key].shape[1] for encoder, key in keys.items()})
    rows = {corrected.get(encoder, encoder): values[key] for encoder, key in keys.items()}
    meant = {keys[encoder]: instead for encoder, instead in corrected.items()}
    return Word(token, rows, metadata or {}, left, meant)


def says_key(names: Iterable[str]) -> dict[str, str]:
    """Return what a file's keys leave open, as metadata: rows for `clip_l` alone are for any base that has CLIP-L."""
    only = set(names)
    return {encoders.KEY: "clip_l"} if "clip_l" in only and only <= {"clip_l", "emp_params"} else {}


def by_width(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows whose file does not say for which text encoder they are, by the one of their width."""
    return {encoder_of_width(rows.shape[1]): rows}


def by_key(concept: Concept, tool: str, alone: str) -> dict[str, np.ndarray]:
    """Return a word's rows by the keys that a tool looks for; `alone` is that of a base with one text encoder."""
    if len(concept.rows) == 1 and next(iter(concept.rows)) in ALONE:
        return {alone: np.asarray(next(iter(concept.rows.values())))}
    return {key_for(tool, encoder): np.asarray(rows) for encoder, rows in concept.rows.items()}


def key_for(tool: str, encoder: str) -> str:
    """Return the key under which a tool looks for rows of a text encoder, or ours if it looks for none."""
    known = encoders.BY_KEY.get(encoder)
    return encoder if known is None else known.readers.get(tool, encoder)


def metadata_of(concept: Concept) -> dict[str, str]:
    """Return what a file says about the word, besides its rows."""
    from pseudoword import __version__

    own = {
        "format": "pt",
        "token": concept.token,
        "property": concept.property,
        "base": concept.base,
        "encoders": ",".join(f"{name}:{rows.shape[1]}" for name, rows in concept.rows.items()),
        "steps": str(concept.steps) if concept.steps else "",
        "version": f"pseudoword {__version__}",
    }
    return {**concept.metadata, **{k: v for k, v in own.items() if v}}
