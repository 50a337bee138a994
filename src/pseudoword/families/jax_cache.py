"""What JAX has compiled is kept for later processes, in JAX_COMPILATION_CACHE_DIR or the user's cache folder."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

import jax

log = logging.getLogger(__name__)

CACHE = "jax_compilation_cache_dir"


def keep_compiled() -> None:
    """Have later processes find what is compiled here: in JAX_COMPILATION_CACHE_DIR, or the user's cache folder."""
    folder = Path(jax.config.values[CACHE] or _caches() / "pseudoword" / "jax")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        log.warning("What is compiled is not kept, so every run compiles anew: cannot write to %s (%s).", folder, error)
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update(CACHE, str(folder))


def _caches() -> Path:
    """Return the folder in which this system keeps what programs can make again."""
    usual = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    return Path(os.environ.get("XDG_CACHE_HOME") or usual.get(sys.platform, "~/.cache")).expanduser()
