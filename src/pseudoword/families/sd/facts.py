"""What is particular to Stable Diffusion 1.x and 2.x and needs no framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_ENCODER = "text_encoder"
"""The pipeline's folder of the text encoder."""
WORDS = {frozenset({"clip_l"}): "Stable Diffusion 1.x", frozenset({"clip_h"}): "Stable Diffusion 2.x"}
"""Which bases a word is for, by the text encoders that it has rows for."""
KIND = "Stable Diffusion 1.x or 2.x"
PIPELINE = "StableDiffusionPipeline"
"""The diffusers class that samples from such a base."""
TAGS = ("stable-diffusion", "stable-diffusion-diffusers")
"""What the Hub calls words for such a base."""
CONFIG = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
"""What configures a checkpoint in one file, besides a tokenizer."""


def owns(index: Mapping[str, Any]) -> bool:
    """Whether a pipeline's model_index.json is that of such a base."""
    return all((index.get(name) or [None])[0] for name in (TEXT_ENCODER, "unet")) and "text_encoder_2" not in index
