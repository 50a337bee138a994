"""What a run calls the pictures in its folder, for all who write, show or look for them."""

from __future__ import annotations

import re
from pathlib import Path

SAMPLES = "samples"
"""The folder of validation pictures, inside the run's."""
GRID = re.compile(r"step-(\d+)\.png")
STRIP = "strip.png"
"""The picture there that compares steps."""


def grids(samples: Path) -> list[tuple[int, Path]]:
    """Return the grids in a folder of validation pictures by step, the first first; none if there is no folder."""
    found = [(GRID.fullmatch(path.name), path) for path in samples.glob("*.png")]
    return sorted((int(match[1]), path) for match, path in found if match)
