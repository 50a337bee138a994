"""The UNet against diffusers', for every kind of configuration that it takes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel as TorchUNet
from flax import nnx

from pseudoword.flax_models import Layers, UNet2DConditionModel
from tests.flax_models.references import EXACT, error, numbers, ours, randomised

WIDTH, POOLED = 24, 20
SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
THREE: dict[str, Any] = {
    "block_out_channels": (8, 16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
TEXT_TIME: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + POOLED,
}
ALL_ATTEND: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
ONE: dict[str, Any] = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as XL": {
        **THREE,
        **TEXT_TIME,
        "use_linear_projection": True,
        "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 2, 3),
    },
    "distilled": {  # as SSD-1B and its like: depths of each layer, another way up, a middle without attention
        **THREE,
        "layers_per_block": (1, 2, 2),
        "transformer_layers_per_block": (1, (2, 1), (1, 2)),
        "reverse_transformer_layers_per_block": ((1, 2, 1), (2, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "attention to the prompt alone in one block": {
        **ALL_ATTEND,
        "only_cross_attention": (True, False),
        "mid_block_only_cross_attention": True,
        "cross_attention_dim": (WIDTH, WIDTH),
        "upcast_attention": True,
    },
    "other edges, times and depths, and no middle": {
        "layers_per_block": 2,
        "conv_in_kernel": 1,
        "conv_out_kernel": 5,
        "downsample_padding": 0,
        "in_channels": 7,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "time_embedding_dim": 40,
        "mid_block_type": None,
    },
}
"""Those of 1.x, 2.x and XL's miniature are in test_gradients.py."""


def reference(**more: Any) -> Any:
    torch.manual_seed(0)
    return randomised(TorchUNet(**{**SMALL, **more}))


def inputs(channels: int = 4, size: tuple[int, int] = (8, 8)) -> list[np.ndarray]:
    return [numbers(0, 2, channels, *size), np.array([3, 721]), numbers(1, 2, 5, WIDTH)]


def told(config: dict[str, Any]) -> dict[str, np.ndarray]:
    if not config.get("addition_embed_type"):
        return {}
    return {
        "text_embeds": numbers(2, 2, POOLED),
        "time_ids": np.array([[64, 48, 3, 0, 64, 64], [32, 32, 0, 9, 64, 32]]),
    }


def predictions(unet: Any, theirs: Any, given: list[np.ndarray], more: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Return what our UNet predicts, and what torch's does."""
    kwargs = {"added_cond_kwargs": {name: torch.tensor(value) for name, value in more.items()}} if more else {}
    with torch.no_grad():
        expected = theirs(*map(torch.tensor, given), **kwargs).sample
    graph, state = nnx.split(unet)
    call = jax.jit(lambda state, *given, **more: nnx.merge(graph, state)(*given, **more))
    return call(state, *given, **more), expected


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_predictions_are_those_of_diffusers(name: str, tmp_path: Path):
    config = CONFIGURATIONS[name]
    theirs = reference(**config)
    unet = ours(UNet2DConditionModel, theirs, tmp_path)
    assert error(*predictions(unet, theirs, inputs(config.get("in_channels", 4)), told(config))) < EXACT


@pytest.mark.parametrize("size", [(1, 1), (5, 7)])
def test_any_size_of_latents_is_taken(size: tuple[int, int], tmp_path: Path):
    theirs = reference(**ALL_ATTEND)
    unet = ours(UNet2DConditionModel, theirs, tmp_path)
    assert error(*predictions(unet, theirs, inputs(size=size), {})) < EXACT


def test_a_condition_that_lacks_something_is_not_guessed(tmp_path: Path):
    unet = ours(UNet2DConditionModel, reference(**CONFIGURATIONS["as XL"]), tmp_path)
    given = list(map(jnp.asarray, inputs()))
    with pytest.raises(AssertionError, match="pooled output"):
        unet(*given)
    with pytest.raises(AssertionError, match="where each picture was cut"):
        unet(*given, text_embeds=jnp.zeros((2, POOLED)))


def test_half_precision_is_near_and_holds_half_the_bytes(tmp_path: Path):
    theirs = reference()
    unet = ours(UNet2DConditionModel, theirs, tmp_path, Layers(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(unet))} == {jnp.dtype(jnp.bfloat16)}
    made, expected = predictions(unet, theirs, inputs(), {})
    assert made.dtype == jnp.bfloat16
    assert EXACT < error(made, expected) < 0.05


def test_activations_that_are_computed_again_give_the_same_gradient_and_are_not_kept(tmp_path: Path):
    theirs = reference(**ONE)
    sample, timestep, context = map(jnp.asarray, inputs())
    gradients, kept = [], []
    for checkpoint in (None, jax.checkpoint):
        graph, state = nnx.split(ours(UNet2DConditionModel, theirs, tmp_path, Layers(checkpoint=checkpoint)))

        def loss(context: jax.Array, state: Any, graph: Any = graph) -> jax.Array:
            return jnp.square(nnx.merge(graph, state)(sample, timestep, context)).mean()

        gradients.append(np.asarray(jax.jit(jax.grad(loss))(context, state)))
        # Compiled for a CPU both need the same memory: XLA joins there what is computed twice. So it is counted before.
        pullback = jax.eval_shape(lambda *given, loss=loss: jax.vjp(loss, *given)[1], context, state)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(pullback)))
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * np.abs(gradients[0]).max())
    assert kept[1] < 0.5 * kept[0]


def test_a_policy_says_what_is_kept():
    kept = []
    for policy in (jax.checkpoint_policies.nothing_saveable, jax.checkpoint_policies.everything_saveable):
        layers = Layers(checkpoint=functools.partial(jax.checkpoint, policy=policy))
        unet = UNet2DConditionModel({**SMALL, **ONE}, layers)
        graph, state = nnx.split(unet)
        loss = lambda state, *given, graph=graph: nnx.merge(graph, state)(*given).sum()  # noqa: E731
        given = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in inputs()]
        pullback = jax.eval_shape(lambda *own, loss=loss: jax.vjp(loss, *own)[1], state, *given)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(pullback)))
    assert kept[0] < 0.5 * kept[1]
