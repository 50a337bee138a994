"""Stable Diffusion's denoiser (Rombach et al. 2022, arXiv 2112.10752): diffusers' UNet2DConditionModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from pseudoword.flax_models import configurations
from pseudoword.flax_models.configurations import UNetConfiguration
from pseudoword.flax_models.layers import Layers, through
from pseudoword.flax_models.resnets import (
    Downsample2D,
    Maps,
    ResnetBlock2D,
    Upsample2D,
    channels_first,
    channels_last,
)
from pseudoword.flax_models.transformers import Tokens, Transformer2DModel

Time = Float[jax.Array, "batch time"]


class UNet2DConditionModel(nnx.Module):
    """The denoiser of Stable Diffusion 1.x, 2.x and XL."""

    def __init__(self, config: Mapping[str, Any], layers: Layers | None = None) -> None:
        self.configuration = own = configurations.read(UNetConfiguration, config, "UNet")
        layers = layers or Layers()
        self.dtype = layers.dtype
        outermost = own.block_out_channels[0]
        time = own.time_embedding_dim or 4 * outermost
        self.conv_in = layers.conv(own.in_channels, outermost, size=own.conv_in_kernel)
        self.time_embedding = TimestepEmbedding(layers, outermost, time)
        if own.addition_embed_type:
            self.add_embedding = TimestepEmbedding(layers, own.projection_class_embeddings_input_dim or 0, time)
        self.down_blocks = nnx.List([DownBlock(layers, own, sizes, time) for sizes in down_sizes(own)])
        self.mid_block = MidBlock(layers, own, time) if own.mid_block_type else None
        self.up_blocks = nnx.List([UpBlock(layers, own, sizes, time) for sizes in up_sizes(own)])
        self.conv_norm_out = layers.group_norm(own.norm_num_groups, outermost, own.norm_eps)
        self.conv_out = layers.conv(outermost, own.out_channels, size=own.conv_out_kernel)

    def __call__(
        self,
        sample: Float[jax.Array, "batch channels height width"],
        timestep: Int[jax.Array, " batch"],
        encoder_hidden_states: Tokens,
        text_embeds: Float[jax.Array, "batch projection"] | None = None,
        time_ids: Int[jax.Array, "batch 6"] | None = None,
    ) -> Float[jax.Array, "batch channels height width"]:
        """Return the prediction in the dtype that it was computed in; SDXL's take the last two arguments as well."""
        time = self._time(timestep, text_embeds, time_ids)
        context = encoder_hidden_states.astype(self.dtype)
        hidden = self.conv_in(channels_last(sample))
        skips = [hidden]
        for block in self.down_blocks:
            hidden = block(hidden, time, context, skips)
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, time, context)
        for block in self.up_blocks:
            hidden = block(hidden, time, context, skips)
        return channels_first(self.conv_out(jax.nn.silu(self.conv_norm_out(hidden))))

    def _time(self, timestep: jax.Array, text_embeds: jax.Array | None, time_ids: jax.Array | None) -> Time:
        """Return the embedding of the timestep, and of a prompt's pooled output and a picture's sizes."""
        own = self.configuration
        time = self.time_embedding(sinusoids(timestep, own.block_out_channels[0], own))
        if not own.addition_embed_type:
            return time
        assert text_embeds is not None, "this UNet is told of the pooled output"
        assert time_ids is not None, "this UNet is told where each picture was cut"
        places = sinusoids(time_ids.reshape(-1), own.addition_time_embed_dim or 0, own).reshape(len(time_ids), -1)
        return time + self.add_embedding(jnp.concatenate([text_embeds.astype(jnp.float32), places], axis=-1))


