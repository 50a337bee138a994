"""A base in diffusers layout under the names of the original code: CompVis' of SD 1.x, Stability's of 2.x."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

Tensors = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def checkpoint(base: Any, *, open_clip: bool = False) -> Tensors:
    """Return a base's tensors as one file holds them; SD 2.x has its text encoder as open_clip names it.

    `base` is a folder, or has `text_encoder`, `unet` and `vae`.
    """
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base) if isinstance(base, Path) else base
    text = {name.removeprefix("text_model."): v for name, v in pipeline.text_encoder.state_dict().items()}
    parts = {
        "cond_stage_model.": open_clip_text(text) if open_clip else clip_text(text),
        "model.diffusion_model.": unet(pipeline.unet.state_dict(), pipeline.unet.config),
        "first_stage_model.": vae(pipeline.vae.state_dict()),
    }
    return {start + name: value for start, part in parts.items() for name, value in part.items()}


def xl_checkpoint(base: Path) -> Tensors:
    """Return the tensors of a Stable Diffusion XL base as one file holds them."""
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    first, second = (
        {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    )
    projection = second.pop("text_projection.weight")
    parts = {
        "conditioner.embedders.0.": clip_text(first),
        "conditioner.embedders.1.": {**open_clip_text(second), "model.text_projection": projection.T.contiguous()},
        "model.diffusion_model.": unet(pipeline.unet.state_dict(), pipeline.unet.config),
        "first_stage_model.": vae(pipeline.vae.state_dict()),
    }
    return {start + name: value for start, part in parts.items() for name, value in part.items()}


def unet(state: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> Tensors:
    """Input and output blocks are counted through; a block's resnet is its part 0, its attention part 1."""
    layers: int = config["layers_per_block"]
    attends = ["Attn" in kind for kind in config["up_block_types"]]

    def renamed(name: str) -> str:
        if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
            side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            first = block * (layers + 1) + (side == "down")
            place = f"{'input' if side == 'down' else 'output'}_blocks"
            if kind == "downsamplers":
                return f"{place}.{first + layers}.0.{rest.replace('conv', 'op')}"
            if kind == "upsamplers":
                return f"{place}.{first + layers}.{2 if attends[block] else 1}.{rest}"
            return f"{place}.{first + layer}.{part(kind, rest)}"
        if match := re.fullmatch(r"mid_block\.(\w+)\.(\d+)\.(.+)", name):
            kind, layer, rest = match[1], int(match[2]), match[3]
            return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{part(kind, rest)[2:]}"
        start, _, end = name.rpartition(".")
        return f"{UNET_ENDS[start]}.{end}"

    def part(kind: str, rest: str) -> str:
        if kind == "attentions":
            return f"1.{rest}"
        start, _, end = rest.rpartition(".")
        return f"0.{RESNET[start]}.{end}"

    return {renamed(name): value for name, value in state.items()}


def vae(state: Mapping[str, torch.Tensor]) -> Tensors:
    """The decoder's levels are counted from the bottom; the one attention is made of 1 × 1 convolutions."""
    levels = 1 + max(int(found) for name in state for found in re.findall(r"up_blocks\.(\d+)", name))

    def renamed(name: str) -> str:
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{levels - 1 - int(match[1])}", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = re.sub(
            r"mid_block\.attentions\.0\.(.+)\.(\w+)", lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}.{m[2]}", name
        )
        for new, old in {
            "down_blocks.": "down.",
            "resnets": "block",
            "samplers.0": "sample",
            "conv_shortcut": "nin_shortcut",
            "conv_norm_out": "norm_out",
        }.items():
            name = name.replace(new, old)
        return name

    return {
        renamed(name): value[:, :, None, None] if ".attentions." in name and value.ndim == 2 else value
        for name, value in state.items()
    }


def clip_text(state: Mapping[str, torch.Tensor]) -> Tensors:
    """SD 1.x keeps transformers' names of 2022, and the position ids that were saved then."""
    tensors = {f"transformer.text_model.{name}": value for name, value in state.items()}
    length = state["embeddings.position_embedding.weight"].shape[0]
    return {**tensors, "transformer.text_model.embeddings.position_ids": torch.arange(length)[None]}


def open_clip_text(state: Mapping[str, torch.Tensor]) -> Tensors:
    """SD 2.x has open_clip's names, queries, keys and values in one, and a projection that nothing uses."""
    tensors: Tensors = {}
    for name, value in state.items():
        if (match := re.fullmatch(r"(.+)\.q_proj\.(weight|bias)", name)) is not None:
            together = [state[f"{match[1]}.{kind}_proj.{match[2]}"] for kind in "qkv"]
            tensors[f"model.{open_clip_name(match[1])}.in_proj_{match[2]}"] = torch.cat(together)
        elif not re.search(r"\.[kv]_proj\.", name):
            tensors[f"model.{open_clip_name(name)}"] = value
    width = state["embeddings.token_embedding.weight"].shape[1]
    device = state["embeddings.token_embedding.weight"].device
    return {**tensors, "model.text_projection": torch.zeros(width, width, device=device)}


def open_clip_name(name: str) -> str:
    for new, old in OPEN_CLIP.items():
        name = name.replace(new, old)
    return name


def config_folder(base: Path, folder: Path) -> Path:
    """Copy a base without its weights."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"), dirs_exist_ok=True)
    return folder


def one_file(base: Path, path: Path) -> Path:
    """Write a base as one .safetensors file."""
    tensors = {name: value.contiguous() for name, value in checkpoint(base).items()}
    safetensors.torch.save_file(tensors, path)
    return path
