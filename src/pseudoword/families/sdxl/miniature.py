"""A miniature of the family: random weights in the real classes, in diffusers layout, for tests in seconds on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from pseudoword.families.clip_miniature import clip_tokenizer, text_encoder, vae

WIDTHS = 32, 40


def write(
    folder: Path | str,
    *,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    zero_snr: bool = False,
    dtype: torch.dtype = torch.float32,
    eos_token_id: int = 2,
    seed: int = 0,
) -> Path:
    """Write a base of random weights to `folder` and return it: 16-pixel pictures, factor 2, three layers of text.

    As in published bases the second tokenizer pads with '!', the text encoders say `eos_token_id` 2, which it is not,
    and the VAE says that it overflows in fp16.
    """
    torch.manual_seed(seed)
    tokenizers = clip_tokenizer(), clip_tokenizer(pad_token="!")
    first, second = WIDTHS
    texts = (
        text_encoder(CLIPTextModel, tokenizers[0], first, eos_token_id=eos_token_id),
        text_encoder(CLIPTextModelWithProjection, tokenizers[1], second, eos_token_id=eos_token_id, hidden_act="gelu"),
    )
    unet: Any = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 4),  # pyright: ignore[reportArgumentType]
        transformer_layers_per_block=(1, 2),  # pyright: ignore[reportArgumentType]
        use_linear_projection=True,
        cross_attention_dim=first + second,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + second,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    scheduler: Any = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
        steps_offset=1,
    )
    parts = {"unet": unet, "vae": vae(force_upcast=True), "text_encoder": texts[0], "text_encoder_2": texts[1]}
    pipeline = StableDiffusionXLPipeline(
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=scheduler,
        add_watermarker=False,
        **{name: part.to(dtype) for name, part in parts.items()},
    )
    pipeline.save_pretrained(folder)
    return Path(folder)
