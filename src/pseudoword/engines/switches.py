"""PyTorch's switches, which are one for the whole process: thrown for a block and put back after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pseudoword.errors import RecipeError
from pseudoword.recipe import EngineRecipe


@contextmanager
def thrown(options: EngineRecipe) -> Iterator[None]:
    """Allow TF32 for the block or not, and if asked for only algorithms that give the same numbers every time."""
    products: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    tf32, convolutions = products.allow_tf32, (cudnn.deterministic, cudnn.benchmark)
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    products.allow_tf32 = options.allow_tf32
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        products.allow_tf32 = tf32
        if options.deterministic:
            torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
            cudnn.deterministic, cudnn.benchmark = convolutions


def check(options: EngineRecipe, device: torch.device) -> None:
    """Refuse what cannot run here, before anything is loaded."""
    if options.deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if options.xformers:
        _check_xformers(device)


def _check_xformers(device: torch.device) -> None:
    """Refuse xformers where it cannot run."""
    try:
        import xformers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError("xformers is not installed: pip install xformers, or leave the option out.") from error
    if device.type != "cuda":
        raise RecipeError(f"xformers needs a CUDA device, but this is {device.type!r}; leave the option out.")
