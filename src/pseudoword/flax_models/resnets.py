"""Residual blocks of convolutions, and halving and doubling of pictures, for UNet and VAE. Channels are last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from pseudoword.flax_models.layers import Layers, Padding

Maps = Float[jax.Array, "batch height width channels"]


class ResnetBlock2D(nnx.Module):
    """Two convolutions beside a shortcut; of a UNet, the time embedding is added between them."""

    def __init__(
        self, layers: Layers, inputs: int, outputs: int, *, groups: int, eps: float, time: int | None = None
    ) -> None:
        self.norm1 = layers.group_norm(groups, inputs, eps)
        self.conv1 = layers.conv(inputs, outputs)
        self.time_emb_proj = layers.linear(time, outputs) if time else None
        self.norm2 = layers.group_norm(groups, outputs, eps)
        self.conv2 = layers.conv(outputs, outputs)
        self.conv_shortcut = layers.linear(inputs, outputs) if inputs != outputs else None

    def __call__(self, hidden: Maps, time: Float[jax.Array, "batch time"] | None = None) -> Maps:
        """Return the block's output."""
        inner = self.conv1(jax.nn.silu(self.norm1(hidden)))
        if self.time_emb_proj is not None and time is not None:
            inner = inner + self.time_emb_proj(jax.nn.silu(time))[:, None, None]
        inner = self.conv2(jax.nn.silu(self.norm2(inner)))
        return inner + (hidden if self.conv_shortcut is None else self.conv_shortcut(hidden))


class Downsample2D(nnx.Module):
    """A convolution that halves height and width."""

    def __init__(self, layers: Layers, channels: int, padding: int) -> None:
        # Where diffusers pads nothing in the layer, it puts a row of zeros below and a column to the right before it.
        around: Padding = (padding, padding) if padding else (0, 1)
        self.conv = layers.conv(channels, channels, stride=2, padding=around)

    def __call__(self, hidden: Maps) -> Maps:
        """Return maps of half the size."""
        return self.conv(hidden)


class Upsample2D(nnx.Module):
    """The nearest pixel, then a convolution."""

    def __init__(self, layers: Layers, channels: int) -> None:
        self.conv = layers.conv(channels, channels)

    def __call__(self, hidden: Maps, size: tuple[int, ...] | None = None) -> Maps:
        """Return maps of twice the size, or one pixel less where `size` says so, as a halved odd size does."""
        batch, height, width, channels = hidden.shape
        twice = jnp.broadcast_to(hidden[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        tall, wide = size or (2 * height, 2 * width)
        return self.conv(twice.reshape(batch, 2 * height, 2 * width, channels)[:, :tall, :wide])


def channels_last(images: Float[jax.Array, "batch channels height width"]) -> Maps:
    """Return images as they are computed with."""
    return jnp.transpose(images, (0, 2, 3, 1))


def channels_first(maps: Maps) -> Float[jax.Array, "batch channels height width"]:
    """Return images as callers know them."""
    return jnp.transpose(maps, (0, 3, 1, 2))
