"""kohya's `emb_params` and, for several text encoders, one tensor under each encoder's name.

A1111/Forge, ComfyUI, InvokeAI and kohya's own tools read both; the trigger there is the file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudoword.concept import ENCODER_OF_WIDTH, Concept, encoder_of_width

ENCODERS = frozenset(ENCODER_OF_WIDTH.values())


def owns(tensors: Mapping[str, Any]) -> bool:
    """Whether a file's content is of this format."""
    named = set(tensors) == {"emb_params"} or (bool(tensors) and set(tensors) <= ENCODERS)
    return named and all(isinstance(v, np.ndarray) and v.ndim == 2 for v in tensors.values())


def read(tensors: Mapping[str, Any], stem: str) -> tuple[str, dict[str, np.ndarray]]:
    """Return token and rows; the file does not say the token, its name does, spaces as hyphens."""
    stem = "-".join(stem.split())
    if "emb_params" in tensors:
        rows = tensors["emb_params"]
        return stem, {encoder_of_width(rows.shape[1]): rows}
    return stem, dict(tensors)


def write(concept: Concept) -> dict[str, np.ndarray]:
    """Return the file's tensors."""
    if len(concept.rows) == 1:
        return {"emb_params": np.asarray(next(iter(concept.rows.values())))}
    return {encoder: np.asarray(rows) for encoder, rows in concept.rows.items()}
