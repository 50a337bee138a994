"""Items of a dataset: dicts with `pixel_values` and `input_ids`, read as a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pseudoword.data.dataset import Dataset
from pseudoword.data.framing import Placement
from pseudoword.errors import CaptionError
from pseudoword.vocabulary import Words

Ids = Mapping[str, Int[np.ndarray, " tokens"]]


@dataclass(frozen=True)
class Item:
    """A picture with a caption."""

    pixels: Float[np.ndarray, "3 height width"]
    ids: Ids
    placement: Placement


ReadItem = Callable[[Mapping[str, Any]], Item]


def reader(dataset: Dataset, vocabularies: Mapping[str, Words], tokens: Sequence[str]) -> ReadItem:
    """Return how items of a dataset are read: pixels as an array, its tokenizers' ids of the word as our row ids.

    For several text encoders an item has `input_ids_1`, `input_ids_2`, … in their order, as in the guide's script.
    CaptionError says what is wrong with an item.
    """
    captions = [
        _Caption(name, encoder, vocabulary, _rows(dataset, number, vocabulary, tokens), tokens)
        for number, (name, encoder, vocabulary) in enumerate(
            (f"input_ids_{i}" if len(vocabularies) > 1 else "input_ids", *own)
            for i, own in enumerate(vocabularies.items(), start=1)
        )
    ]

    def read(item: Mapping[str, Any]) -> Item:
        try:
            given = [np.asarray(item[c.name]).astype(np.int64).reshape(-1).tolist() for c in captions]
            pixels = item["pixel_values"]
            pixels = pixels.detach().float().cpu() if hasattr(pixels, "detach") else pixels  # NumPy has no bfloat16
            pixel_values = np.asarray(pixels, dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            names = " and ".join(f"`{name}`" for name in ["pixel_values", *(c.name for c in captions)])
            raise CaptionError(f"Items of the dataset must be dicts with {names}.") from error
        if pixel_values.ndim != 3 or len(pixel_values) != 3:
            raise CaptionError(f"An item has pixel_values {list(pixel_values.shape)}; expected [3, height, width].")
        ids = {c.encoder: c.read(own) for c, own in zip(captions, given, strict=True)}
        return Item(pixel_values, ids, _placement(item, pixel_values.shape[1:]))

    return read


def _rows(dataset: Dataset, number: int, vocabulary: Words, tokens: Sequence[str]) -> dict[int, int]:
    """Return our ids of the word's rows by the ids that the dataset's own tokenizer has for them."""
    first = vocabulary.size
    tokenizer = getattr(dataset, f"tokenizer_{number + 1}", None) or (
        None if number else getattr(dataset, "tokenizer", None)
    )
    if tokenizer is None or not hasattr(tokenizer, "get_added_vocab"):
        return {first + i: first + i for i in range(len(tokens))}
    added = tokenizer.get_added_vocab()
    return {added[token]: first + i for i, token in enumerate(tokens) if token in added}


@dataclass(frozen=True)
class _Caption:
    """How the ids of one text encoder are read."""

    name: str
    encoder: str
    vocabulary: Words
    rows: Mapping[int, int]
    tokens: Sequence[str]

    def read(self, given: Sequence[int]) -> Int[np.ndarray, " tokens"]:
        """Return ids with the word's as our row ids; CaptionError if they are not a caption with the word."""
        length, first = self.vocabulary.model_max_length, self.vocabulary.size
        if len(given) != length or min(given) < 0:
            raise CaptionError(
                f"An item has {len(given)} {self.name}; expected {length} ids from 0 on, padded and cut as the "
                "tokenizer does."
            )
        if len(self.rows) < len(self.tokens) or not set(self.rows) <= set(given):
            raise CaptionError(
                f"An item's {self.name} do not hold {' '.join(self.tokens)!r}. Add the word to the dataset's tokenizer "
                f"before making it, tokenizer.add_tokens({list(self.tokens)!r}), and write all of it in captions."
            )
        unknown = [i for i in given if i >= first and i not in self.rows]
        if unknown:
            raise CaptionError(
                f"An item's {self.name} hold {unknown[0]}, which is neither of {self.tokens[0]!r} nor one of the "
                f"{first} tokens of the base; leave other added tokens out of the captions."
            )
        return np.asarray([self.rows.get(i, i) for i in given], dtype=np.int64)


def _placement(item: Mapping[str, Any], size: Sequence[int]) -> Placement:
    """Return where an item says that its picture was cut; an item that does not say is a whole picture."""
    height, width = size
    try:
        original = [int(side) for side in item.get("original_size", size)]
        top, left = (int(side) for side in item.get("crop_top_left", (0, 0)))
        return original[0], original[1], top, left, height, width
    except (IndexError, TypeError, ValueError) as error:
        raise CaptionError(
            "An item's original_size and crop_top_left must be two numbers each: height and width, top and left."
        ) from error
