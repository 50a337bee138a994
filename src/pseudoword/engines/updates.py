"""What a method makes of every concept's gradient, in as few kernels as for one and without asking the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool

from pseudoword.contracts import Method

Params = dict[str, torch.Tensor]
"""A concept's parameters, their gradients, or its optimizer's state, by name."""


def clipped(grads: Params, limit: float | None) -> Params:
    """Return a concept's gradients, shortened together to a norm of at most `limit`."""
    if limit is None:
        return grads
    norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
    return {name: g * (limit / norm.clamp(min=1e-12)).clamp(max=1.0) for name, g in grads.items()}


def updated(
    method: Method, concepts: Mapping[int, tuple[Params, Params, Params]], lr: float, step: int
) -> dict[int, tuple[Params, Params]]:
    """Return each concept's new parameters and state, given its parameters, gradients and state.

    Concepts of equal shapes are updated in one go: their number costs no more kernels.
    """

    def update(params: Params, grads: Params, state: Params) -> tuple[Params, Params]:
        return method.update(torch, params, grads, state, lr, step)  # pyright: ignore[reportArgumentType]

    alike: dict[Any, list[int]] = {}
    for i, (params, _, state) in concepts.items():
        shapes = [sorted((name, tensor.shape) for name, tensor in own.items()) for own in (params, state)]
        alike.setdefault(str(shapes), []).append(i)
    found = {}
    for members in alike.values():
        several = [_stacked([concepts[i][part] for i in members]) for part in range(3)]
        params, state = torch.vmap(update)(*several)
        for at, i in enumerate(members):
            found[i] = ({name: p[at] for name, p in params.items()}, {name: s[at] for name, s in state.items()})
    return found


def finite(tensors: Params) -> Bool[torch.Tensor, ""]:
    """Return, on the device, whether all numbers are finite."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).all()


def _stacked(several: Sequence[Params]) -> Params:
    return {name: torch.stack([own[name] for own in several]) for name in several[0]}
