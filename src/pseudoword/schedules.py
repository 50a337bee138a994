"""Random draws and learning rates as pure functions of the step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
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
    CROP = 7
    TAGS = 8
    DROP = 9
    AUGMENT = 10
    VARIANT = 11


FIXED = 1 << 40
"""Steps from here on are no run's: their draws are those that the fixed-draw loss is measured on."""


Shape = tuple[int, int, int]
"""Channels, height and width of latents."""


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


def draws(
    seed: int,
    token: str,
    step: int,
    indices: Sequence[int],
    batch: int,
    *,
    flip_p: float,
    num_timesteps: int,
    latent_shapes: Sequence[Shape],
) -> list[Draw]:
    """Return the random choices for the pictures at `indices` of a step's global batch, one draw for each latent shape.

    `latent_shapes` are those of all pictures; where they are equal, there is one draw.
    """
    at = [step * batch + i for i in indices]
    by_shape: dict[Shape, list[int]] = {}
    for index, picture in zip(indices, pictures(seed, concept_key(token), at, len(latent_shapes)), strict=True):
        by_shape.setdefault(latent_shapes[picture], []).append(index)
    common = {"num_pictures": len(latent_shapes), "num_timesteps": num_timesteps}
    return [
        draw(seed, token, step, own, batch, flip_p=flip_p, latent_shape=shape, **common)
        for shape, own in by_shape.items()
    ]


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
    latent_shape: Shape,
) -> Draw:
    """Return the random choices for the pictures at `indices` of a step's global batch of `batch` pictures.

    The numbers depend on nothing but seed, token, step and index,
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
        tags=np.asarray([g.integers(2**64, dtype=np.uint64) for g in each(Purpose.TAGS)], dtype=np.uint64),
        drop=np.asarray([g.random() for g in each(Purpose.DROP)]),
        flip=np.asarray([g.random() < flip_p for g in each(Purpose.FLIP)], dtype=bool),
        crop=np.asarray([g.random() for g in each(Purpose.CROP)]),
        timestep=np.asarray([g.integers(num_timesteps) for g in each(Purpose.TIMESTEP)], dtype=np.int64),
        posterior=np.stack([g.standard_normal(latent_shape, dtype=np.float32) for g in each(Purpose.POSTERIOR)]),
        noise=np.stack([g.standard_normal(latent_shape, dtype=np.float32) for g in each(Purpose.NOISE)]),
    )


def learning_rate(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps`, rising to `peak`.

    The same curves as diffusers' `get_scheduler`, without its state.
    """
    return peak * CURVES[schedule.lr_scheduler](schedule, step, steps, peak)


Curve = Callable[[Schedule, int, int, float], float]
"""From a schedule, step, steps and peak to the factor of the peak."""


def _warmed_up(course: Callable[[Schedule, float, float], float]) -> Curve:
    """Let a course over the share done, 0 after warm-up and 1 at the end, follow a linear rise from 0."""

    def curve(schedule: Schedule, step: int, steps: int, peak: float) -> float:
        warmup = schedule.lr_warmup_steps
        if step < warmup:
            return step / max(1, warmup)
        return max(0.0, course(schedule, (step - warmup) / max(1, steps - warmup), peak))

    return curve


def _cosine_with_restarts(schedule: Schedule, done: float, peak: float) -> float:
    del peak
    return 0.0 if done >= 1 else 0.5 * (1.0 + math.cos(math.pi * (schedule.lr_num_cycles * done % 1.0)))


def _polynomial(schedule: Schedule, done: float, peak: float, end: float = 1e-7) -> float:
    return end / peak if done > 1 else ((peak - end) * (1 - done) ** schedule.lr_power + end) / peak


def _piecewise_constant(schedule: Schedule, step: int, steps: int, peak: float) -> float:
    del steps, peak
    *parts, last = (schedule.lr_step_rules or "1").split(",")
    for until, factor in sorted((int(u), float(f)) for f, u in (part.split(":") for part in parts)):
        if step < until:
            return factor
    return float(last)


CURVES: dict[str, Curve] = {
    "constant": lambda schedule, step, steps, peak: 1.0,
    "constant_with_warmup": _warmed_up(lambda schedule, done, peak: 1.0),
    "linear": _warmed_up(lambda schedule, done, peak: 1.0 - done),
    "cosine": _warmed_up(lambda schedule, done, peak: 0.5 * (1.0 + math.cos(math.pi * done))),
    "cosine_with_restarts": _warmed_up(_cosine_with_restarts),
    "polynomial": _warmed_up(_polynomial),
    "piecewise_constant": _piecewise_constant,
}
