"""Lessons: the concepts that a run learns, each with its pictures, and the batches in which a step sees them all."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pseudoword import schedules
from pseudoword.batch import Draw, Pair, joined, parts
from pseudoword.data.dataset import Dataset
from pseudoword.data.examples import Source, take
from pseudoword.data.pictures import FramedPictures
from pseudoword.recipe import ConceptRecipe

T = TypeVar("T")


@dataclass(frozen=True)
class Lesson:
    """A concept that a run learns, and the pictures that it is learned from."""

    wanted: ConceptRecipe
    concept: int
    """Its index among those of the run, in the order of its rows."""
    data: Dataset | FramedPictures
    source: Source

    @property
    def token(self) -> str:
        """The word to learn."""
        return self.wanted.token

    def batches(self, draws: Iterable[Draw]) -> Iterator[Pair]:
        """Yield the batch that each draw chooses."""
        for batch, draw in self.source.batches(draws):
            yield dataclasses.replace(batch, concept=np.full(len(batch.concept), self.concept, np.int64)), draw


@dataclass(frozen=True)
class Portions:
    """How much a step sees, here and in all, and how much of it at once."""

    seed: int
    batch: int
    """Pictures that a step sees of each concept, over all processes."""
    share: Sequence[int]
    """Those that this process sees, as indices into each concept's own batch."""
    at_once: int
    """Pictures, of any concepts, that go through the model together."""
    num_timesteps: int


def micro_batches(lessons: Sequence[Lesson], steps: Iterable[int], portions: Portions) -> Generator[list[Pair]]:
    """Yield what each step sees of all lessons: pictures of one shape together, whoever's they are."""
    steps = list(steps)
    streams = [lesson.batches(_draws(lesson, steps, portions)) for lesson in lessons]
    for _ in steps:
        yield grouped([pair for stream in streams for pair in take(stream, len(portions.share))], portions.at_once)


def grouped(pairs: Iterable[Pair], at_once: int) -> list[Pair]:
    """Return pictures of one shape together, in parts of at most `at_once`."""
    by_shape: dict[tuple[int, ...], list[Pair]] = {}
    for pair in pairs:
        by_shape.setdefault(pair[0].shape, []).append(pair)
    return [part for same in by_shape.values() for part in parts(joined(same), at_once)]


def _draws(lesson: Lesson, steps: Sequence[int], portions: Portions) -> Iterator[Draw]:
    """Yield the choices for this process' pictures of every step."""
    for step in steps:
        yield from schedules.draws(
            portions.seed,
            lesson.token,
            step,
            portions.share,
            portions.batch,
            flip_p=lesson.source.flip_p,
            num_timesteps=portions.num_timesteps,
            latent_shapes=lesson.source.latent_shapes,
        )


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T]:
    """Yield items that a thread makes while the ones before are in use."""
    end = object()
    waiting: deque[Future[T | object]] = deque()
    with ThreadPoolExecutor(1, "batches") as thread:
        try:
            waiting.extend(thread.submit(next, items, end) for _ in range(depth))
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item  # pyright: ignore[reportReturnType] (no end)
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
