"""The guide's dataset class: its arguments, its items, and when its pictures may be encoded once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pseudoword import TextualInversionDataset
from pseudoword.data import captions
from pseudoword.data.dataset import Dataset
from pseudoword.errors import PicturesError
from pseudoword.families.sd import miniature

SIZE = 12


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    own = miniature.clip_tokenizer(20)
    own.add_tokens("<t>")
    return own


@pytest.fixture
def make(pictures: Path, tokenizer: Any) -> Callable[..., TextualInversionDataset]:
    """Make a small dataset of the three pictures."""

    def made(**changes: Any) -> TextualInversionDataset:
        options = {"data_root": pictures, "tokenizer": tokenizer, "size": SIZE, "placeholder_token": "<t>", **changes}
        return TextualInversionDataset(**options)

    return made


Make = Callable[..., TextualInversionDataset]


def guides_pixels(path: Path, size: int, center_crop: bool, resample: Image.Resampling) -> np.ndarray:
    """Return a picture as the guide's `__getitem__` computes it, unmirrored."""
    values = np.array(Image.open(path).convert("RGB")).astype(np.uint8)
    if center_crop:
        h, w = values.shape[:2]
        side = min(h, w)
        values = values[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
    image = Image.fromarray(values).resize((size, size), resample=resample)
    return (np.array(image) / 127.5 - 1.0).astype(np.float32).transpose(2, 0, 1)


def test_every_argument_of_the_guide_is_taken_by_name_and_in_its_order(pictures: Path, tokenizer: Any):
    by_order = TextualInversionDataset(str(pictures), tokenizer, "style", 64, 7, "lanczos", 0.25, "train", "<t>", True)
    by_name = TextualInversionDataset(
        data_root=str(pictures),
        tokenizer=tokenizer,
        learnable_property="style",
        size=64,
        repeats=7,
        interpolation="lanczos",
        flip_p=0.25,
        set="train",
        placeholder_token="<t>",
        center_crop=True,
    )
    assert vars(by_order) == vars(by_name)
    assert len(by_order) == 21


def test_the_defaults_are_the_guides(pictures: Path, tokenizer: Any):
    dataset = TextualInversionDataset(pictures, tokenizer)
    assert (dataset.size, dataset.flip_p, dataset.placeholder_token) == (512, 0.5, "*")
    assert (dataset.learnable_property, dataset.interpolation, dataset.center_crop) == ("object", "bicubic", False)
    assert len(dataset) == 300
    assert dataset.num_images == 3
    assert dataset.image_paths == [str(path) for path in sorted(pictures.iterdir())]


def test_outside_of_training_each_picture_comes_once(make: Make):
    assert len(make(set="val", repeats=5)) == 3


def test_an_item_is_what_the_guides_loop_reads(make: Make):
    for i in (0, 2, 299):
        item = make()[i]
        assert set(item) == {"pixel_values", "input_ids"}
        assert item["pixel_values"].shape == (3, SIZE, SIZE)
        assert item["pixel_values"].dtype == torch.float32
        assert -1 <= item["pixel_values"].min() < item["pixel_values"].max() <= 1
        assert item["input_ids"].shape == (20,)
        assert item["input_ids"].dtype == torch.int64
    [batch] = torch.utils.data.DataLoader(make(set="val"), batch_size=3)
    assert batch["pixel_values"].shape == (3, 3, SIZE, SIZE)


@pytest.mark.parametrize("center_crop", [False, True])
@pytest.mark.parametrize("interpolation", ["linear", "bilinear", "bicubic", "lanczos"])
def test_pixels_are_the_guides(make: Make, center_crop: bool, interpolation: str):
    names = {**{f.name.lower(): f for f in Image.Resampling}, "linear": Image.Resampling.BILINEAR}
    dataset = make(flip_p=0.0, center_crop=center_crop, interpolation=interpolation)
    for i in range(6):
        expected = guides_pixels(Path(dataset.image_paths[i % 3]), SIZE, center_crop, names[interpolation])
        np.testing.assert_allclose(dataset[i]["pixel_values"].numpy(), expected, atol=2e-7)


def test_flip_p_decides_how_often_a_picture_is_mirrored(make: Make):
    plain = make(flip_p=0.0)[0]["pixel_values"]
    mirrored = make(flip_p=1.0)[0]["pixel_values"]
    assert not torch.equal(plain, mirrored)
    assert torch.equal(plain, mirrored.flip(-1))
    random.seed(0)
    sometimes = make(flip_p=0.5)
    seen = [torch.equal(sometimes[0]["pixel_values"], plain) for _ in range(40)]
    assert 8 < sum(seen) < 32


@pytest.mark.parametrize(("kind", "templates"), captions.TEMPLATES.items())
def test_captions_are_the_templates_with_the_word(make: Make, tokenizer: Any, kind: str, templates: tuple[str, ...]):
    dataset = make(learnable_property=kind)
    options = {"padding": "max_length", "truncation": True, "max_length": 20}
    possible = {tuple(tokenizer(template.format("<t>"), **options).input_ids) for template in templates}
    random.seed(0)
    seen = {tuple(dataset[0]["input_ids"].tolist()) for _ in range(150)}
    assert seen <= possible
    assert len(seen) > len(possible) // 2


def test_what_cannot_be_is_refused(make: Make, tmp_path: Path):
    with pytest.raises(
        PicturesError, match=r"^interpolation is one of linear, bilinear, bicubic, lanczos, not 'nearest'\.$"
    ):
        make(interpolation="nearest")
    with pytest.raises(PicturesError, match="There is no folder"):
        make(data_root=tmp_path / "nowhere")


def test_pictures_are_read_upright_and_files_that_are_none_are_left_out(make: Make, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(
        tmp_path / "a.png", exif=exif
    )
    (tmp_path / "notes.txt").write_text("a cat")
    dataset = make(data_root=tmp_path, flip_p=0.0)
    assert dataset.num_images == 1
    turned = Image.open(tmp_path / "a.png").transpose(Image.Transpose.ROTATE_270)
    expected = np.asarray(turned.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 127.5 - 1
    np.testing.assert_allclose(dataset.pixels(0, False), expected.transpose(2, 0, 1), atol=2e-7)


# Subclasses


class Jittered(TextualInversionDataset):
    def __getitem__(self, i: int) -> dict[str, Any]:
        item = super().__getitem__(i)
        return {**item, "pixel_values": item["pixel_values"] * random.random()}


class Promised(TextualInversionDataset):
    cacheable = True

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**super().__getitem__(i), "mask": None}


class Captioned(TextualInversionDataset):
    def encode(self, text: str) -> Any:
        return super().encode(text + ", red")


class MoreJittered(Jittered):
    pass


@pytest.mark.parametrize(
    ("cls", "cacheable"),
    [(TextualInversionDataset, True), (Jittered, False), (Promised, True), (Captioned, True), (MoreJittered, False)],
)
def test_a_subclass_with_items_of_its_own_is_not_encoded_once_unless_it_says_so(cls: type, cacheable: bool):
    assert cls.cacheable is cacheable


def test_anything_with_a_length_and_items_is_a_dataset(make: Make):
    assert isinstance(make(), Dataset)
    assert isinstance([{"pixel_values": None, "input_ids": None}], Dataset)
    assert not isinstance(iter([]), Dataset)
