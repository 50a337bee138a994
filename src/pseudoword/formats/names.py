"""What files call text encoders, and words."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from pseudoword.concept import ENCODER_OF_WIDTH, Concept, encoder_of_width
from pseudoword.contents import Container
from pseudoword.errors import FormatError

ENCODERS = {name: name for name in ENCODER_OF_WIDTH.values()} | {"t5xxl": "t5"}
"""Text encoders by the keys of files; ComfyUI calls T5-XXL t5xxl, OneTrainer calls it t5."""
STAR = 265
"""The id of "*" in CLIP's vocabulary, under which the original learns a word, and A1111 files it."""
OUTPUTS = frozenset(f"{name}_out" for name in (*ENCODERS, "emp_params"))
"""OneTrainer's rows for the outputs of text encoders."""
ALONE = ("clip_l", "clip_h")
"""Text encoders of bases that have just this one."""
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


def by_encoder(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows by text encoder from rows by a file's keys; FormatError if two keys mean one encoder differently."""
    rows: dict[str, np.ndarray] = {}
    for key, block in values.items():
        encoder = ENCODERS[key]
        if encoder in rows and not np.array_equal(rows[encoder], block):
            raise FormatError("rows for t5 and for t5xxl differ, though both names mean one encoder; delete one.")
        rows[encoder] = block
    return rows


def by_width(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows whose file does not say for which text encoder they are, by the one of their width."""
    return {encoder_of_width(rows.shape[1]): rows}


def by_key(concept: Concept, alone: str, t5: str) -> dict[str, np.ndarray]:
    """Return a word's rows by the keys of files: `alone` for the encoder of a base with one, `t5` for T5."""
    if len(concept.rows) == 1 and next(iter(concept.rows)) in ALONE:
        return {alone: np.asarray(next(iter(concept.rows.values())))}
    return {t5 if encoder == "t5" else encoder: np.asarray(rows) for encoder, rows in concept.rows.items()}


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
