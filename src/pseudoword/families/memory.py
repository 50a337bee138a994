"""Memory: whether an error says that a device's is full, and frozen modules that take less of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.nn.utils import parametrize


def is_full(error: Exception) -> bool:
    """Whether fewer pictures at once may help."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def empty_cache() -> None:
    """Let the accelerator have back what failed attempts left, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def move(module: Any, device: torch.device | str, dtype: torch.dtype) -> None:
    """Move a module of diffusers' to a device in some precision, without its warning at casts that change nothing."""
    module.to(device=device)
    if module.dtype != dtype:
        module.to(dtype=dtype)


class EightBits(nn.Module):
    """A frozen weight held in 8 bits with a scale for each output, and given out in its own precision when it is used.

    A parametrization of PyTorch's. What is given out lives as long as its layer's gradient needs it, so gradient
    checkpointing, which drops that with everything else of a block, belongs to it.
    """

    scale: torch.Tensor

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, held: torch.Tensor) -> torch.Tensor:
        """Return the weight."""
        return held.to(self.scale.dtype) * self.scale

    @classmethod
    def hold(cls, module: nn.Linear | nn.Conv2d) -> None:
        """Let a layer hold its weight so."""
        weight = module.weight.detach().float()
        scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True).clamp(min=1e-12) / 127
        own = cls(scale.to(module.weight.dtype))
        module.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        parametrize.register_parametrization(module, "weight", own, unsafe=True)  # it changes the type of numbers


def lighten(denoiser: nn.Module, text_encoders: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Hold the weights of the denoiser's convolutions and linear maps in 8 bits, those of text encoders in `dtype`.

    Norms stay as they are: they are small.
    """
    for module in list(denoiser.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            EightBits.hold(module)
    for text_encoder in text_encoders:
        for module in text_encoder.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.to(dtype=dtype)
