"""The vocabularies of a Stable Diffusion XL base alone: tokenizers and embedding tables, no other weights."""

from __future__ import annotations

from pathlib import Path

from pseudoword.families import clip_words, single_file
from pseudoword.families.sdxl import facts
from pseudoword.families.sdxl.single_file import TABLES, checked
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import Vocabulary


def vocabularies(base: BaseModel) -> dict[str, Vocabulary]:
    """Return the vocabulary of each text encoder, reading nothing but its table; RecipeError if it is not there."""
    if single_file.is_single_file(base.model):
        path = Path(base.model)
        checked(path, single_file.names(path))
        tables = {encoder: single_file.array(path, name) for encoder, name in TABLES.items()}
    else:
        tables = {encoder: clip_words.table(base, folder) for encoder, folder in facts.ENCODERS.items()}
    return {
        encoder: Vocabulary(clip_words.load_tokenizer(base, facts.TOKENIZERS[encoder]), table)
        for encoder, table in tables.items()
    }
