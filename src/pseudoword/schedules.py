"""Random draws and learning rates as pure functions of the step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from enum import IntEnum

import numpy as np

from pseudoword.batch import Draw
from pseudoword.recipe import Schedule


class Purpose(IntEnum):
    """What a stream of random numbers is for; a part of its counter, so the values are fixed for good."""

    ORDER = 0
    TEMPLATE = 1
    FLIP = 2
    TIMESTEP = 3
    POSTERIOR = 4
    NOISE = 5
    ITEM = 6


def concept_key(token: str) -> int:
    """Return the 64-bit key of a concept's random streams."""
    return int.from_bytes(hashlib.sha256(token.encode()).digest()[:8], "little")


def stream(seed: int, concept: int, step: int, index: int, purpose: Purpose) -> np.random.Generator:
    """Return the random stream for one choice: Philox keyed by (seed, concept), counting from (purpose, index, step).

    The lowest counter word is left to the stream, so streams never overlap (Salmon et al. 2011).
    """
    key = np.asarray([seed, concept], dtype=np.uint64)  # left to itself, NumPy would pass large numbers through float64
    return np.random.Generator(np.random.Philox(key=key, counter=[0, int(purpose), index, step]))


def pictures(seed: int, concept: int, positions: Sequence[int], count: int) -> np.ndarray:
    """Return which of `count` pictures stands at each position of an endless sequence of shuffled rounds."""
    rounds = {r: stream(seed, concept, r, 0, Purpose.ORDER).permutation(count) for r in {p // count for p in positions}}
    return np.asarray([rounds[p // count][p % count] for p in positions], dtype=np.int64)


def draw(
    seed: int,
    token: str,
    step: int,
    indices: Sequence[int],
    batch: int,
    *,
    num_pictures: int,
    flip_p: float,
    num_timesteps: int,
    latent_shape: tuple[int, int, int],
) -> Draw:
    """Return the random choices for the pictures at `indices` of a step's global batch of `batch` pictures.

    `latent_shape` is (channels, height, width). The numbers depend on nothing but seed, token, step and index,
    so any split of a batch over micro-batches and processes sees the same.
    """
    key = concept_key(token)

    def each(purpose: Purpose) -> Iterator[np.random.Generator]:
        return (stream(seed, key, step, i, purpose) for i in indices)

    return Draw(
        step=step,
        index=np.asarray(indices, dtype=np.int64),
        picture=pictures(seed, key, [step * batch + i for i in indices], num_pictures),
        template=np.asarray([g.random() for g in each(Purpose.TEMPLATE)]),
        flip=np.asarray([g.random() < flip_p for g in each(Purpose.FLIP)], dtype=bool),
        timestep=np.asarray([g.integers(num_timesteps) for g in each(Purpose.TIMESTEP)], dtype=np.int64),
        posterior=np.stack([g.standard_normal(latent_shape, dtype=np.float32) for g in each(Purpose.POSTERIOR)]),
        noise=np.stack([g.standard_normal(latent_shape, dtype=np.float32) for g in each(Purpose.NOISE)]),
    )


def learning_rate(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps`, rising to `peak`.

    The same curves as diffusers' `get_scheduler`, without its state.
    """
    return peak * _factor(schedule, step, steps, peak)


def _factor(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    kind, warmup = schedule.lr_scheduler, schedule.lr_warmup_steps
    if kind == "constant":
        return 1.0
    if kind == "piecewise_constant":
        return _piecewise(schedule.lr_step_rules or "1", step)
    if step < warmup:
        return step / max(1, warmup)
    done = (step - warmup) / max(1, steps - warmup)  # 0 after warm-up, 1 at the end
    if kind == "constant_with_warmup":
        return 1.0
    if kind == "linear":
        return max(0.0, 1.0 - done)
    if kind == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))
    if kind == "cosine_with_restarts":
        return 0.0 if done >= 1 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * (schedule.lr_num_cycles * done % 1.0))))
    return _polynomial(schedule.lr_power, done, peak)


def _polynomial(power: float, done: float, peak: float, end: float = 1e-7) -> float:
    return end / peak if done > 1 else ((peak - end) * (1 - done) ** power + end) / peak


def _piecewise(rules: str, step: int) -> float:
    *parts, last = rules.split(",")
    for until, factor in sorted((int(u), float(f)) for f, u in (part.split(":") for part in parts)):
        if step < until:
            return factor
    return float(last)
