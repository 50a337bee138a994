"""What a family, a method and an engine promise; the seams of the house, NumPy at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from pseudoword.batch import Batch, Draw
    from pseudoword.vocabulary import Vocabulary

Arrays = Mapping[str, Any]
"""Named arrays of the engine's library: a concept's parameters, their gradients, or an optimizer's state."""


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient that is NaN or infinite; parameters are still those of the step before."""


class Method(Protocol):
    """How a word's rows follow from its parameters, and how these are updated. Array code over a namespace."""

    def params(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the parameters from which `rows` gives these starting rows, one block per text encoder."""
        ...

    def state(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the optimizer state before the first step."""
        ...

    def rows(self, xp: ModuleType, params: Arrays) -> dict[str, Any]:
        """Return the rows `[vectors, width]` per text encoder; differentiable."""
        ...

    def update(
        self, xp: ModuleType, params: Arrays, grads: Arrays, state: Arrays, lr: float, step: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return parameters and state after step `step` (from 0) of one concept, given its gradients."""
        ...


class Family(Protocol):
    """A loaded base model of some kind, frozen. Arrays are the engine's own unless said otherwise."""

    vocabularies: Mapping[str, Vocabulary]
    """Per text encoder."""
    num_timesteps: int
    resolution: int
    """The model's own side of a picture, in pixels."""

    def encode_images(self, pixels: Float[np.ndarray, "batch 3 height width"]) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the pictures' latents, as NumPy arrays."""
        ...

    def latents(self, mean: Any, std: Any, posterior: Any) -> Any:
        """Return scaled latents sampled from their moments with standard normal numbers."""
        ...

    def noise_levels(self, timestep: Any) -> tuple[Any, Any]:
        """Return alpha and sigma of timesteps, shaped to multiply latents."""
        ...

    def condition(self, ids: Arrays, rows: Arrays | None) -> Any:
        """Return what the denoiser is conditioned on for prompts' ids, with learned rows at the ids above the table."""
        ...

    def denoise(self, noised: Any, timestep: Any, condition: Any) -> Any:
        """Return the denoiser's prediction."""
        ...

    def target(self, latents: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
        """Return what the prediction should be."""
        ...


class Engine(Protocol):
    """Who differentiates and updates, on which devices and processes."""

    is_main: bool
    """Whether this process writes the run's files."""

    def shares(self, batch_size: int, gradient_accumulation_steps: int) -> list[list[int]]:
        """Return this process' micro-batches of a step: indices into the concept's global batch."""
        ...

    def step(self, micro_batches: Sequence[tuple[Batch, Draw]], lr: float) -> dict[str, float]:
        """Carry out one optimizer step and return the loss of each concept's global batch."""
        ...
