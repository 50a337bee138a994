"""Text encoders against transformers', and learned rows against rows written into the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as TorchText
from transformers import CLIPTextModelWithProjection as TorchProjection

from pseudoword.families.lookup import lent
from pseudoword.flax_models import CLIPTextModel, CLIPTextModelWithProjection, Layers
from tests.flax_models.references import EXACT, error, numbers, ours, randomised

SIZE, WIDTH = 30, 32
IDS = np.random.default_rng(0).integers(0, SIZE, (2, 9))


def reference(kind: Any = TorchText, **more: Any) -> Any:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=SIZE,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=12,
        projection_dim=20,
        **more,
    )
    made = randomised(kind(config))
    made.get_input_embeddings().weight.data.normal_(std=0.3)
    return made


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(
    ("kind", "torch_kind"), [(CLIPTextModel, TorchText), (CLIPTextModelWithProjection, TorchProjection)]
)
def test_hidden_states_are_those_of_transformers(kind: Any, torch_kind: Any, activation: str, tmp_path: Path):
    theirs = reference(torch_kind, hidden_act=activation)
    made = ours(kind, theirs, tmp_path)(jnp.asarray(IDS))
    expected = theirs(torch.tensor(IDS), output_hidden_states=True)
    assert error(made.last_hidden_state, expected.last_hidden_state) < EXACT
    for own, other in zip(made.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        assert error(own, other) < EXACT


def test_the_last_layer_without_the_norm_is_what_the_norm_takes(tmp_path: Path):
    theirs = reference()
    text = ours(CLIPTextModel, theirs, tmp_path)
    made = text(jnp.asarray(IDS))
    assert len(made.hidden_states) == 4
    skipped = theirs(torch.tensor(IDS), output_hidden_states=True).hidden_states[-2]
    expected = getattr(theirs, "text_model", theirs).final_layer_norm(skipped)
    assert error(text.final_layer_norm(made.hidden_states[-2]), expected) < EXACT
    assert jnp.array_equal(text.final_layer_norm(made.hidden_states[-1]), made.last_hidden_state)


def test_the_projection_has_no_bias(tmp_path: Path):
    theirs = reference(TorchProjection)
    text = ours(CLIPTextModelWithProjection, theirs, tmp_path)
    values = numbers(0, 2, WIDTH)
    assert error(text.text_projection(jnp.asarray(values)), theirs.text_projection(torch.tensor(values))) < EXACT


def test_rows_are_looked_up_beside_the_table_as_in_torch(tmp_path: Path):
    theirs, rows = reference(), numbers(1, 3, WIDTH)
    text = ours(CLIPTextModel, theirs, tmp_path)
    ids = IDS.copy()
    ids[0, 2:5], ids[1, 7] = [SIZE, SIZE + 1, SIZE + 2], SIZE + 1
    with lent(theirs, torch.tensor(rows)):
        expected = theirs(torch.tensor(ids)).last_hidden_state
    assert error(text(jnp.asarray(ids), jnp.asarray(rows)).last_hidden_state, expected) < EXACT
    assert jnp.array_equal(
        text(jnp.asarray(IDS), jnp.asarray(rows)).last_hidden_state, text(jnp.asarray(IDS)).last_hidden_state
    )


def test_a_row_learns_from_the_places_where_it_stands_alone(tmp_path: Path):
    text, rows = ours(CLIPTextModel, reference(), tmp_path), jnp.asarray(numbers(1, 3, WIDTH))
    ids = jnp.asarray(IDS).at[:, 4].set(SIZE + 1)
    gradient = jax.grad(lambda rows: text(ids, rows).last_hidden_state.mean())(rows)
    assert jnp.all(jnp.isfinite(gradient))
    assert [bool(jnp.any(row != 0)) for row in gradient] == [False, True, False]


def test_an_id_that_is_nowhere_shows_as_nan_and_not_as_its_neighbour(tmp_path: Path):
    text, rows = ours(CLIPTextModel, reference(), tmp_path), jnp.asarray(numbers(1, 3, WIDTH))
    for own, last in ((None, SIZE), (rows, SIZE + 3)):
        made = text(jnp.asarray(IDS).at[0, 3].set(last), own).last_hidden_state
        assert jnp.isnan(made[0]).all()
        assert jnp.isfinite(made[1]).all()


def test_half_precision_computes_layers_and_leaves_the_residual_in_fp32(tmp_path: Path):
    theirs = reference()
    text = ours(CLIPTextModel, theirs, tmp_path, Layers(dtype=jnp.bfloat16))
    made = text(jnp.asarray(IDS)).last_hidden_state
    assert text.encoder.layers[0].mlp.fc1.kernel.dtype == jnp.float32
    assert made.dtype == jnp.float32
    assert EXACT < error(made, theirs(torch.tensor(IDS)).last_hidden_state) < 0.05
