"""What the models read of config.json; what it asks for that they do not compute is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from pseudoword.errors import RecipeError

Values = Mapping[str, Sequence[Any]]
"""Those that are computed, by the entry's name; of an entry that is a list, those of its items."""
PerBlock = int | tuple[Any, ...]


@dataclass(frozen=True)
class TextConfiguration:
    """A text encoder's; the defaults are transformers'."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    only: ClassVar[Values] = {"model_type": ("clip_text_model",), "hidden_act": ("quick_gelu", "gelu")}


@dataclass(frozen=True)
class UNetConfiguration:
    """A UNet's; the defaults are diffusers'. What is said per block is from the outermost to the innermost."""

    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: PerBlock = 2
    downsample_padding: int = 1
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: PerBlock = 1280
    transformer_layers_per_block: PerBlock = 1
    reverse_transformer_layers_per_block: tuple[Any, ...] | None = None
    attention_head_dim: PerBlock = 8
    """The number of heads, not their size: diffusers keeps to a wrong name, as all published files do (issue 2011)."""
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    time_embedding_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3

    only: ClassVar[Values] = {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None, "text_time"),
        "attention_type": ("default",),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "dropout": (0,),
        "mid_block_scale_factor": (1,),
        "mid_block_type": (None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
        "resnet_out_scale_factor": (1,),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_type": ("positional",),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }

    def per_block(self, name: str) -> tuple[Any, ...]:
        """Return a value of each block, whether the configuration has one for all or one for each."""
        value, count = getattr(self, name), len(self.block_out_channels)
        values = value if isinstance(value, tuple) else (value,) * count
        if len(values) != count:
            raise RecipeError(f"The UNet's configuration has {len(values)} values of {name} for its {count} blocks.")
        return values


@dataclass(frozen=True)
class VAEConfiguration:
    """A VAE's; the defaults are diffusers'."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.18215
    """What latents are multiplied by for the UNet; nothing that the VAE itself computes."""
    latents_mean: tuple[float, ...] | None = None
    """Of each channel, where latents are normalised for the UNet; as the factor."""

    only: ClassVar[Values] = {
        "act_fn": ("silu", "swish"),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
    }


NO_MATTER = {
    "addition_embed_type_num_heads",  # of another kind of added embedding
    "force_upcast",  # precision is the caller's
    "latents_std",  # nothing without latents_mean
    "mid_block_only_cross_attention",  # of another kind of middle
    "sample_size",
    "shift_factor",
    "upcast_attention",  # scores and softmax are in fp32 here in any case
    "use_linear_projection",  # a 1×1 convolution is the same arithmetic
}


Kind = TypeVar("Kind", TextConfiguration, UNetConfiguration, VAEConfiguration)


def read(kind: type[Kind], config: Mapping[str, Any], model: str) -> Kind:
    """Return a model's configuration of the values of its config.json, or raise RecipeError."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, value in config.items():
        # transformers writes the settings of all its models, so a text encoder's others say nothing.
        silent = name.startswith("_") or name in NO_MATTER or (kind is TextConfiguration and name not in kind.only)
        if not silent and not _is_computed(value, defaults.get(name), kind.only.get(name), known=name in defaults):
            raise RecipeError(
                f"The configuration of the {model} says {name} = {value!r}, which is not computed in JAX; "
                "learn words for this base with PyTorch."
            )
    return kind(**{name: _frozen(value) for name, value in config.items() if name in defaults})


def _is_computed(value: Any, default: Any, only: Sequence[Any] | None, *, known: bool) -> bool:
    """Whether a value is one that the models compute; of an entry that they do not know, one that means "none"."""
    if only is not None:
        return all(each in only for each in (value if isinstance(value, list | tuple) else [value]))
    if known:
        return value is not None or default is None
    return value is None or value is False


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value
