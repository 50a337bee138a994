"""The vocabulary of a Stable Diffusion base alone: tokenizer and embedding table, no other weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pseudoword.concept import encoder_of_width
from pseudoword.errors import RecipeError
from pseudoword.families import single_file
from pseudoword.families.sd import facts
from pseudoword.families.sd.single_file import embedding_table
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import Vocabulary

TABLE = "embeddings.token_embedding.weight"


def vocabularies(base: BaseModel) -> dict[str, Vocabulary]:
    """Return the vocabulary of each text encoder, reading nothing but its table; RecipeError if it is not there."""
    is_file = single_file.is_single_file(base.model)
    path = Path(base.model) if is_file else _weights(base)
    table = single_file.array(path, embedding_table(path) if is_file else _table_name(path))
    encoder = encoder_of_width(table.shape[1])
    return {encoder: Vocabulary(load_tokenizer(base), table)}


def load_tokenizer(base: BaseModel) -> Any:
    """Return the base's tokenizer, or the other one that it names; RecipeError if there is none."""
    from transformers import CLIPTokenizer

    where = base.tokenizer or base.config or base.model
    try:
        own = {"subfolder": "tokenizer", "revision": base.revision}
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


def _weights(base: BaseModel) -> Path:
    names = [f"model.{base.variant}.safetensors"] if base.variant else []
    for name in [*names, "model.safetensors"]:
        inside = f"{facts.TEXT_ENCODER}/{name}"
        path = Path(base.model) / inside if Path(base.model).is_dir() else from_hub(base, inside)
        if path is not None and path.is_file():
            return path
    raise RecipeError(f"The base {base.model!r} has no {facts.TEXT_ENCODER}/model.safetensors to read words from.")


def from_hub(base: BaseModel, name: str) -> Path | None:
    """Download one file; None if the model has none of this name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(base.model, name, revision=base.revision))
    except OSError as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise RecipeError(
            f"Cannot get {name} of {base.model!r} from the Hub ({type(error).__name__}); "
            "check the connection, or give a local folder."
        ) from error


def _table_name(path: Path) -> str:
    found = [name for name in single_file.names(path) if name.endswith(TABLE)]
    if len(found) != 1:
        raise RecipeError(f"{path} is no CLIP text encoder: it holds {len(found)} tensors named …{TABLE}.")
    return found[0]
