"""The table of engines: who differentiates and updates the rows."""

from __future__ import annotations

import importlib
from types import ModuleType

from pseudoword.errors import RecipeError

ENGINES = {"torch": "pseudoword.engines.torch_engine", "jax": "pseudoword.engines.jax_engine"}


def module(name: str) -> ModuleType:
    """Import an engine; RecipeError names the engines there are, or the extra to install."""
    if name not in ENGINES:
        raise RecipeError(f"There is no engine {name!r}; the engines are {', '.join(sorted(ENGINES))}.")
    try:
        return importlib.import_module(ENGINES[name])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("pseudoword"):
            raise
        raise RecipeError(
            f"The {name} engine needs {error.name!r}, which is not installed: pip install 'pseudoword[{name}]'."
        ) from error
