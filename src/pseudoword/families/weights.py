"""A name for weights, for files that are only good with these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def digest(modules: Mapping[str, nn.Module]) -> str:
    """Return a short hash of the modules' tensors with their names, shapes and precisions."""
    state = hashlib.sha256()
    for part, module in sorted(modules.items()):
        for name, value in module.state_dict().items():
            state.update(f"{part}.{name} {tuple(value.shape)} {value.dtype}".encode())
            state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()[:12]
