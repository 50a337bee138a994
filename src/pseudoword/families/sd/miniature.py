"""A miniature of the family: random weights in the real classes, in diffusers layout, for tests in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from pseudoword.families.clip_miniature import clip_tokenizer, text_encoder, vae


def write(
    folder: Path | str,
    *,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    dtype: torch.dtype = torch.float32,
    width: int = 32,
    max_length: int = 77,
    seed: int = 0,
) -> Path:
    """Write a base of random weights to `folder` and return it: 16-pixel pictures, factor 2, three layers of text."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer(max_length)
    text = text_encoder(CLIPTextModel, tokenizer, width)
    unet: Any = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    parts = {"unet": unet.to(dtype), "vae": vae().to(dtype), "text_encoder": text.to(dtype)}
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        steps_offset=1,
        clip_sample=False,
    )
    pipeline = StableDiffusionPipeline(
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
        **parts,
    )
    pipeline.save_pretrained(folder)
    return Path(folder)
