"""What a method makes of every concept's gradient, in as few kernels as for one and without asking the device.

Array code over an engine's library: `xp` is torch or jax.numpy, `vmap` the library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pseudoword.contracts import Method

Params = dict[str, Any]
"""A concept's parameters, their gradients, or its optimizer's state, by name."""


def clipped(xp: Any, grads: Params, limit: float | None) -> Params:
    """Return a concept's gradients, shortened together to a norm of at most `limit`."""
    if limit is None:
        return grads
    norm = xp.sqrt(xp.stack([xp.square(g).sum() for g in grads.values()]).sum())
    return {name: g * xp.clip(limit / xp.clip(norm, min=1e-12), max=1.0) for name, g in grads.items()}


def updated(
    xp: Any,
    vmap: Callable[..., Any],
    method: Method,
    concepts: Mapping[int, tuple[Params, Params, Params]],
    lr: Any,
    step: Any,
) -> dict[int, tuple[Params, Params]]:
    """Return each concept's new parameters and state, given its parameters, gradients and state.

    Concepts of equal shapes are updated in one go: their number costs no more kernels.
    """

    def update(params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        return method.update(xp, params, grads, state, lr, step)

    alike: dict[Any, list[int]] = {}
    for i, (params, _, state) in concepts.items():
        shapes = [sorted((name, tuple(block.shape)) for name, block in own.items()) for own in (params, state)]
        alike.setdefault(str(shapes), []).append(i)
    found = {}
    for members in alike.values():
        several = [_stacked(xp, [concepts[i][part] for i in members]) for part in range(3)]
        params, state = vmap(update)(*several)
        for at, i in enumerate(members):
            found[i] = ({name: p[at] for name, p in params.items()}, {name: s[at] for name, s in state.items()})
    return found


def finite(xp: Any, blocks: Params) -> Any:
    """Return, on the device, whether all numbers are finite."""
    return xp.stack([xp.isfinite(block).all() for block in blocks.values()]).all()


def _stacked(xp: Any, several: Sequence[Params]) -> Params:
    return {name: xp.stack([own[name] for own in several]) for name in several[0]}
