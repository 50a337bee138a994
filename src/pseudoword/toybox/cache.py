"""Pictures drawn ahead for the training scripts: one array on disk, whose index is the seed of each picture."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pseudoword import disk
from pseudoword.errors import RecipeError, first_line
from pseudoword.toybox.render import SIDE, render
from pseudoword.toybox.world import held_out_drawing, training_drawing

HELD_OUT = 1 << 40
"""Seeds from here on are of held-out drawings."""


Picture = UInt8[np.ndarray, "64 64 3"]


def drawn_ahead(path: Path, count: int, draw: Callable[[int], Picture]) -> UInt8[np.ndarray, "count 64 64 3"]:
    """Return pictures 0 to `count` of a function from a file, drawn there first, on all cores, if it does not exist."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{disk.TEMPORARY}{os.getpid()}-{path.name}")
        pictures = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(count, SIDE, SIDE, 3))
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as drawers:
            for i, picture in enumerate(drawers.map(draw, range(count), chunksize=200)):
                pictures[i] = picture
        pictures.flush()
        disk.move(temporary, path)
    return load(path, count)


def keep(path: Path, values: np.ndarray) -> None:
    """Write an array to a file, which is whole or not there."""
    temporary = path.with_name(f"{disk.TEMPORARY}{os.getpid()}-{path.name}")
    disk.patiently(temporary, lambda: np.save(temporary, values))
    disk.move(temporary, path)


def load(path: Path, count: int) -> np.ndarray:
    """Return an array of so many entries from a file, read as it is needed; RecipeError if the file is damaged."""
    try:
        values = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise RecipeError(
            f"{str(path)!r} is damaged ({first_line(error)}); delete it, and it is made again."
        ) from error
    if len(values) != count:
        raise RecipeError(f"{str(path)!r} holds {len(values)} entries, not {count}; delete it, and it is made again.")
    return values


def training_picture(seed: int) -> Picture:
    """Draw the picture that stands for a seed in training."""
    return render(training_drawing(seed), seed)


def training_pictures(folder: Path, count: int) -> UInt8[np.ndarray, "count 64 64 3"]:
    """Return the pictures of seeds 0 to `count`, drawn if they are not there yet."""
    return drawn_ahead(folder / f"pictures-{count}.npy", count, training_picture)


def held_out_pictures(count: int) -> UInt8[np.ndarray, "count 64 64 3"]:
    """Return pictures of pairings that training never shows."""
    seeds = range(HELD_OUT, HELD_OUT + count)
    return np.stack([render(held_out_drawing(seed), seed) for seed in seeds])
