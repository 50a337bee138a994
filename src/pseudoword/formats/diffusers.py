"""diffusers: one tensor `[vectors, width]` under the token; older files of the concepts library are 1-D."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pseudoword.concept import Concept, encoder_of_width
from pseudoword.errors import FormatError


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
    """Return the file's tensors; FormatError for a word of several text encoders, which has no such file."""
    if len(concept.rows) > 1:
        raise FormatError(
            f"A diffusers file holds rows of one text encoder, but {concept.token!r} has {', '.join(concept.rows)}; "
            "write it in the format 'kohya'."
        )
    [rows] = concept.rows.values()
    return {concept.token: np.asarray(rows)}
