"""Pictures drawn ahead for the training scripts: one array on disk, whose index is the seed of each picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pseudoword.toybox.render import SIDE, render
from pseudoword.toybox.world import held_out_drawing, training_drawing

HELD_OUT = 1 << 40
"""Seeds from here on are of held-out drawings."""


def training_pictures(folder: Path, count: int) -> UInt8[np.ndarray, "count 64 64 3"]:
    """Return the pictures of seeds 0 to `count`, drawn if they are not there yet."""
    path = folder / f"pictures-{count}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        pictures = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
        for seed in range(count):
            pictures[seed] = render(training_drawing(seed), seed)
        pictures.flush()
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


def held_out_pictures(count: int) -> UInt8[np.ndarray, "count 64 64 3"]:
    """Return pictures of pairings that training never shows."""
    seeds = range(HELD_OUT, HELD_OUT + count)
    return np.stack([render(held_out_drawing(seed), seed) for seed in seeds])
