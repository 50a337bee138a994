"""What a training step of a Stable Diffusion base needs in memory, counted on its layers without weights or work."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel

from pseudoword.families.sd.sizes import configuration, sizes_of
from pseudoword.recipe import BaseModel


def parameters(base: BaseModel) -> dict[str, int]:
    """Return how many numbers each module holds."""
    return {name: sum(p.numel() for p in module.parameters()) for name, module in _modules(base).items()}


def kept_for_gradient(base: BaseModel, size: tuple[int, int], count: int, *, half: bool = False) -> int:
    """Return the bytes that a forward pass of `count` pictures of a width and height keeps for the rows' gradient.

    Counted on tensors without data (PyTorch's meta device), with attention that keeps no attention matrix, as SDPA's.
    """
    modules = _modules(base)
    text, unet, vae = (modules[name] for name in ("text_encoder", "unet", "vae"))
    unet = unet.to(torch.bfloat16 if half else torch.float32)
    factor = sizes_of(unet.config, vae.config).latent_factor
    text.get_input_embeddings().register_forward_hook(lambda module, given, found: found.requires_grad_())
    frozen = {p.untyped_storage()._cdata for module in modules.values() for p in module.parameters()}
    return _kept(text, unet, (count, unet.config["in_channels"], size[1] // factor, size[0] // factor), frozen)


def _kept(text: Any, unet: Any, shape: tuple[int, ...], frozen: set[int]) -> int:
    """Return the bytes that text encoder, UNet and loss keep, besides frozen storages, for latents of a shape."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in frozen:
            kept[storage] = tensor  # held, so that its storage is no other tensor's later
        return tensor

    ids = torch.zeros(shape[0], text.config.max_position_embeddings, dtype=torch.long, device="meta")
    latents = torch.zeros(*shape, dtype=unet.dtype, device="meta")
    with _MemoryEfficientAttention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        condition = text(ids).last_hidden_state.to(unet.dtype)
        prediction = unet(latents, torch.zeros(shape[0], dtype=torch.long, device="meta"), condition).sample
        (prediction.float() - torch.zeros_like(prediction, dtype=torch.float32)).square().mean()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _modules(base: BaseModel) -> dict[str, Any]:
    """Return the modules in their shapes, without data."""
    text = CLIPTextConfig.from_dict(configuration(base, "text_encoder"))
    with torch.device("meta"):
        modules: dict[str, Any] = {
            "text_encoder": CLIPTextModel(text),
            "vae": AutoencoderKL.from_config(configuration(base, "vae")),
            "unet": UNet2DConditionModel.from_config(configuration(base, "unet")),
        }
    for module in modules.values():
        module.requires_grad_(False).eval()
    return modules


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
