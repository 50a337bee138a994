"""Empty negative prompts, which Stable Diffusion XL may take as nothing at all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from pseudoword.errors import RecipeError
from pseudoword.families.configurations import index
from pseudoword.recipe import BaseModel
from pseudoword.vocabulary import Vocabulary


def given(
    base: BaseModel, vocabularies: Mapping[str, Vocabulary], ids: Mapping[str, np.ndarray]
) -> Float[np.ndarray, " batch"]:
    """Return 0 for each empty prompt that is to be zeros (`force_zeros_for_empty_prompt`), else 1, as diffusers."""
    nothing = {encoder: vocabulary.encode("").ids for encoder, vocabulary in vocabularies.items()}
    empty = np.logical_and.reduce([(ids[encoder] == own).all(axis=1) for encoder, own in nothing.items()])
    return np.where(empty & _zeros_for_empty(base), 0.0, 1.0).astype(np.float32)


def _zeros_for_empty(base: BaseModel) -> bool:
    try:
        return bool(index(base).get("force_zeros_for_empty_prompt", True))
    except RecipeError:  # loaded from a cache that holds parts alone
        return True
