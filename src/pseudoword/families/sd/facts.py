"""What is particular to Stable Diffusion 1.x and 2.x and needs no framework."""

from __future__ import annotations

TEXT_ENCODER = "text_encoder"
"""The pipeline's folder of the text encoder."""
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
