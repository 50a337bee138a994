"""A miniature of the family: random weights in the real classes, in diffusers layout, for tests in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = ("toy", "cat", "dog", "fish", "red", "photo", "painting", "style", "the", "a", "of", "in")


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
    tokenizer: Any = clip_tokenizer(max_length)
    text_encoder: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    text_encoder.get_input_embeddings().weight.data.normal_(std=0.3)
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
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 16),  # pyright: ignore[reportArgumentType]
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 2,  # pyright: ignore[reportArgumentType]
        latent_channels=4,
        sample_size=16,
    )
    scheduler: Any = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        steps_offset=1,
        clip_sample=False,
    )
    parts = {"unet": unet.to(dtype), "vae": vae.to(dtype), "text_encoder": text_encoder.to(dtype)}
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


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows every byte and a few whole words."""
    letters = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    pieces: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                pieces.append(pair[0] + pair[1])
            parts = [pair[0] + pair[1], *parts[2:]]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *dict.fromkeys(pieces)]
    ids = {piece: i for i, piece in enumerate([*vocabulary, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)  # pyright: ignore[reportArgumentType]
