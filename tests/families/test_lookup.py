"""Rows lent to a text encoder: looked up beside the frozen table, and nothing remains of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel

from pseudoword.families.lookup import LentEmbedding, lent


@pytest.fixture
def encoder(base: Path) -> Any:
    model: Any = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", dtype=torch.float32)
    return model.requires_grad_(False).eval()


@pytest.fixture
def rows(encoder: Any) -> torch.Tensor:
    width = encoder.config.hidden_size
    return torch.randn(3, width, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture
def ids(encoder: Any) -> torch.Tensor:
    size = encoder.config.vocab_size
    return torch.tensor([[0, 5, size, size + 2, 5, size - 1], [7, size + 1, 3, 3, 3, size]])


def tensors(encoder: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether both have the same names and the same bits."""
    return one.keys() == other.keys() and all(v.numpy().tobytes() == other[k].numpy().tobytes() for k, v in one.items())


def test_ids_above_the_table_are_looked_up_in_the_rows(encoder: Any, rows: torch.Tensor, ids: torch.Tensor):
    frozen = encoder.get_input_embeddings()
    whole = torch.cat([frozen.weight, rows])
    assert torch.equal(LentEmbedding(frozen, rows)(ids), whole[ids])


def test_the_encoder_reads_what_a_resized_one_would(encoder: Any, rows: torch.Tensor, ids: torch.Tensor):
    with lent(encoder, rows):
        found = encoder(ids).last_hidden_state
    size = encoder.config.vocab_size
    encoder.resize_token_embeddings(size + 3, mean_resizing=False)
    encoder.get_input_embeddings().weight.data[size:] = rows.detach()
    torch.testing.assert_close(found, encoder(ids).last_hidden_state, rtol=0, atol=1e-6)


def test_gradients_reach_the_rows_and_nothing_else(encoder: Any, rows: torch.Tensor, ids: torch.Tensor):
    table = encoder.get_input_embeddings().weight
    with lent(encoder, rows):
        encoder(ids).last_hidden_state.square().sum().backward()
        # An optimizer over the encoder's parameters would find neither the rows nor the table.
        assert not any(p is rows or p is table for p in encoder.parameters())
    assert rows.grad is not None
    assert (rows.grad.norm(dim=1) > 0).all()
    assert all(p.grad is None for p in encoder.parameters())


def test_a_row_that_no_id_names_gets_no_gradient(encoder: Any, rows: torch.Tensor):
    with lent(encoder, rows):
        encoder(torch.tensor([[0, encoder.config.vocab_size + 1, 2]])).last_hidden_state.square().sum().backward()
    assert rows.grad is not None
    assert (rows.grad.norm(dim=1) > 0).tolist() == [False, True, False]


def test_the_state_is_bit_identical_before_during_and_after(encoder: Any, rows: torch.Tensor, ids: torch.Tensor):
    before, own = tensors(encoder), encoder.get_input_embeddings()
    table = next(name for name, value in encoder.state_dict().items() if value.data_ptr() == own.weight.data_ptr())
    with lent(encoder, rows):
        encoder(ids).last_hidden_state.sum().backward()
        during = tensors(encoder)
        # The lent embedding holds the table without owning it, so saving the encoder now would leave it out.
        assert bits({**during, table: own.weight.detach()}, before)
        assert table not in during
    assert encoder.get_input_embeddings() is own
    assert bits(tensors(encoder), before)


def test_the_embedding_is_put_back_after_an_error(encoder: Any, rows: torch.Tensor):
    before, own = tensors(encoder), encoder.get_input_embeddings()

    def fail() -> None:
        with lent(encoder, rows):
            assert encoder.get_input_embeddings() is not own
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert encoder.get_input_embeddings() is own
    assert bits(tensors(encoder), before)


def test_an_id_above_the_rows_is_an_error_and_the_embedding_is_put_back(encoder: Any, rows: torch.Tensor):
    own = encoder.get_input_embeddings()
    with pytest.raises(IndexError, match="out of range"), lent(encoder, rows):
        encoder(torch.tensor([[encoder.config.vocab_size + 3]]))
    assert encoder.get_input_embeddings() is own


def test_no_rows_lend_nothing(encoder: Any, ids: torch.Tensor):
    own = encoder.get_input_embeddings()
    with lent(encoder, None):
        assert encoder.get_input_embeddings() is own


@pytest.mark.parametrize(("table", "expected"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_the_wider_type_of_table_and_rows_comes_out(
    rows: torch.Tensor, table: torch.dtype, expected: torch.dtype, encoder: Any, ids: torch.Tensor
):
    frozen = encoder.get_input_embeddings().to(table)
    embedded = LentEmbedding(frozen, rows)(ids)
    assert embedded.dtype == expected
    assert torch.equal(embedded[0, 2], rows[0].to(expected))  # the learned rows lose nothing to a half-precision table
    assert LentEmbedding(frozen, rows).weight is frozen.weight
