"""The toybox: a small base model that ships with the package, and pictures of concepts to try it on."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
BASES = {"toybox": HERE / "model"}
"""Names of base models inside the package, and their folders."""
PICTURES = HERE / "pictures"
"""A folder of example pictures for each concept."""
