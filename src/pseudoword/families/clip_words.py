"""CLIP's vocabulary of a base: tokenizers and embedding tables read alone, from a folder, the Hub or one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword.errors import RecipeError
from pseudoword.families import single_file
from pseudoword.families.configurations import from_hub
from pseudoword.recipe import BaseModel

TABLE = "embeddings.token_embedding.weight"


def table(base: BaseModel, folder: str) -> np.ndarray:
    """Return the embedding table of the text encoder in a folder of a base, reading no other weights."""
    path = _weights(base, folder)
    found = [name for name in single_file.names(path) if name.endswith(TABLE)]
    if len(found) != 1:
        raise RecipeError(f"{path} is no CLIP text encoder: it holds {len(found)} tensors named …{TABLE}.")
    return single_file.array(path, found[0])


def load_tokenizer(base: BaseModel, folder: str = "tokenizer") -> Any:
    """Return a tokenizer of the base, or the other one that it names; RecipeError if there is none."""
    from transformers import CLIPTokenizer

    where = base.tokenizer or base.config or base.model
    try:
        own = {"subfolder": folder, "revision": base.revision}
        tokenizer = CLIPTokenizer.from_pretrained(where, **({} if base.tokenizer else own))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"Cannot load a CLIP tokenizer from {where!r}; give a folder or Hub id that has one."
        ) from error
    if len(tokenizer) < 256 or tokenizer.model_max_length > 10**6:  # transformers makes up what files do not say
        raise RecipeError(
            f"The CLIP tokenizer of {where!r} is not complete: vocabulary or model_max_length is missing."
        )
    return tokenizer


def _weights(base: BaseModel, folder: str) -> Path:
    """Return the file that holds a text encoder's table: its weights, or the one of several that an index names."""
    for suffix in (f".{base.variant}", "") if base.variant else ("",):
        if whole := _file(base, f"{folder}/model{suffix}.safetensors"):
            return whole
        if index := _file(base, f"{folder}/model.safetensors.index{suffix}.json"):
            try:
                names = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (ValueError, KeyError, TypeError):  # a damaged index names nothing
                continue
            parts = [_file(base, f"{folder}/{part}") for name, part in names.items() if name.endswith(TABLE)]
            if parts and parts[0]:
                return parts[0]
    raise RecipeError(f"The base {base.model!r} has no {folder}/model.safetensors to read words from.")


def _file(base: BaseModel, inside: str) -> Path | None:
    path = Path(base.model) / inside if Path(base.model).is_dir() else from_hub(base, inside)
    return path if path is not None and path.is_file() else None
