"""diffusers: one tensor `[vectors, width]` under the token; older files of the concepts library are 1-D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudoword.concept import Concept, encoder_of_width


def owns(tensors: Mapping[str, Any]) -> bool:
    """Whether a file's content is of this format (diffusers' loader: exactly one key, an array)."""
    return len(tensors) == 1 and all(isinstance(v, np.ndarray) and v.ndim in (1, 2) for v in tensors.values())


def read(tensors: Mapping[str, Any], stem: str) -> tuple[str, dict[str, np.ndarray]]:
    """Return token and rows."""
    del stem
    [(token, rows)] = tensors.items()
    rows = np.atleast_2d(rows)
    return token, {encoder_of_width(rows.shape[1]): rows}


def write(concept: Concept) -> dict[str, np.ndarray]:
    """Return the file's tensors; a word of several text encoders has no such file."""
    [rows] = concept.rows.values()
    return {concept.token: np.asarray(rows)}
