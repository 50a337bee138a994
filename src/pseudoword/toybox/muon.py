"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal, for convolutions and linear layers.

On the toybox's autoencoder it had 22.3 dB after 400 steps, where AdamW had 20.0 after 800, at a fifth more a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton–Schulz iteration that the authors tuned: singular values end up between about 0.7 and 1.2."""


def orthogonal(
    matrices: Float[Tensor, "count rows columns"], iterations: int = 5
) -> Float[Tensor, "count rows columns"]:
    """Bring the singular values of matrices near 1, leaving their directions.

    Each iteration multiplies by a polynomial of the Gram matrix, and so does all that follows to that itself: only Gram
    matrices are iterated, which for a convolution's long rows takes two fifths of the multiplications.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram = wide @ wide.mT
    unit = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    product = factor = torch.baddbmm(a * unit + b * gram, gram, gram, alpha=c)
    for _ in range(iterations - 1):
        gram = factor @ gram @ factor
        factor = torch.baddbmm(a * unit + b * gram, gram, gram, alpha=c)
        product = factor @ product
    made = product @ wide
    return made.mT if tall else made


class Muon(torch.optim.Optimizer):
    """Steps as large as AdamW's, so that one rate does for both (Liu et al. 2025, arXiv 2502.16982, sec. 2.2).

    A weight counts as a matrix of its outputs by everything else; matrices of one shape are worked on together.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.flatten(1).shape, []).append(parameter)
            for (rows, columns), parameters in alike.items():
                ahead = torch.stack([self._ahead(parameter, group["momentum"]).flatten(1) for parameter in parameters])
                size = 0.2 * max(rows, columns) ** 0.5
                for parameter, change in zip(parameters, orthogonal(ahead), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(change.reshape(parameter.shape), alpha=-group["lr"] * size)

    def _ahead(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Return Nesterov's momentum of a parameter's gradient."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)
