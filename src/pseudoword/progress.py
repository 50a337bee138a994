"""What a training step reports; callers iterate over these, there are no callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Progress:
    """One finished optimizer step."""

    step: int
    """Optimizer steps done, this one included."""
    steps: int
    """Optimizer steps the run will have."""
    loss: Mapping[str, float]
    """Mean loss over the global batch, by placeholder token."""
    lr: float
    """The learning rate this step used."""
    seconds: float
    """Wall time of this step."""
    saved: tuple[Path, ...] = ()
    """Files and checkpoints that this step left on disk."""
    fixed_draw_loss: Mapping[str, float] = field(default_factory=dict)
    """By placeholder token, the loss on the same draws every time; empty at steps that do not compute it."""
    pictures: tuple[Path, ...] = ()
    """Validation pictures that this step left on disk."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """By placeholder token, why a concept is no longer learned, of a run that learns several."""
    suspicious: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By placeholder token, what says that a word was not learned, and what to try; known after the last step."""


def mean(by_token: Mapping[str, float]) -> float:
    """Return the mean of a loss over the words of a run."""
    return sum(by_token.values()) / len(by_token)


def clock(seconds: float) -> str:
    """Return a length of time as hours, minutes and seconds: '0:01:23'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
