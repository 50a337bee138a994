"""What JAX has compiled is kept for later processes, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax

CACHE = "jax_compilation_cache_dir"


def keep_compiled() -> None:
    """Have later processes find what is compiled here: in JAX_COMPILATION_CACHE_DIR, or the user's cache folder."""
    if not jax.config.values[CACHE]:
        jax.config.update(CACHE, str(_caches() / "pseudoword" / "jax"))


def _caches() -> Path:
    """Return the folder in which this system keeps what programs can make again."""
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    return Path(os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")).expanduser()
