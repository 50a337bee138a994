"""What is in an embedding file: named values, and the words that a format makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Container = Literal["safetensors", "pickle", "picture"]


@dataclass(frozen=True)
class Contents:
    """What a file holds before anything is made of it."""

    container: Container
    values: Mapping[str, Any]
    """fp32 arrays by name; a pickle or a picture may have dicts, texts and numbers among them."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What a safetensors file says about itself."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """How arrays are stored (F32, F16, BF16, …), by name; empty for a picture, whose numbers are text."""
    records: tuple[str, ...] = ()
    """Names of the records of a PyTorch file's zip; none in files as torch wrote them before 1.6."""
    classes: frozenset[str] = frozenset()
    """What a PyTorch file's pickles name: `torch.FloatStorage`, …"""
    others: int = 0
    """Tensors that were not read, because words are bundled with them: a LoRA's."""


@dataclass(frozen=True)
class Word:
    """What one format makes of a file: a word that is not checked yet."""

    token: str
    rows: Mapping[str, np.ndarray]
    """`[vectors, width]` per text encoder."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    """Names of what the file has besides, for which a word has no place."""
    corrected: Mapping[str, str] = field(default_factory=dict)
    """Keys that contradict the width of their rows, and the text encoder that these are for."""


class Parameters(dict[str, np.ndarray]):
    """Arrays by name that a PyTorch file has as a ParameterDict."""


def blocks(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return those of the values that are rows, `[vectors, width]` or, as one vector, `[width]`."""
    return {name: np.atleast_2d(v) for name, v in values.items() if isinstance(v, np.ndarray) and v.ndim in (1, 2)}
