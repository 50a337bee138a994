"""Whether an error says that a device's memory is full; frameworks and devices say it in different ways."""

from __future__ import annotations

import torch
from accelerate.utils.memory import should_reduce_batch_size


def is_full(error: Exception) -> bool:
    """Whether fewer pictures at once may help."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def empty_cache() -> None:
    """Let the accelerator have back what failed attempts left, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
