"""What files call text encoders, and words."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from pseudoword.concept import ENCODER_OF_WIDTH
from pseudoword.errors import FormatError

ENCODERS = {name: name for name in ENCODER_OF_WIDTH.values()} | {"t5xxl": "t5"}
"""Text encoders by the keys of files; ComfyUI calls T5-XXL t5xxl, OneTrainer calls it t5."""
STAR = 265
"""The id of "*" in CLIP's vocabulary, under which the original learns a word, and A1111 files it."""
OUTPUTS = frozenset(f"{name}_out" for name in (*ENCODERS, "emp_params"))
"""OneTrainer's rows for the outputs of text encoders."""


def stem_of(token: str) -> str:
    """Return a file stem that every tool can trigger on: no brackets, spaces or slashes."""
    return re.sub(r"[^\w.-]+", "-", token).strip("-.") or "word"


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
