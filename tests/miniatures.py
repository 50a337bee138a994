"""What tests of the miniature share besides fixtures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import Concept, Recipe, schedules, train
from pseudoword.batch import Batch, Draw
from pseudoword.families.latent_diffusion import LatentDiffusion

TOKEN = "<cat-toy>"
MakeRecipe = Callable[..., Recipe]
PROCESSES = multiprocessing.get_context("forkserver")
"""Children are forked from a server that has imported everything, so each starts in no time."""
PROCESSES.set_forkserver_preload(["pseudoword.training", "pseudoword.engines.torch_engine", "tests.miniatures"])


def rows_of(folder: str | Path) -> np.ndarray:
    """Return the rows of the word that a run left in its folder."""
    [rows] = Concept.load(folder).rows.values()
    return rows


def hashes(family: LatentDiffusion) -> dict[str, str]:
    """Return a hash of every tensor of a base's modules, buffers included."""
    tensors = {f"{name}.{k}": v for name, m in family.modules.items() for k, v in m.state_dict().items()}
    return {
        name: hashlib.sha256(value.cpu().contiguous().numpy().tobytes()).hexdigest() for name, value in tensors.items()
    }


def one_batch(family: LatentDiffusion, step: int = 0, count: int = 2) -> tuple[Batch, Draw]:
    """Return a batch of made-up pictures with the lent word in captions that differ."""
    shape = (4, 8, 8)
    draw = schedules.draw(
        7,
        TOKEN,
        step,
        range(count),
        count,
        num_pictures=2,
        flip_p=0.0,
        num_timesteps=family.num_timesteps,
        latent_shape=shape,
    )
    ids = {
        e: np.stack([v.encode(f"a photo of {'a ' * i}{TOKEN}").ids for i in range(count)])
        for e, v in family.vocabularies.items()
    }
    latents = np.random.default_rng(step).standard_normal((count, *shape), dtype=np.float32)
    placement = np.asarray([(16, 16, 0, 0, 16, 16)] * count)
    return Batch(ids, latents, np.full_like(latents, 0.1), np.zeros(count, dtype=np.int64), placement), draw


def log_of(folder: Path) -> list[dict[str, Any]]:
    """Return a run's log, without the times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def stopped_after(recipe: Recipe, step: int) -> None:
    """Let a run stop as if it had been interrupted in this step."""
    seen: list[int] = []
    run = train(recipe, stop=lambda: len(seen) >= step - 1)
    seen.extend(progress.step for progress in run)
    assert seen[-1] == step


def in_folder(recipe: Recipe, folder: Path) -> Recipe:
    """Return a recipe whose run has another folder."""
    return dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, folder=str(folder)))


def word(run: Path, name: str) -> Concept:
    """Return one of the words of a run of several."""
    return Concept.load(run / "words" / name)
