"""torch's models beside ours: made with random weights, written as diffusers writes them, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

from pseudoword.flax_models import Layers, from_folder

EXACT = 1e-4
"""The goal for outputs, relative; for gradients ten times as much."""


def randomised(model: Any) -> Any:
    """Return a torch model whose norms and biases are not the ones and zeros that they start from."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False).eval()


def ours(kind: Any, reference: Any, folder: Path, layers: Layers | None = None) -> Any:
    """Return our model of what torch's model writes."""
    reference.save_pretrained(folder)
    return from_folder(kind, folder, layers)


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(made: jax.Array, expected: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    values, reference = np.asarray(made, np.float64), expected.detach().double().numpy()
    assert values.shape == reference.shape
    assert np.abs(reference).max() > 0
    return float(np.abs(values - reference).max() / np.abs(reference).max())
