"""The toybox: a small base model that ships with the package, the drawn world it was trained on, and its oracle."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
BASES = {"toybox": HERE / "model"}
"""Names of base models inside the package, and their folders."""
