"""What all models are made of: flax's layers with empty parameters, attention, and how exactly they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

Padding = tuple[int, int]
Checkpoint = Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]


def _empty(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return what a parameter is before it is loaded: a shape, and no memory.

    Given to flax in place of initializers this builds a UNet in a second; `nnx.eval_shape`, which traces real ones,
    takes half a minute.
    """
    del key
    return jax.ShapeDtypeStruct(shape, dtype)


def through(checkpoint: Checkpoint | None, block: nnx.Module, *arguments: jax.Array) -> jax.Array:
    """Return what a block makes of arguments, with its activations kept for the gradient as `checkpoint` says."""
    if checkpoint is None:
        return block(*arguments)  # pyright: ignore[reportCallIssue]
    # A module belongs to the trace that made it, and what computes again is another: so it is made anew inside.
    graph, state = nnx.split(block)
    return checkpoint(lambda state, *arguments: nnx.merge(graph, state)(*arguments))(state, *arguments)


@dataclass(frozen=True)
class Layers:
    """Makes a model's layers; how these compute."""

    dtype: Any = jnp.float32
    """What is computed in. Normalisation and attention's softmax are in fp32 whatever it is."""
    param_dtype: Any = jnp.float32
    """What parameters are held in."""
    checkpoint: Checkpoint | None = None
    """`jax.checkpoint`, or that with a policy, to compute activations again for the gradient rather than keep them."""
    rngs: nnx.Rngs = field(default_factory=lambda: nnx.Rngs(0))
    """Asked for by flax, although nothing here is random."""

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nnx.Linear:
        """Return a linear layer, also for 1×1 convolutions."""
        return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=_empty, bias_init=_empty, **self._kind())

    def conv(
        self, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, padding: Padding | None = None
    ) -> nnx.Conv:
        """Return a square convolution; without a padding (before, after) it keeps the size of pictures."""
        edge = (size - 1) // 2
        return nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=[padding or (edge, edge)] * 2,
            kernel_init=_empty,
            bias_init=_empty,
            **self._kind(),
        )

    def group_norm(self, groups: int, channels: int, eps: float) -> nnx.GroupNorm:
        """Return a normalisation of groups of channels."""
        # The fast variance, mean of squares less square of mean, loses what deep layers' large means leave of fp32.
        own = {"epsilon": eps, "use_fast_variance": False, "scale_init": _empty, "bias_init": _empty}
        return nnx.GroupNorm(channels, groups, **own, **self._kind())

    def layer_norm(self, width: int, eps: float = 1e-5, **kind: Any) -> nnx.LayerNorm:
        """Return a normalisation of vectors."""
        own = {"epsilon": eps, "use_fast_variance": False, "scale_init": _empty, "bias_init": _empty}
        return nnx.LayerNorm(width, **own, **{**self._kind(), **kind})

    def embedding(self, size: int, width: int) -> nnx.Embed:
        """Return a table of embeddings."""
        return nnx.Embed(size, width, embedding_init=_empty, **self._kind())

    def _kind(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


def attend(
    query: Float[jax.Array, "batch tokens width"],
    key: Float[jax.Array, "batch keys width"],
    value: Float[jax.Array, "batch keys width"],
    heads: int,
    *,
    causal: bool = False,
) -> Float[jax.Array, "batch tokens width"]:
    """Return what the heads, side by side, gather; scores are summed and their softmax taken in fp32.

    Scores are computed again for the gradient where keeping them would take more than what they are computed of.
    """
    split = [x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value)]
    gather = partial(jax.nn.dot_product_attention, is_causal=causal)
    scores = heads * query.shape[1] * key.shape[1]
    if scores * len(query) > query.size + key.size + value.size:
        gather = jax.checkpoint(gather)
    return gather(*split).reshape(query.shape)
