"""Datasets that `train` takes besides a folder: the guide's class, a subclass, and anything that yields its items."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from pseudoword import Concept, Recipe, TextualInversionDataset, train
from pseudoword.data import items
from pseudoword.errors import CaptionError
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.families.sdxl import miniature, words
from pseudoword.recipe import BaseModel
from tests.miniatures import TOKEN, MakeRecipe, rows_of


class Jittered(TextualInversionDataset):
    """Pictures that differ each time they are read."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = super().__getitem__(i)
        item["pixel_values"] = item["pixel_values"] + 0.1 * torch.randn(1) + float(np.random.normal()) * 0.1
        return item


class Plain:
    """No class of ours: items as the guide's script reads them."""

    def __init__(self, tokenizer: Any, *, cacheable: bool, caption: str = f"a photo of {TOKEN}") -> None:
        self.cacheable = cacheable
        self.tokenizer = tokenizer
        self.caption = caption
        self.read = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.read += 1
        options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        ids = self.tokenizer(self.caption, **options).input_ids[0]
        return {"pixel_values": torch.full((3, 16, 16), i / 3), "input_ids": ids}


def tokenizer_with(recipe: Recipe, *tokens: str) -> CLIPTokenizer:
    """Return the base's tokenizer with the word added, as a user of the guide's class would."""
    tokenizer = CLIPTokenizer.from_pretrained(recipe.base.model, subfolder="tokenizer")
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def test_the_guides_class_gives_what_the_folder_gives(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    plain, given = make_recipe(folder=str(tmp_path / "a")), make_recipe(folder=str(tmp_path / "b"))
    list(train(plain))
    data = TextualInversionDataset(
        plain.concepts[0].pictures, tokenizer_with(plain, TOKEN), size=16, placeholder_token=TOKEN, center_crop=True
    )
    list(train(given, dataset=data))
    assert np.array_equal(rows_of(tmp_path / "a"), rows_of(tmp_path / "b"))


@pytest.mark.parametrize(("cacheable", "reads"), [(True, 3), (False, 9)])
def test_items_are_read_once_only_if_the_dataset_says_cacheable(
    make_recipe: MakeRecipe, cacheable: bool, reads: int
) -> None:
    recipe = make_recipe(steps="4", batch_size=2)
    data = Plain(tokenizer_with(recipe, TOKEN), cacheable=cacheable)
    list(train(recipe, dataset=data))
    assert data.read == reads  # streamed: 4 steps of 2, and one to learn the size


def test_cached_and_streamed_items_that_do_not_vary_teach_the_same(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for cacheable in (True, False):
        recipe = make_recipe(folder=str(tmp_path / str(cacheable)))
        list(train(recipe, dataset=Plain(tokenizer_with(recipe, TOKEN), cacheable=cacheable)))
    once, every_time = (Concept.load(tmp_path / name).rows["clip_l"] for name in ("True", "False"))
    assert np.abs(once - every_time).max() < 1e-5, "one by one or two at a time, convolutions round differently"


def test_the_vae_encodes_at_every_step_only_what_cannot_be_cached(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted: list[int] = []
    encode = StableDiffusion.encode_images

    def counting(self: StableDiffusion, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counted.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(StableDiffusion, "encode_images", counting)
    recipe = make_recipe(steps="5")
    list(train(recipe))
    assert sum(counted) == 6, "three pictures and their mirror images"
    counted.clear()
    recipe = make_recipe(steps="5", folder=str(tmp_path / "jittered"))
    folder, tokenizer = recipe.concepts[0].pictures, tokenizer_with(recipe, TOKEN)
    list(train(recipe, dataset=Jittered(folder, tokenizer, size=16, placeholder_token=TOKEN)))
    assert sum(counted) == 11


def test_worker_processes_see_the_same_random_numbers(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for workers in (0, 2):
        recipe = make_recipe(workers=workers, folder=str(tmp_path / str(workers)))
        folder, tokenizer = recipe.concepts[0].pictures, tokenizer_with(recipe, TOKEN)
        list(train(recipe, dataset=Jittered(folder, tokenizer, size=16, placeholder_token=TOKEN)))
    assert np.array_equal(rows_of(tmp_path / "0"), rows_of(tmp_path / "2"))


def test_a_word_of_several_vectors_in_a_datasets_own_ids(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(num_vectors=2, learning_rate=0.1)
    tokenizer = tokenizer_with(recipe, TOKEN, f"{TOKEN}_1")
    list(train(recipe, dataset=Plain(tokenizer, cacheable=True, caption=f"a photo of {TOKEN} {TOKEN}_1")))
    rows = Concept.load(tmp_path / "run").rows["clip_l"]
    assert not np.array_equal(rows[0], rows[1]), "both vectors were in the captions and went their own ways"


def test_captions_without_the_word_are_refused(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    for tokenizer, caption in (
        (tokenizer_with(recipe, TOKEN), "a photo of a cat"),
        (tokenizer_with(recipe), f"a photo of {TOKEN}"),
    ):
        with pytest.raises(CaptionError, match=r"do not hold '<cat-toy>'.*tokenizer\.add_tokens"):
            list(train(recipe, dataset=Plain(tokenizer, cacheable=False, caption=caption)))


def test_items_of_another_shape_are_refused(make_recipe: MakeRecipe) -> None:
    class Wrong(Plain):
        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"image": i}

    recipe = make_recipe()
    with pytest.raises(CaptionError, match="dicts with `pixel_values` and `input_ids`"):
        list(train(recipe, dataset=Wrong(tokenizer_with(recipe, TOKEN), cacheable=False)))


def test_an_empty_dataset_is_refused(make_recipe: MakeRecipe) -> None:
    class Empty(Plain):
        def __len__(self) -> int:
            return 0

    recipe = make_recipe()
    with pytest.raises(CaptionError, match="The dataset is empty"):
        list(train(recipe, dataset=Empty(tokenizer_with(recipe, TOKEN), cacheable=False)))


class ForTwo:
    """Items as the guide's script for Stable Diffusion XL reads them."""

    cacheable = True

    def __init__(self, first: Any, second: Any, **more: Any) -> None:
        self.tokenizer_1, self.tokenizer_2, self.more = first, second, more

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> dict[str, Any]:
        options = {"padding": "max_length", "truncation": True, "max_length": 77, "return_tensors": "pt"}
        ids = [t(f"a photo of {TOKEN}", **options).input_ids[0] for t in (self.tokenizer_1, self.tokenizer_2)]
        pixels = torch.full((3, 16, 16), i / 3)
        return {"pixel_values": pixels, "input_ids_1": ids[0], "input_ids_2": ids[1], **self.more}


@pytest.fixture
def for_two(make_recipe: MakeRecipe, tmp_path: Path) -> tuple[Recipe, list[Any]]:
    """A recipe for Stable Diffusion XL, and its tokenizers with the word added."""
    base = miniature.write(tmp_path / "sdxl")
    recipe = dataclasses.replace(make_recipe(steps="2"), base=BaseModel(str(base)))
    tokenizers = [CLIPTokenizer.from_pretrained(base, subfolder=name) for name in ("tokenizer", "tokenizer_2")]
    for tokenizer in tokenizers:
        tokenizer.add_tokens([TOKEN])
    return recipe, tokenizers


def test_a_dataset_for_two_text_encoders_has_ids_for_each_and_may_say_where_pictures_were_cut(
    for_two: tuple[Recipe, list[Any]],
) -> None:
    recipe, tokenizers = for_two
    list(train(recipe, dataset=ForTwo(*tokenizers, original_size=(64, 48), crop_top_left=(3, 5))))
    vocabularies = words.vocabularies(recipe.base)
    for vocabulary in vocabularies.values():
        vocabulary.lend(TOKEN, 1)
    for more, expected in (
        ({}, (16, 16, 0, 0, 16, 16)),
        ({"original_size": (64, 48), "crop_top_left": (3, 5)}, (64, 48, 3, 5, 16, 16)),
    ):
        data = ForTwo(*tokenizers, **more)
        item = items.reader(data, vocabularies, [TOKEN])(data[0])
        assert item.placement == expected
        for encoder, vocabulary in vocabularies.items():
            assert item.ids[encoder].tolist() == vocabulary.encode(f"a photo of {TOKEN}").ids.tolist()


def test_a_dataset_for_one_text_encoder_does_not_serve_two(for_two: tuple[Recipe, list[Any]]) -> None:
    recipe, tokenizers = for_two
    with pytest.raises(CaptionError, match="must be dicts with `pixel_values` and `input_ids_1` and `input_ids_2`"):
        list(train(recipe, dataset=Plain(tokenizers[0], cacheable=True)))
    wrong = ForTwo(*tokenizers, original_size=64)
    with pytest.raises(CaptionError, match="original_size and crop_top_left must be two numbers each"):
        list(train(recipe, dataset=wrong))
