"""Counting what a training step needs in memory, on a base's layers without weights or work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
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


def weights(base: BaseModel, texts: Mapping[str, Any], *, half: bool, eight_bits: bool) -> dict[str, int]:
    """Return the bytes that each module's weights take."""

    def bytes_of(name: str, module: Any) -> int:
        of_each = 2 if (half and name == "unet") or (eight_bits and name in texts) else 4
        total = sum(p.numel() for p in module.parameters()) * of_each
        if eight_bits and name == "unet":
            held = [m.weight for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            total -= sum(weight.numel() * (of_each - 1) - len(weight) * of_each for weight in held)
        return total

    return {name: bytes_of(name, module) for name, module in modules(base, texts).items()}


def kept_for_gradient(
    base: BaseModel,
    texts: Mapping[str, Any],
    denoise: Denoise,
    size: tuple[int, int],
    count: int,
    *,
    half: bool,
    recomputed: bool,
) -> int:
    """Return the bytes that a forward pass of `count` pictures of a width and height keeps for the rows' gradient.

    Counted on tensors without data (PyTorch's meta device), with attention that keeps no attention matrix, as SDPA's.
    Where the UNet's blocks are `recomputed`, these are what is kept between them and the largest block's own.
    """
    made = modules(base, texts)
    unet = made["unet"].to(torch.bfloat16 if half else torch.float32)
    factor = sizes_of(unet.config, made["vae"].config).latent_factor
    for name in texts:
        made[name].get_input_embeddings().register_forward_hook(lambda module, given, found: found.requires_grad_())
    frozen = {p.untyped_storage()._cdata for module in made.values() for p in module.parameters()}
    kept, blocks = _Kept(frozen), [0]

    def block(module: Callable[..., Any], *given: Any) -> Any:
        """Let a block's own tensors count by themselves, and what it was given with what lies between blocks."""
        for tensor in given:
            if isinstance(tensor, torch.Tensor):
                kept(tensor)
        inside = _Kept(frozen)
        with saved_tensors_hooks(inside, lambda tensor: tensor):
            found = module(*given)
        blocks.append(inside.bytes)
        return found

    if recomputed:
        unet.enable_gradient_checkpointing(block)
        unet.train()
    with torch.device("meta"):
        lengths = {name: made[name].config.max_position_embeddings for name in texts}
        ids = {name: torch.zeros(count, length, dtype=torch.long) for name, length in lengths.items()}
        shape = (count, unet.config["in_channels"], size[1] // factor, size[0] // factor)
        latents, timesteps = torch.zeros(*shape, dtype=unet.dtype), torch.zeros(count, dtype=torch.long)
    with _MemoryEfficientAttention(), saved_tensors_hooks(kept, lambda tensor: tensor):
        prediction = denoise(made, ids, latents, timesteps)
        (prediction.float() - torch.zeros_like(prediction, dtype=torch.float32)).square().mean()
    return kept.bytes + max(blocks)


class _Kept:
    """Tensors that a forward pass keeps, each storage once."""

    def __init__(self, frozen: set[int]) -> None:
        self._frozen = frozen
        self._tensors: dict[int, torch.Tensor] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in self._frozen:
            self._tensors[storage] = tensor  # held, so that its storage is no other tensor's later
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())


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
