"""What is particular to Stable Diffusion XL and needs no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pseudoword.errors import RecipeError

ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""The pipeline's folder of each text encoder, by the name that files have for it."""
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2"}
WORDS = {frozenset({"clip_l", "clip_g"}): "Stable Diffusion XL"}
"""Which bases a word is for, by the text encoders that it has rows for."""
KIND = "Stable Diffusion XL"
PIPELINE = "StableDiffusionXLPipeline"
"""The diffusers class that samples from such a base."""
TAGS = ("stable-diffusion-xl", "stable-diffusion-xl-diffusers")
"""What the Hub calls words for such a base."""
CONFIG = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "unet/config.json",
    "vae/config.json",
)
"""What configures a checkpoint in one file, besides two tokenizers."""


def owns(index: Mapping[str, Any]) -> bool:
    """Whether a pipeline's model_index.json is that of such a base."""
    return (
        all((index.get(name) or [None])[0] for name in (*ENCODERS.values(), "unet")) and "text_encoder_3" not in index
    )


def refuse_tokenizer(tokenizer: str | None) -> None:
    """Refuse another tokenizer than the base's own: there are two."""
    if tokenizer is not None:
        raise RecipeError(f"tokenizer is {tokenizer!r}, but {KIND} has two of its own, which differ; leave it out.")
