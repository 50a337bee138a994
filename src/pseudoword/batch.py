"""What a step reads (`Batch`) and a step's random choices (`Draw`); NumPy on the host, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64


@dataclass(frozen=True)
class Draw:
    """The random choices for some pictures of one step, each a function of (seed, concept, step, index)."""

    step: int
    index: Int[np.ndarray, " batch"]
    """Each picture's place in its concept's global batch."""
    picture: Int[np.ndarray, " batch"]
    template: Float[np.ndarray, " batch"]
    """In [0, 1): which of the picture's captions, however many it has."""
    tags: UInt64[np.ndarray, " batch"]
    """Key of the order of the caption's tags, where these are shuffled."""
    drop: Float[np.ndarray, " batch"]
    """In [0, 1): below the share of dropped captions, this one is dropped."""
    flip: Bool[np.ndarray, " batch"]
    crop: Float[np.ndarray, " batch"]
    """In [0, 1): which of the picture's frames, however many it has."""
    timestep: Int[np.ndarray, " batch"]
    posterior: Float[np.ndarray, "batch channels height width"]
    """Standard normal numbers that sample the latents from their moments."""
    noise: Float[np.ndarray, "batch channels height width"]
    """The standard normal noise that the denoiser must find."""

    def part(self, cut: slice) -> Draw:
        """Return the choices for some of the pictures."""
        return Draw(self.step, **{f.name: getattr(self, f.name)[cut] for f in fields(self) if f.name != "step"})


@dataclass(frozen=True)
class Batch:
    """What the loss reads for some pictures: token ids per text encoder, latent moments, and whose picture each is."""

    ids: Mapping[str, Int[np.ndarray, "batch tokens"]]
    mean: Float[np.ndarray, "batch channels height width"]
    std: Float[np.ndarray, "batch channels height width"]
    concept: Int[np.ndarray, " batch"]
    """Index of the concept in the run's list."""
    placement: Int[np.ndarray, "batch 6"]
    """Each picture's height and width, where it was cut (top and left) once resized, and the height and width that it
    is trained at, in pixels: what Stable Diffusion XL is told (Podell et al. 2023, sec. 2.2)."""
    weight: Float[np.ndarray, "batch height width"] | None = None
    """How much each place counts in its picture's loss; None where all count the same."""

    def part(self, cut: slice) -> Batch:
        """Return some of the pictures."""
        ids = {encoder: block[cut] for encoder, block in self.ids.items()}
        weight = None if self.weight is None else self.weight[cut]
        return Batch(ids, self.mean[cut], self.std[cut], self.concept[cut], self.placement[cut], weight)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of the latents."""
        return self.mean.shape[1:]


Pair = tuple[Batch, Draw]
"""Pictures, and the random choices for them."""


def joined(pairs: Sequence[Pair]) -> Pair:
    """Return pictures of one shape as one batch; its step is the first's."""
    if len(pairs) == 1:
        return pairs[0]
    batches, drawn = [batch for batch, _ in pairs], [draw for _, draw in pairs]
    ids = {encoder: np.concatenate([batch.ids[encoder] for batch in batches]) for encoder in batches[0].ids}
    arrays = {name: _together(batches, name) for name in ("mean", "std", "concept", "placement")}
    weight = None
    if any(batch.weight is not None for batch in batches):
        plain = [np.ones((len(b.mean), *b.shape[1:]), np.float32) if b.weight is None else b.weight for b in batches]
        weight = np.concatenate(plain)
    choices = {f.name: _together(drawn, f.name) for f in fields(Draw) if f.name != "step"}
    return Batch(ids, **arrays, weight=weight), Draw(drawn[0].step, **choices)


def _together(several: Sequence[Batch] | Sequence[Draw], name: str) -> np.ndarray:
    return np.concatenate([getattr(one, name) for one in several])


def parts(pair: Pair, largest: int) -> list[Pair]:
    """Return pictures in equal parts, or nearly so, of at most `largest` each."""
    batch, draw = pair
    count = len(batch.concept)
    number = -(-count // max(1, largest))
    if number == 1:
        return [pair]
    cuts = [slice(count * i // number, count * (i + 1) // number) for i in range(number)]
    return [(batch.part(cut), draw.part(cut)) for cut in cuts]
