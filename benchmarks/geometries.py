"""Bases of real architectures with random weights and a tokenizer of 49,408 tokens: speed needs no download."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from guide_baseline import written_base
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pseudoword.families.clip_miniature import clip_tokenizer

TABLE = 49_408
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
SMALL_UNET = {"block_out_channels": (64, 128, 128, 128), "attention_head_dim": 8, "norm_num_groups": 16}
UNETS: dict[str, Mapping[str, Any]] = {"sd15": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}}
UNETS["sd15-small"] = SMALL_UNET
VAES: dict[str, Mapping[str, Any]] = {
    "sd15": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "sd15-small": {"block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8},
}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": CLIP_L["hidden_size"] + CLIP_G["hidden_size"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS["sdxl"] = {
    **XL,
    "block_out_channels": (320, 640, 1280),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
}
UNETS["sdxl-small"] = {
    **XL,
    "block_out_channels": (64, 128, 128),
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 1, 2),
    "norm_num_groups": 16,
}
VAES["sdxl"], VAES["sdxl-small"] = VAES["sd15"], VAES["sd15-small"]
RESOLUTIONS = {"toybox": 64, "sd15": 512, "sd15-small": 128, "sdxl": 1024, "sdxl-small": 128}
"""Of the pictures, in pixels; of the small ones, text encoders with their whole tables are real (XL's second has fewer
layers), UNets and VAEs are not."""
DEPTHS = {"sdxl-small": 4}
"""Layers of XL's second text encoder, if not its own 32."""


def written(geometry: str, folder: Path) -> Path:
    """Write a base to a folder in diffusers' layout, once, and return it."""
    if geometry == "toybox":
        return written_base(folder)
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    (_xl if geometry.startswith("sdxl") else _sd)(geometry).save_pretrained(work)
    work.rename(folder)
    return folder


def configured(geometry: str, folder: Path) -> Path:
    """Write the configurations of a base without weights, and return the folder."""
    with torch.device("meta"):
        made = (_xl if geometry.startswith("sdxl") else _sd)(geometry)
    for name in ("unet", "vae"):
        getattr(made, name).save_config(folder / name)
    for name in ("text_encoder", "text_encoder_2"):
        if hasattr(made, name):
            getattr(made, name).config.save_pretrained(folder / name)
    return folder


def _sd(geometry: str) -> Any:
    tokenizer = clip_tokenizer(size=TABLE)
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=_text(CLIPTextModel, tokenizer, CLIP_L),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
        **_rest(geometry, cross_attention_dim=CLIP_L["hidden_size"]),
    )


def _xl(geometry: str) -> Any:
    tokenizers = clip_tokenizer(size=TABLE), clip_tokenizer(size=TABLE, pad_token="!")
    second = {**CLIP_G, "num_hidden_layers": DEPTHS.get(geometry, CLIP_G["num_hidden_layers"])}
    return StableDiffusionXLPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        text_encoder=_text(CLIPTextModel, tokenizers[0], CLIP_L),
        text_encoder_2=_text(CLIPTextModelWithProjection, tokenizers[1], second),
        add_watermarker=False,
        **_rest(geometry),
    )


def _text(kind: Any, tokenizer: Any, sizes: Mapping[str, Any]) -> Any:
    return kind(CLIPTextConfig(vocab_size=TABLE, eos_token_id=tokenizer.eos_token_id, **sizes))


def _rest(geometry: str, **more: Any) -> dict[str, Any]:
    """Return scheduler, UNet and VAE; `more` are options of the UNet."""
    unet: Any = UNet2DConditionModel(sample_size=RESOLUTIONS[geometry] // 8, **UNETS[geometry], **more)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae: Any = AutoencoderKL(latent_channels=4, sample_size=RESOLUTIONS[geometry], **blocks, **VAES[geometry])
    scheduler: Any = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return {"unet": unet, "vae": vae, "scheduler": scheduler}
