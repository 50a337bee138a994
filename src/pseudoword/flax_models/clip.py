"""CLIP's text encoder (Radford et al. 2021, arXiv 2103.00020), as transformers has it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from pseudoword.errors import RecipeError
from pseudoword.flax_models import configurations
from pseudoword.flax_models.configurations import TextConfiguration
from pseudoword.flax_models.layers import Layers, attend, through

Hidden = Float[jax.Array, "batch tokens width"]


class TextOutput(NamedTuple):
    """What a text encoder makes of prompts, in fp32."""

    last_hidden_state: Hidden
    """The last layer's, after the final layer norm."""
    hidden_states: tuple[Hidden, ...]
    """The embeddings, and what each layer made of them, without that norm."""


class CLIPTextModel(nnx.Module):
    """A text encoder that takes learned rows beside its frozen table."""

    def __init__(self, config: Mapping[str, Any], layers: Layers | None = None) -> None:
        self.configuration = own = configurations.read(TextConfiguration, config, "text encoder")
        layers = layers or Layers()
        self.embeddings = Embeddings(layers, own)
        self.encoder = Encoder(layers, own)
        self.final_layer_norm = layers.layer_norm(own.hidden_size, own.layer_norm_eps, dtype=jnp.float32)

    def __call__(
        self, ids: Int[jax.Array, "batch tokens"], rows: Float[jax.Array, "rows width"] | None = None
    ) -> TextOutput:
        """Return the hidden states of prompts; ids from the table's size on are looked up in the rows."""
        states = self.encoder(self.embeddings(ids, rows))
        return TextOutput(self.final_layer_norm(states[-1]), states)


class CLIPTextModelWithProjection(CLIPTextModel):
    """A text encoder with `text_projection`, for the hidden state at the token that the caller pools at."""

    def __init__(self, config: Mapping[str, Any], layers: Layers | None = None) -> None:
        layers = layers or Layers()
        super().__init__(config, layers)
        own = self.configuration
        self.text_projection = layers.linear(own.hidden_size, own.projection_dim, bias=False)


class Embeddings(nnx.Module):
    """Embeddings of tokens and of their places."""

    def __init__(self, layers: Layers, own: TextConfiguration) -> None:
        self.token_embedding = layers.embedding(own.vocab_size, own.hidden_size)
        self.position_embedding = layers.embedding(own.max_position_embeddings, own.hidden_size)

    def __call__(self, ids: Int[jax.Array, "batch tokens"], rows: Float[jax.Array, "rows width"] | None) -> Hidden:
        """Return the embeddings in fp32, NaN for an id that is in neither table nor rows, and so for its prompt."""
        table = self.token_embedding.embedding[...]
        places = self.position_embedding.embedding[: ids.shape[1]]
        found = _look_up(table, ids)
        if rows is not None:
            size = table.shape[0]
            found = jnp.where((ids >= size)[..., None], _look_up(rows, ids - size), found)
        return found + places.astype(jnp.float32)


def _look_up(table: Float[jax.Array, "size width"], ids: Int[jax.Array, "batch tokens"]) -> Hidden:
    # By default XLA would take the nearest row for an id outside of the table, and nobody would know.
    found = table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return found.astype(jnp.float32)


class Encoder(nnx.Module):
    """The layers, one after the other."""

    def __init__(self, layers: Layers, own: TextConfiguration) -> None:
        self.layers = nnx.List([EncoderLayer(layers, own) for _ in range(own.num_hidden_layers)])
        self.checkpoint = layers.checkpoint

    def __call__(self, hidden: Hidden) -> tuple[Hidden, ...]:
        """Return what goes into the layers and what comes out of each."""
        states = [hidden]
        for layer in self.layers:
            states.append(through(self.checkpoint, layer, states[-1]))
        return tuple(states)


class EncoderLayer(nnx.Module):
    """Attention to earlier tokens, then two linear layers. The residual stays in fp32, as under torch's autocast."""

    def __init__(self, layers: Layers, own: TextConfiguration) -> None:
        norm = functools.partial(layers.layer_norm, own.hidden_size, own.layer_norm_eps, dtype=jnp.float32)
        self.layer_norm1, self.layer_norm2 = norm(), norm()
        self.self_attn = SelfAttention(layers, own)
        self.mlp = MLP(layers, own)

    def __call__(self, hidden: Hidden) -> Hidden:
        """Return the hidden states of the next layer."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class SelfAttention(nnx.Module):
    """Each token's attention to itself and those before it."""

    def __init__(self, layers: Layers, own: TextConfiguration) -> None:
        linear = functools.partial(layers.linear, own.hidden_size, own.hidden_size)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = linear(), linear(), linear(), linear()
        if own.hidden_size % own.num_attention_heads:
            raise RecipeError(
                f"The text encoder's configuration has {own.num_attention_heads} heads of attention for a width of "
                f"{own.hidden_size}."
            )
        self.heads = own.num_attention_heads

    def __call__(self, hidden: Hidden) -> Hidden:
        """Return what each token gathers."""
        parts = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        return self.out_proj(attend(*parts, self.heads, causal=True))


class MLP(nnx.Module):
    """Two linear layers around an activation."""

    def __init__(self, layers: Layers, own: TextConfiguration) -> None:
        self.fc1 = layers.linear(own.hidden_size, own.intermediate_size)
        self.fc2 = layers.linear(own.intermediate_size, own.hidden_size)
        self.activation = ACTIVATIONS[own.hidden_act]

    def __call__(self, hidden: Hidden) -> Hidden:
        """Return each token's hidden state, transformed on its own."""
        return self.fc2(self.activation(self.fc1(hidden)))


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return x sigmoid(1.702 x) (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2), which CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}
