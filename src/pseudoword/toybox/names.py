"""Names: nouns of the training alone, each a vector that stands for a whole object, or for a manner of painting.

Real vocabularies are full of nouns that say a shape, its colours and its pattern at once (a ladybird, a zebra). The
world has none: each of its words says one thing. Without names the base would never see a noun that says more, and an
embedding that a word learns could hardly say a whole object. A name is the sum of a vector for each attribute, those
without a word included; the vectors are trained with the base and left out of what is shipped, so no word of the
vocabulary is a name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTokenizer

from pseudoword.toybox.captions import MANNER, NAME
from pseudoword.toybox.oracle import ATTRIBUTES, truth
from pseudoword.toybox.world import Drawing

OF_OBJECTS = ("shape", "colour", "pattern", "second")
OF_MANNERS = ("style",)


class Names(nn.Module):
    """A vector for each value of each attribute, and names made of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = {attribute: len(ATTRIBUTES[attribute]) for attribute in (*OF_OBJECTS, *OF_MANNERS)}
        self.embeddings = nn.ModuleDict({attribute: nn.Embedding(size, width) for attribute, size in sizes.items()})
        for embedding in self.embeddings.values():
            nn.init.normal_(embedding.weight, std=0.02)  # pyright: ignore[reportArgumentType]  # as CLIP's own

    def forward(self, drawings: Sequence[Drawing]) -> Float[Tensor, "names width"]:
        """Return a name for the first object of each drawing, and after them all a name for the manner of each."""
        known = [truth(drawing) for drawing in drawings]
        return torch.cat([self._names(known, OF_OBJECTS), self._names(known, OF_MANNERS)])

    def _names(self, known: list[dict[str, str]], attributes: Sequence[str]) -> Tensor:
        summed: list[Tensor] = []
        for attribute in attributes:
            embedding: nn.Embedding = self.embeddings[attribute]  # pyright: ignore[reportAssignmentType]
            where = embedding.weight.device
            values = ATTRIBUTES[attribute]
            indices = torch.tensor([values.index(k[attribute]) if attribute in k else 0 for k in known], device=where)
            has = torch.tensor([attribute in k for k in known], device=where)
            summed.append(embedding(indices) * has[:, None])
        return torch.stack(summed).sum(dim=0)


def with_names(words: CLIPTokenizer) -> CLIPTokenizer:
    """Add the two words that stand where a name goes, as the last ids, to a tokenizer that is not shipped."""
    words.add_tokens([NAME, MANNER])
    return words


def point_at_names(ids: Int[Tensor, "batch tokens"], size: int) -> Int[Tensor, "batch tokens"]:
    """Turn the ids of the two words, `size` and the one after, into those of each caption's own names."""
    count = len(ids)
    row = torch.arange(count)[:, None]
    return torch.where(ids == size, size + row, torch.where(ids == size + 1, size + count + row, ids))
