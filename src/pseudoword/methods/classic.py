"""Classic Textual Inversion: the rows themselves are the parameters, updated by AdamW (Gal et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from pseudoword.contracts import Arrays
from pseudoword.errors import RecipeError
from pseudoword.settings import at_least, settle_types

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ClassicOptions:
    """AdamW on the rows."""

    name: ClassVar[str] = "classic"

    adam_beta1: float = 0.9
    """Decay of the running mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of the running mean of squared gradients."""
    adam_weight_decay: float = 0.0
    """Pull of the rows toward zero. The guide's script uses 0.01, which shrinks the word for no gain."""
    adam_epsilon: float = 1e-8
    """Keeps the step finite where gradients vanish."""

    def __post_init__(self) -> None:
        settle_types(self)
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 0 and below 1, but is {getattr(self, name)}.")
        at_least(0, adam_weight_decay=self.adam_weight_decay, adam_epsilon=self.adam_epsilon)


class Classic:
    """Rows as parameters, AdamW (Loshchilov & Hutter 2019, alg. 2) as the update."""

    Options = ClassicOptions

    def __init__(self, options: ClassicOptions) -> None:
        self.options = options

    def params(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows themselves."""
        return {encoder: block.astype("float32") for encoder, block in rows.items()}

    def state(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Running means of gradients and of their squares, per block."""
        return {f"{kind}.{name}": p * 0 for name, p in params.items() for kind in ("mean", "square")}

    def state_of_adam(self, encoder: str, means: np.ndarray, squares: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        """The same means; the steps count in the correction of their bias."""
        return {f"mean.{encoder}": means, f"square.{encoder}": squares, "earlier_steps": means.ravel()[:1] * 0 + steps}

    def rows(self, xp: ModuleType, params: Arrays) -> dict[str, Any]:
        """The parameters themselves."""
        del xp
        return dict(params)

    def update(
        self, xp: ModuleType, params: Arrays, grads: Arrays, state: Arrays, lr: float, step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One AdamW step."""
        o = self.options
        new_params, new_state = {}, {name: state[name] for name in state.keys() & {"earlier_steps"}}
        step += state.get("earlier_steps", 0)
        of_means, of_squares = (_counted(xp, beta, step + 1) for beta in (o.adam_beta1, o.adam_beta2))
        root = math.sqrt if isinstance(of_squares, float) else xp.sqrt
        for name, p in params.items():
            g = grads[name]
            mean = o.adam_beta1 * state[f"mean.{name}"] + (1 - o.adam_beta1) * g
            square = o.adam_beta2 * state[f"square.{name}"] + (1 - o.adam_beta2) * g * g
            mean_hat = mean / of_means
            root_hat = xp.sqrt(square) / root(of_squares)
            new_params[name] = p * (1 - lr * o.adam_weight_decay) - lr * mean_hat / (root_hat + o.adam_epsilon)
            new_state |= {f"mean.{name}": mean, f"square.{name}": square}
        return new_params, new_state


def _counted(xp: ModuleType, beta: float, steps: Any) -> Any:
    """Return 1 - beta^steps, what a mean counts that began at zero; `steps` is an array if compiled or after others."""
    if isinstance(steps, int):
        return 1 - beta**steps
    return -xp.expm1(steps * (math.log(beta) if beta else -math.inf))  # in fp32 the difference would lose digits