def sinusoids(
    values: Float[jax.Array, " batch"], width: int, own: UNetConfiguration
) -> Float[jax.Array, "batch width"]:
    """Return sines and cosines of values at frequencies from 1 down to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - own.freq_shift)
    angles = values.astype(jnp.float32)[:, None] * jnp.exp(-jnp.log(10000.0) * exponents)
    parts = [jnp.cos(angles), jnp.sin(angles)] if own.flip_sin_to_cos else [jnp.sin(angles), jnp.cos(angles)]
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, width % 2)))


class TimestepEmbedding(nnx.Module):
    """Two linear layers."""

    def __init__(self, layers: Layers, inputs: int, outputs: int) -> None:
        self.linear_1 = layers.linear(inputs, outputs)
        self.linear_2 = layers.linear(outputs, outputs)

    def __call__(self, sines: Float[jax.Array, "batch inputs"]) -> Time:
        """Return the embedding."""
        return self.linear_2(jax.nn.silu(self.linear_1(sines)))


# What each block is made of


@dataclass(frozen=True)
class Sizes:
    """A block's."""

    inputs: tuple[int, ...]
    """The channels that each of its residual blocks takes."""
    outputs: int
    depths: tuple[int, ...] | None
    """The transformer blocks after each of them; None without attention."""
    heads: int
    context: int
    only_cross: bool
    resamples: bool
    """Whether it halves or doubles the maps at its end."""


def down_sizes(own: UNetConfiguration) -> Iterator[Sizes]:
    """Yield what the blocks on the way down are made of."""
    names = ("down_block_types", "layers_per_block", *ATTENTION, "transformer_layers_per_block")
    blocks = zip(own.block_out_channels, *map(own.per_block, names), strict=True)
    before, last = own.block_out_channels[0], len(own.block_out_channels) - 1
    for i, (outputs, kind, count, heads, context, only_cross, depth) in enumerate(blocks):
        inputs = (before, *(outputs,) * (count - 1))
        yield Sizes(inputs, outputs, _depths(kind, depth, count), heads, context, only_cross, i < last)
        before = outputs


def up_sizes(own: UNetConfiguration) -> Iterator[Sizes]:
    """Yield what the blocks on the way up are made of; each takes one more layer, and what the way down skipped."""
    counts, *attention = (own.per_block(name)[::-1] for name in ("layers_per_block", *ATTENTION))
    kinds = own.per_block("up_block_types")
    depths = own.reverse_transformer_layers_per_block or own.per_block("transformer_layers_per_block")[::-1]
    channels = own.block_out_channels[::-1]
    before, last = channels[0], len(channels) - 1
    blocks = zip(channels, kinds, counts, *attention, depths, strict=True)
    for i, (outputs, kind, count, heads, context, only_cross, depth) in enumerate(blocks):
        below = (before, *(outputs,) * count)
        skipped = (*(outputs,) * count, channels[min(i + 1, last)])
        inputs = tuple(map(sum, zip(below, skipped, strict=True)))
        yield Sizes(inputs, outputs, _depths(kind, depth, count + 1), heads, context, only_cross, i < last)
        before = outputs


def middle(own: UNetConfiguration) -> Sizes:
    """Return what the middle is made of: as the innermost block says, but with one layer that attends, or none."""
    channels, depth = own.block_out_channels[-1], own.per_block("transformer_layers_per_block")[-1]
    heads, context, _ = (own.per_block(name)[-1] for name in ATTENTION)
    attends = own.mid_block_type == "UNetMidBlock2DCrossAttn"
    depths = (depth[0] if isinstance(depth, tuple) else depth,) if attends else None
    return Sizes((channels,) * (1 + attends), channels, depths, heads, context, only_cross=False, resamples=False)


ATTENTION = ("attention_head_dim", "cross_attention_dim", "only_cross_attention")


def _depths(kind: str, depth: int | tuple[int, ...], count: int) -> tuple[int, ...] | None:
    if not kind.startswith("CrossAttn"):
        return None
    return depth if isinstance(depth, tuple) else (depth,) * count


