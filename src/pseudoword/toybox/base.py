"""The toybox's base model: Stable Diffusion's classes at a small size, and the folder that they are written to."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pseudoword.toybox.words import END, POSITIONS, START, write_tokenizer


@dataclass(frozen=True)
class Sizes:
    """How large the text encoder and the UNet are."""

    text_width: int = 128
    """Width of the text encoder, and so of a word's row."""
    text_layers: int = 4
    """Layers of the text encoder."""
    channels: tuple[int, ...] = (80, 128)
    """Width of the UNet at each resolution, from the latents' own downwards."""
    layers: int = 1
    """Residual blocks at each resolution on the way down; one more on the way up."""
    heads: int = 4
    """Attention heads."""


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the world's tokenizer, written to a folder if it is not there yet."""
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(sizes: Sizes, words: CLIPTokenizer) -> CLIPTextModel:
    """Return a text encoder with random weights."""
    start, end = words.get_vocab()[START], words.get_vocab()[END]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=sizes.text_width,
            intermediate_size=4 * sizes.text_width,
            projection_dim=sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def unet(sizes: Sizes, latent_channels: int, side: int) -> UNet2DConditionModel:
    """Return a UNet with random weights, with attention to the words at every resolution."""
    levels = len(sizes.channels)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=sizes.text_width,
        attention_head_dim=sizes.heads,  # diffusers calls the number of heads so
        norm_num_groups=16,
    )


def scheduler() -> DDPMScheduler:
    """Return Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


@dataclass(frozen=True)
class Base:
    """The parts of a base model."""

    tokenizer: CLIPTokenizer
    # Any: these classes' own annotations of `to` and `__call__` mislead type checkers.
    text_encoder: Any
    """A `CLIPTextModel`."""
    vae: Any
    """An `AutoencoderKL`."""
    unet: Any
    """A `UNet2DConditionModel`."""
    scheduler: Any
    """A `DDPMScheduler`."""

    def pipeline(self) -> StableDiffusionPipeline:
        """Return a pipeline of these very modules."""
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        return StableDiffusionPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        )


def sample(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, seed: int = 0, batch: int = 32
) -> list[Image.Image]:
    """Make a picture for each prompt at guidance 4 in 20 steps; the i-th starts from the noise of seed + i."""
    trained = pipeline.scheduler
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(trained.config)
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), batch):
        asked = list(prompts[first : first + batch])
        noise = [torch.Generator().manual_seed(seed + first + i) for i in range(len(asked))]
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        made = pipeline(asked, guidance_scale=4.0, num_inference_steps=20, generator=noise, height=side, width=side)
        pictures += made.images  # pyright: ignore[reportAttributeAccessIssue]
    pipeline.scheduler = trained
    return pictures


def write(base: Base, folder: Path) -> None:
    """Write a base in diffusers layout, its weights as fp16, which loads as fp32 by name of its configuration."""

    def half(module: nn.Module) -> nn.Module:
        return copy.deepcopy(module).to("cpu").half()

    halved = Base(base.tokenizer, half(base.text_encoder), half(base.vae), half(base.unet), base.scheduler)
    halved.pipeline().save_pretrained(folder)
    _change(folder / "text_encoder" / "config.json", dtype="float32")
    _change(folder / "vae" / "config.json", _name_or_path="")  # which is where it was trained


def _change(path: Path, **values: str) -> None:
    """Change some of a configuration's values."""
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **values}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
