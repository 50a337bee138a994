"""What an embedding file holds, and, beside a base model, how its rows compare with the vocabulary's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import families, formats, toybox
from pseudoword.families.locate import locate
from pseudoword.recipe import BaseModel


def inspect(path: str | Path, base: BaseModel | None = None) -> dict[str, Any]:
    """Return what a file is, as plain values. FormatError or TokenError says what is wrong with it or with the base."""
    file = formats.find(path)
    content, _ = formats.tensors.read(file)
    concept = formats.read(file)
    told: dict[str, Any] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "format": formats.identify(content, file),
        "token": concept.token,
        "property": concept.property,
        "vectors": concept.num_vectors,
        "widths": {encoder: rows.shape[1] for encoder, rows in concept.rows.items()},
        "norms": {encoder: _rounded(np.linalg.norm(rows, axis=1)) for encoder, rows in concept.rows.items()},
        "base": concept.base or None,
        "steps": concept.steps or None,
        "metadata": dict(concept.metadata),
    }
    if base is not None:
        base = locate(base, toybox.BASES)
        vocabularies = families.part(base.family, "words").vocabularies(base)
        told["against"] = base.model
        told["vocabulary"] = {encoder: _beside(v, v.rows_of(concept, encoder)) for encoder, v in vocabularies.items()}
    return told


def _beside(vocabulary: Any, rows: np.ndarray) -> dict[str, Any]:
    """Return the vocabulary's norms and each row's nearest words."""
    norms = np.linalg.norm(vocabulary.table, axis=1)
    nearest = [[[name, round(cosine, 4)] for name, cosine in vocabulary.nearest(row)] for row in rows]
    mean, low, high = float(norms.mean()), *np.percentile(norms, (1, 99)).tolist()
    return {
        "mean_norm": round(mean, 4),
        "usual_norms": [round(low, 4), round(high, 4)],
        "norm_ratio": _rounded(np.linalg.norm(rows, axis=1) / mean),
        "nearest": nearest,
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]
