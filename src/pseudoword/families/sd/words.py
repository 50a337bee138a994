"""The vocabulary of a Stable Diffusion base alone: tokenizer and embedding table, no other weights, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from pseudoword.errors import RecipeError
from pseudoword.families.sd import facts
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import Vocabulary

TABLE = "embeddings.token_embedding.weight"


def vocabularies(base: BaseModel) -> dict[str, Vocabulary]:
    """Return the vocabulary of each text encoder, reading nothing but its table; RecipeError if it is not there."""
    table = _table(_weights(base))
    [encoder] = facts.encoders(table.shape[1])
    return {encoder: Vocabulary(load_tokenizer(base), table)}


def load_tokenizer(base: BaseModel) -> Any:
    """Return the base's tokenizer, or the other one that it names; RecipeError if there is none."""
    from transformers import CLIPTokenizer

    where = base.tokenizer or base.model
    try:
        own = {"subfolder": "tokenizer", "revision": base.revision}
        tokenizer = CLIPTokenizer.from_pretrained(where, **({} if base.tokenizer else own))
    except (OSError, ValueError) as error:
        raise RecipeError(f"Cannot load a CLIP tokenizer from {where!r}.") from error
    if len(tokenizer) < 256 or tokenizer.model_max_length > 10**6:  # transformers makes up what files do not say
        raise RecipeError(
            f"The CLIP tokenizer of {where!r} is not complete: vocabulary or model_max_length is missing."
        )
    return tokenizer


def _weights(base: BaseModel) -> Path:
    names = [f"model.{base.variant}.safetensors"] if base.variant else []
    for name in [*names, "model.safetensors"]:
        if Path(base.model).is_dir():
            path = Path(base.model) / facts.PARTS["clip_l"] / name
            if path.is_file():
                return path
        elif path := _from_hub(base, f"{facts.PARTS['clip_l']}/{name}"):
            return path
    raise RecipeError(f"The base {base.model!r} has no {facts.PARTS['clip_l']}/model.safetensors to read words from.")


def _from_hub(base: BaseModel, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base.model, name, revision=base.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError):
        return None


def _table(path: Path) -> np.ndarray:
    def read(framework: str) -> Any:
        with safe_open(path, framework=framework) as file:
            [name] = [key for key in file.keys() if key.endswith(TABLE)]  # noqa: SIM118 (not a dict)
            return file.get_tensor(name)

    try:
        return read("np").astype(np.float32)
    except (TypeError, AttributeError):  # bfloat16, which NumPy does not have
        return read("pt").float().numpy()
