"""Stable Diffusion's autoencoder: diffusers' AutoencoderKL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from pseudoword.flax_models import configurations
from pseudoword.flax_models.configurations import VAEConfiguration
from pseudoword.flax_models.layers import Layers
from pseudoword.flax_models.resnets import (
    Downsample2D,
    Maps,
    ResnetBlock2D,
    Upsample2D,
    channels_first,
    channels_last,
)
from pseudoword.flax_models.transformers import MapAttention

EPS = 1e-6
Images = Float[jax.Array, "batch channels height width"]


class AutoencoderKL(nnx.Module):
    """Pictures to the moments of latents, and latents to pictures. Latents are as the VAE has them, not scaled."""

    def __init__(self, config: Mapping[str, Any], layers: Layers | None = None) -> None:
        self.configuration = own = configurations.read(VAEConfiguration, config, "VAE")
        layers = layers or Layers()
        moments = 2 * own.latent_channels
        self.encoder = Encoder(layers, own)
        self.decoder = Decoder(layers, own)
        self.quant_conv = layers.linear(moments, moments) if own.use_quant_conv else None
        self.post_quant_conv = (
            layers.linear(own.latent_channels, own.latent_channels) if own.use_post_quant_conv else None
        )

    def encode(self, pixels: Images) -> tuple[Images, Images]:
        """Return mean and standard deviation of the latents of pictures, which are from -1 to 1."""
        moments = self.encoder(channels_last(pixels))
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(channels_first(moments), 2, axis=1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def decode(self, latents: Images) -> Images:
        """Return the pictures of latents, from about -1 to 1."""
        hidden = channels_last(latents)
        if self.post_quant_conv is not None:
            hidden = self.post_quant_conv(hidden)
        return channels_first(self.decoder(hidden))


class Encoder(nnx.Module):
    """Blocks that halve a picture, and a middle."""

    def __init__(self, layers: Layers, own: VAEConfiguration) -> None:
        channels = own.block_out_channels
        self.conv_in = layers.conv(own.in_channels, channels[0])
        self.down_blocks = nnx.List(
            [
                DownBlock(layers, own, inputs, outputs, halves=i < len(channels) - 1)
                for i, (inputs, outputs) in enumerate(_steps(channels))
            ]
        )
        self.mid_block = MidBlock(layers, own)
        self.conv_norm_out = layers.group_norm(own.norm_num_groups, channels[-1], EPS)
        self.conv_out = layers.conv(channels[-1], 2 * own.latent_channels)

    def __call__(self, pixels: Maps) -> Maps:
        """Return moments before `quant_conv`: means, then logarithms of variances."""
        hidden = self.conv_in(pixels)
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(hidden)))


class Decoder(nnx.Module):
    """A middle, and blocks that double it to a picture."""

    def __init__(self, layers: Layers, own: VAEConfiguration) -> None:
        channels = own.block_out_channels[::-1]
        self.conv_in = layers.conv(own.latent_channels, channels[0])
        self.mid_block = MidBlock(layers, own)
        self.up_blocks = nnx.List(
            [
                UpBlock(layers, own, inputs, outputs, doubles=i < len(channels) - 1)
                for i, (inputs, outputs) in enumerate(_steps(channels))
            ]
        )
        self.conv_norm_out = layers.group_norm(own.norm_num_groups, channels[-1], EPS)
        self.conv_out = layers.conv(channels[-1], own.out_channels)

    def __call__(self, latents: Maps) -> Maps:
        """Return pictures."""
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(hidden)))


class DownBlock(nnx.Module):
    """Residual blocks, then half the size."""

    def __init__(self, layers: Layers, own: VAEConfiguration, inputs: int, outputs: int, *, halves: bool) -> None:
        self.resnets = _resnets(layers, own, inputs, outputs, own.layers_per_block)
        self.downsamplers = nnx.List([Downsample2D(layers, outputs, padding=0)] if halves else [])

    def __call__(self, hidden: Maps) -> Maps:
        """Return the block's output."""
        for part in (*self.resnets, *self.downsamplers):
            hidden = part(hidden)
        return hidden


class UpBlock(nnx.Module):
    """Residual blocks, one more than on the way down, then twice the size."""

    def __init__(self, layers: Layers, own: VAEConfiguration, inputs: int, outputs: int, *, doubles: bool) -> None:
        self.resnets = _resnets(layers, own, inputs, outputs, own.layers_per_block + 1)
        self.upsamplers = nnx.List([Upsample2D(layers, outputs)] if doubles else [])

    def __call__(self, hidden: Maps) -> Maps:
        """Return the block's output."""
        for part in (*self.resnets, *self.upsamplers):
            hidden = part(hidden)
        return hidden


class MidBlock(nnx.Module):
    """Two residual blocks, with attention among places between them where the configuration has it."""

    def __init__(self, layers: Layers, own: VAEConfiguration) -> None:
        channels = own.block_out_channels[-1]
        self.resnets = _resnets(layers, own, channels, channels, 2)
        attention = [MapAttention(layers, channels, groups=own.norm_num_groups, eps=EPS)]
        self.attentions = nnx.List(attention if own.mid_block_add_attention else [])

    def __call__(self, hidden: Maps) -> Maps:
        """Return the block's output."""
        first, second = self.resnets
        for part in (first, *self.attentions, second):
            hidden = part(hidden)
        return hidden


def _steps(channels: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the channels that go into each block and come out."""
    return zip((channels[0], *channels), channels, strict=False)


def _resnets(layers: Layers, own: VAEConfiguration, inputs: int, outputs: int, count: int) -> nnx.List:
    groups = own.norm_num_groups
    return nnx.List(
        [ResnetBlock2D(layers, inputs if i == 0 else outputs, outputs, groups=groups, eps=EPS) for i in range(count)]
    )
