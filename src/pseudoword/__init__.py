"""Pseudoword: teach a text-to-image model a new word from a handful of pictures."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pseudoword.concept import Concept
    from pseudoword.data.dataset import TextualInversionDataset
    from pseudoword.loading import lend, load
    from pseudoword.progress import Progress
    from pseudoword.recipe import Recipe
    from pseudoword.training import train

__version__ = "0.1.0"
__all__ = ["Concept", "Progress", "Recipe", "TextualInversionDataset", "__version__", "lend", "load", "train"]

_HOME = {
    "Concept": "pseudoword.concept",
    "Progress": "pseudoword.progress",
    "Recipe": "pseudoword.recipe",
    "TextualInversionDataset": "pseudoword.data.dataset",
    "lend": "pseudoword.loading",
    "load": "pseudoword.loading",
    "train": "pseudoword.training",
}


def __getattr__(name: str) -> Any:
    """Import public names when first used, so that `import pseudoword` is light."""
    if name not in _HOME:
        raise AttributeError(f"module 'pseudoword' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names, whether they were imported already or not."""
    return sorted(__all__)
