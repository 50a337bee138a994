"""Bases of real architectures with random weights and a tokenizer of 49,408 tokens: speed needs no download."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from guide_baseline import written_base
from transformers import CLIPTextConfig, CLIPTextModel

from pseudoword.families.clip_miniature import clip_tokenizer

TABLE = 49_408
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL_UNET = {"block_out_channels": (64, 128, 128, 128), "attention_head_dim": 8, "norm_num_groups": 16}
UNETS: dict[str, Mapping[str, Any]] = {"sd15": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}}
UNETS["sd15-small"] = SMALL_UNET
VAES: dict[str, Mapping[str, Any]] = {
    "sd15": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "sd15-small": {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8},
}
RESOLUTIONS = {"toybox": 64, "sd15": 512, "sd15-small": 128}
"""Of the pictures, in pixels; the text encoder of `sd15-small` is CLIP-L with its whole table, the UNet is not."""


def written(geometry: str, folder: Path) -> Path:
    """Write a base to a folder in diffusers' layout, once, and return it."""
    if geometry == "toybox":
        return written_base(folder)
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(size=TABLE)
    unet: Any = UNet2DConditionModel(
        sample_size=RESOLUTIONS[geometry] // 8, cross_attention_dim=CLIP_L["hidden_size"], **UNETS[geometry]
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae: Any = AutoencoderKL(latent_channels=4, sample_size=RESOLUTIONS[geometry], **blocks, **VAES[geometry])
    text: Any = CLIPTextModel(
        CLIPTextConfig(vocab_size=TABLE, eos_token_id=tokenizer.eos_token_id, **CLIP_L)  # pyright: ignore[reportArgumentType]
    )
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
        unet=unet,
        vae=vae,
        text_encoder=text,
    ).save_pretrained(work)
    work.rename(folder)
    return folder