class Block(nnx.Module):
    """Residual blocks, each with attention to the prompt after it if the block has any."""

    def __init__(self, layers: Layers, own: UNetConfiguration, sizes: Sizes, time: int) -> None:
        self.resnets = nnx.List([_resnet(layers, own, channels, sizes.outputs, time) for channels in sizes.inputs])
        if sizes.depths is not None:
            self.attentions = nnx.List([_attention(layers, own, sizes, depth) for depth in sizes.depths])
        self.attends = sizes.depths is not None
        self.checkpoint = layers.checkpoint

    def layer(self, i: int, hidden: Maps, time: Time, context: Tokens) -> Maps:
        """Return what one residual block and its attention make of the maps."""
        hidden = through(self.checkpoint, self.resnets[i], hidden, time)
        return self.attentions[i](hidden, context) if self.attends else hidden


class DownBlock(Block):
    """Layers on the way down, which leave their outputs for the way up."""

    def __init__(self, layers: Layers, own: UNetConfiguration, sizes: Sizes, time: int) -> None:
        super().__init__(layers, own, sizes, time)
        halving = [Downsample2D(layers, sizes.outputs, own.downsample_padding)] if sizes.resamples else []
        self.downsamplers = nnx.List(halving)

    def __call__(self, hidden: Maps, time: Time, context: Tokens, skips: list[Maps]) -> Maps:
        """Return the block's output, having put it and all those before it on `skips`."""
        for i in range(len(self.resnets)):
            hidden = self.layer(i, hidden, time, context)
            skips.append(hidden)
        for downsample in self.downsamplers:
            hidden = downsample(hidden)
            skips.append(hidden)
        return hidden


class UpBlock(Block):
    """Layers on the way up, each of which takes what one on the way down left."""

    def __init__(self, layers: Layers, own: UNetConfiguration, sizes: Sizes, time: int) -> None:
        super().__init__(layers, own, sizes, time)
        self.upsamplers = nnx.List([Upsample2D(layers, sizes.outputs)] if sizes.resamples else [])

    def __call__(self, hidden: Maps, time: Time, context: Tokens, skips: list[Maps]) -> Maps:
        """Return the block's output, having taken from the end of `skips`."""
        for i in range(len(self.resnets)):
            hidden = self.layer(i, jnp.concatenate([hidden, skips.pop()], axis=-1), time, context)
        for upsample in self.upsamplers:
            hidden = upsample(hidden, skips[-1].shape[1:3])
        return hidden


class MidBlock(nnx.Module):
    """A residual block, and where the middle attends as well, transformer blocks and a second one."""

    def __init__(self, layers: Layers, own: UNetConfiguration, time: int) -> None:
        channels, sizes = own.block_out_channels[-1], middle(own)
        self.attentions = nnx.List([_attention(layers, own, sizes, depth) for depth in sizes.depths or ()])
        self.resnets = nnx.List([_resnet(layers, own, channels, channels, time) for _ in sizes.inputs])
        self.checkpoint = layers.checkpoint

    def __call__(self, hidden: Maps, time: Time, context: Tokens) -> Maps:
        """Return the block's output."""
        first, *others = self.resnets
        hidden = through(self.checkpoint, first, hidden, time)
        for attention, resnet in zip(self.attentions, others, strict=True):
            hidden = through(self.checkpoint, resnet, attention(hidden, context), time)
        return hidden


def _resnet(layers: Layers, own: UNetConfiguration, inputs: int, outputs: int, time: int) -> ResnetBlock2D:
    return ResnetBlock2D(layers, inputs, outputs, groups=own.norm_num_groups, eps=own.norm_eps, time=time)


def _attention(layers: Layers, own: UNetConfiguration, sizes: Sizes, depth: int) -> Transformer2DModel:
    return Transformer2DModel(
        layers,
        sizes.outputs,
        context=sizes.context,
        heads=sizes.heads,
        depth=depth,
        groups=own.norm_num_groups,
        only_cross=sizes.only_cross,
    )
