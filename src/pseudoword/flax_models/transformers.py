"""Attention in UNet and VAE: places to places, and places to the tokens of a prompt."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from pseudoword.errors import RecipeError
from pseudoword.flax_models.layers import Layers, attend, through
from pseudoword.flax_models.resnets import Maps

Tokens = Float[jax.Array, "batch tokens width"]


class Attention(nnx.Module):
    """Attention of tokens to themselves, or to a context of another width."""

    def __init__(self, layers: Layers, width: int, context: int, heads: int, *, bias: bool = False) -> None:
        self.to_q = layers.linear(width, width, bias=bias)
        self.to_k = layers.linear(context, width, bias=bias)
        self.to_v = layers.linear(context, width, bias=bias)
        self.to_out = nnx.List([layers.linear(width, width)])
        if width % heads:
            raise RecipeError(f"The UNet's configuration has {heads} heads of attention for {width} channels.")
        self.heads = heads

    def __call__(self, hidden: Tokens, context: Tokens | None = None) -> Tokens:
        """Return what each token gathers from the context, or from all tokens."""
        context = hidden if context is None else context
        parts = self.to_q(hidden), self.to_k(context), self.to_v(context)
        return self.to_out[0](attend(*parts, self.heads))


class GEGLU(nnx.Module):
    """A linear layer of which one half gates the other (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, layers: Layers, inputs: int, outputs: int) -> None:
        self.proj = layers.linear(inputs, 2 * outputs)

    def __call__(self, hidden: Tokens) -> Tokens:
        """Return the gated half."""
        values, gates = jnp.split(self.proj(hidden), 2, axis=-1)
        return values * jax.nn.gelu(gates, approximate=False)


class FeedForward(nnx.Module):
    """A gated layer four times as wide, and one back; diffusers' files call them 0 and 2 of `net`."""

    def __init__(self, layers: Layers, width: int) -> None:
        self.net = nnx.Dict({"0": GEGLU(layers, width, 4 * width), "2": layers.linear(4 * width, width)})

    def __call__(self, hidden: Tokens) -> Tokens:
        """Return each token's hidden state, transformed on its own."""
        return self.net["2"](self.net["0"](hidden))


class BasicTransformerBlock(nnx.Module):
    """Attention among places (or to the prompt twice), attention to the prompt, and a feed-forward layer."""

    def __init__(self, layers: Layers, width: int, context: int, heads: int, *, only_cross: bool) -> None:
        self.norm1, self.norm2, self.norm3 = (layers.layer_norm(width) for _ in range(3))
        self.attn1 = Attention(layers, width, context if only_cross else width, heads)
        self.attn2 = Attention(layers, width, context, heads)
        self.ff = FeedForward(layers, width)
        self.only_cross = only_cross

    def __call__(self, hidden: Tokens, context: Tokens) -> Tokens:
        """Return the places' next hidden states."""
        hidden = hidden + self.attn1(self.norm1(hidden), context if self.only_cross else None)
        hidden = hidden + self.attn2(self.norm2(hidden), context)
        return hidden + self.ff(self.norm3(hidden))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the places of a map, beside a shortcut."""

    def __init__(
        self, layers: Layers, channels: int, *, context: int, heads: int, depth: int, groups: int, only_cross: bool
    ) -> None:
        self.norm = layers.group_norm(groups, channels, 1e-6)
        self.proj_in = layers.linear(channels, channels)
        self.transformer_blocks = nnx.List(
            [BasicTransformerBlock(layers, channels, context, heads, only_cross=only_cross) for _ in range(depth)]
        )
        self.proj_out = layers.linear(channels, channels)
        self.checkpoint = layers.checkpoint

    def __call__(self, maps: Maps, context: Tokens) -> Maps:
        """Return the maps after attention to the prompt."""
        batch, _, _, channels = maps.shape
        hidden = self.proj_in(self.norm(maps).reshape(batch, -1, channels))
        for block in self.transformer_blocks:
            hidden = through(self.checkpoint, block, hidden, context)
        return maps + self.proj_out(hidden).reshape(maps.shape)


class MapAttention(Attention):
    """One head's attention among the places of a map, as in the middle of a VAE."""

    def __init__(self, layers: Layers, channels: int, *, groups: int, eps: float) -> None:
        super().__init__(layers, channels, channels, heads=1, bias=True)
        self.group_norm = layers.group_norm(groups, channels, eps)

    def __call__(self, hidden: Maps, context: Tokens | None = None) -> Maps:
        """Return the maps after attention."""
        batch, _, _, channels = hidden.shape
        places = self.group_norm(hidden).reshape(batch, -1, channels)
        return hidden + super().__call__(places, context).reshape(hidden.shape)
