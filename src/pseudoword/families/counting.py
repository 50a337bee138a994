"""Counting what a training step needs in memory, on a base's layers without weights or work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig

from pseudoword.families.configurations import configuration, sizes_of
from pseudoword.recipe import BaseModel

Denoise = Callable[[Mapping[str, Any], Mapping[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]
"""From modules, ids by text encoder, latents and timesteps, all without data, to the UNet's prediction."""


def modules(base: BaseModel, texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a base's modules in their shapes, without data; `texts` are the text encoders' classes by folder."""
    with torch.device("meta"):
        made: dict[str, Any] = {
            **{name: kind(CLIPTextConfig.from_dict(configuration(base, name))) for name, kind in texts.items()},
            "vae": AutoencoderKL.from_config(configuration(base, "vae")),
            "unet": UNet2DConditionModel.from_config(configuration(base, "unet")),
        }
    for module in made.values():
        module.requires_grad_(False).eval()
    return made


def parameters(base: BaseModel, texts: Mapping[str, Any]) -> dict[str, int]:
    """Return how many numbers each module holds."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in modules(base, texts).items()}


def kept_for_gradient(
    base: BaseModel, texts: Mapping[str, Any], denoise: Denoise, size: tuple[int, int], count: int, *, half: bool
) -> int:
    """Return the bytes that a forward pass of `count` pictures of a width and height keeps for the rows' gradient.

    Counted on tensors without data (PyTorch's meta device), with attention that keeps no attention matrix, as SDPA's.
    """
    made = modules(base, texts)
    unet = made["unet"].to(torch.bfloat16 if half else torch.float32)
    factor = sizes_of(unet.config, made["vae"].config).latent_factor
    for name in texts:
        made[name].get_input_embeddings().register_forward_hook(lambda module, given, found: found.requires_grad_())
    frozen = {p.untyped_storage()._cdata for module in made.values() for p in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in frozen:
            kept[storage] = tensor  # held, so that its storage is no other tensor's later
        return tensor

    with torch.device("meta"):
        lengths = {name: made[name].config.max_position_embeddings for name in texts}
        ids = {name: torch.zeros(count, length, dtype=torch.long) for name, length in lengths.items()}
        shape = (count, unet.config["in_channels"], size[1] // factor, size[0] // factor)
        latents, timesteps = torch.zeros(*shape, dtype=unet.dtype), torch.zeros(count, dtype=torch.long)
    with _MemoryEfficientAttention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = denoise(made, ids, latents, timesteps)
        (prediction.float() - torch.zeros_like(prediction, dtype=torch.float32)).square().mean()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Attention(torch.autograd.Function):
    """Attention's shape, and what it keeps."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        found = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, found)
        return found


class _MemoryEfficientAttention(TorchFunctionMode):
    """Take `_Attention` for PyTorch's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Attention.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))
