"""What a step is on every engine: whose pictures it sees, how many at once, what is not finite, and its snapshot."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from pseudoword.batch import Pair
from pseudoword.contracts import Method
from pseudoword.errors import RunError, TrainingStopped

log = logging.getLogger(__name__)

Blocks = Sequence[Mapping[str, np.ndarray]]
"""Of each concept, its parameters or its optimizer's state."""


def share(process: int, processes: int, batch_size: int, gradient_accumulation_steps: int) -> list[int]:
    """Return a process' pictures of a step: indices into each concept's own global batch."""
    first, stride = process * batch_size, processes * batch_size
    micro_batches = range(gradient_accumulation_steps)
    return [micro * stride + first + picture for micro in micro_batches for picture in range(batch_size)]


def begun(
    method: Method,
    rows: Mapping[str, Mapping[str, np.ndarray]],
    state: Mapping[str, Mapping[str, np.ndarray]] | None,
) -> tuple[Blocks, Blocks]:
    """Return each concept's parameters and state from its first rows; what `state` has of it is not the method's."""
    params = [method.params(blocks) for blocks in rows.values()]
    earlier = state or {}
    return params, [{**method.state(p), **earlier.get(token, {})} for token, p in zip(rows, params, strict=True)]


def counts(micro_batches: Sequence[Pair], concepts: int) -> list[int]:
    """Return how many pictures of each concept these are."""
    whose = np.concatenate([batch.concept for batch, _ in micro_batches])
    return np.bincount(whose, minlength=concepts).tolist()


def reason(finite: Sequence[float], step: int) -> str:
    """Say what of a concept's step is not finite: its loss, its gradient, its parameters or its state."""
    named = ("loss", "gradient", "update", "update")
    return f"the {named[list(map(bool, finite)).index(False)]} of step {step} is not finite"


def halved(size: int, spared: str) -> int:
    """Return how many pictures to take at once, where so many did not fit; a step's means stay over all of them.

    `spared` says with which options the engine takes less memory.
    """
    if size == 1:
        raise TrainingStopped(
            f"The device has not enough memory for one picture. Try {spared}, or a smaller resolution."
        )
    log.warning("Out of memory with %d pictures at once; going on with %d, the same step.", size, size // 2)
    return size // 2


def snapshot(params: Blocks, state: Blocks) -> dict[str, np.ndarray]:
    """Return all arrays under one name each."""
    arrays = {f"params.{i}.{name}": block for i, own in enumerate(params) for name, block in own.items()}
    return arrays | {f"state.{i}.{name}": block for i, own in enumerate(state) for name, block in own.items()}


def check_snapshot(step: int, wanted: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse a snapshot that is not one of these concepts and this method; RunError names what differs."""
    expected, given = ({name: array.shape for name, array in own.items()} for own in (wanted, arrays))
    if expected != given:
        names = expected.keys() | given.keys()
        differing = sorted(name for name in names if expected.get(name) != given.get(name))
        raise RunError(f"The checkpoint of step {step} is damaged or of another run: see {', '.join(differing)}.")
