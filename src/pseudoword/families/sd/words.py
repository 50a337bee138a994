"""The vocabulary of a Stable Diffusion base alone: tokenizer and embedding table, no other weights."""

from __future__ import annotations

from pathlib import Path

from pseudoword.encoders import encoder_of_width
from pseudoword.families import clip_words, single_file
from pseudoword.families.sd import facts
from pseudoword.families.sd.single_file import embedding_table
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import Vocabulary


def vocabularies(base: BaseModel) -> dict[str, Vocabulary]:
    """Return the vocabulary of each text encoder, reading nothing but its table; RecipeError if it is not there."""
    if single_file.is_single_file(base.model):
        path = Path(base.model)
        table = single_file.array(path, embedding_table(path))
    else:
        table = clip_words.table(base, facts.TEXT_ENCODER)
    return {encoder_of_width(table.shape[1]): Vocabulary(clip_words.load_tokenizer(base), table)}
