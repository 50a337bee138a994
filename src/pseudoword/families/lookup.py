"""Rows lent to a text encoder's embedding: looked up beside the frozen table, which is never written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel


class LentEmbedding(nn.Module):
    """The frozen embedding, with ids from the table's size on looked up in `rows` instead."""

    def __init__(self, frozen: nn.Embedding, rows: Float[torch.Tensor, "rows width"]) -> None:
        super().__init__()
        self.frozen = [frozen]  # in a list, so that it does not become a part of this module
        self.rows = rows

    @property
    def weight(self) -> torch.Tensor:
        """The frozen table, for code that asks an embedding for its dtype."""
        return self.frozen[0].weight

    def forward(self, ids: Int[torch.Tensor, ...]) -> Float[torch.Tensor, "... width"]:
        """Return the embeddings of ids, in the wider of the two dtypes."""
        [frozen] = self.frozen
        size = frozen.num_embeddings
        known = F.embedding(ids.clamp(max=size - 1), frozen.weight)
        learned = F.embedding((ids - size).clamp(min=0), self.rows.to(known.device))
        return torch.where((ids >= size)[..., None], learned, known)


@contextmanager
def lent(encoder: PreTrainedModel, rows: Float[torch.Tensor, "rows width"] | None) -> Iterator[None]:
    """Lend rows to a transformers text encoder for the block; its own embedding is put back after it."""
    if rows is None:
        yield
        return
    frozen = cast(nn.Embedding, encoder.get_input_embeddings())
    encoder.set_input_embeddings(LentEmbedding(frozen, rows))
    try:
        yield
    finally:
        encoder.set_input_embeddings(frozen)
