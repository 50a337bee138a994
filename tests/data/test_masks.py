"""Masks weight the loss: through the same crop, bucket and mirroring as their picture, averaged to the latents."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pseudoword import methods, schedules, train
from pseudoword.batch import Batch, Draw
from pseudoword.data import examples, folder
from pseudoword.data.pictures import ConceptPictures
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import PicturesError, RunError
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import ConceptRecipe, Data, EngineRecipe
from tests.miniatures import TOKEN, MakeRecipe, rows_of


def noise(path: Path, width: int, height: int) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def left_half(path: Path, width: int, height: int, **options: Any) -> Path:
    """A mask, white on the left."""
    image = Image.new("L", (width, height))
    image.paste(255, (0, 0, width // 2, height))
    image.save(path, **options)
    return path


Prepare = Callable[..., examples.Cached]


@pytest.fixture
def prepare(family: StableDiffusion, tmp_path: Path) -> Prepare:
    def made(**changes: Any) -> examples.Cached:
        framed = ConceptPictures(ConceptRecipe(TOKEN, str(tmp_path), "toy"), Data(**changes)).framed(family)
        source = examples.prepare(framed, family.vocabularies, [TOKEN], family.encode_images, seed=7, workers=0)
        assert isinstance(source, examples.Cached)
        return source

    return made


def batches(source: examples.Cached, indices: list[int] | None = None, steps: int = 1) -> list[tuple[Batch, Draw]]:
    options = {"flip_p": source.flip_p, "num_timesteps": 1000, "latent_shapes": source.latent_shapes}
    indices = [0, 1, 2, 3] if indices is None else indices
    return list(
        source.batches(d for step in range(steps) for d in schedules.draws(7, TOKEN, step, indices, 4, **options))
    )


# Which file is a mask


def test_a_mask_beside_its_picture_is_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    noise(tmp_path / "a.jpg", 16, 16)
    left_half(tmp_path / "a-mask.png", 16, 16)
    found = folder.look(tmp_path, masks=True)
    assert [p.path.name for p in found.pictures] == ["a.jpg"]
    assert found.masks == {tmp_path / "a.jpg": tmp_path / "a-mask.png"}
    assert not found.skipped
    unused = folder.look(tmp_path)
    assert not unused.masks
    assert unused.skipped == [(tmp_path / "a-mask.png", "a mask")]


def test_a_mask_without_its_picture_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    noise(tmp_path / "a.png", 16, 16)
    left_half(tmp_path / "gas-mask.png", 16, 16)
    (tmp_path / "gas.txt").write_text("a {}")
    folder.look(tmp_path, masks=True).tell()
    message = "gas-mask.png (a mask without its picture; rename it if it is none)"
    assert message in caplog.messages[0]
    assert [p.path.name for p in folder.scan(tmp_path)] == ["a.png", "gas-mask.png"]


# Weights


def test_places_weigh_what_the_mask_says_of_their_area(prepare: Prepare, tmp_path: Path):
    noise(tmp_path / "a.png", 16, 16)
    values = np.zeros((16, 16), dtype=np.uint8)
    values[:, :8] = 255
    values[0, 8] = 255  # a quarter of its place, for a latent holds 2 x 2 pixels
    Image.fromarray(values).save(tmp_path / "a-mask.png")
    [(batch, _)] = batches(prepare(flip_p=0.0, mask_outside=0.2), [0])
    assert batch.weight is not None
    expected = np.full((8, 8), 0.2)
    expected[:, :4] = 1
    expected[0, 4] = 0.2 + 0.8 / 4
    np.testing.assert_allclose(batch.weight[0], expected, atol=1e-6)


def test_a_mask_goes_through_crop_and_mirroring_with_its_picture(prepare: Prepare, tmp_path: Path):
    noise(tmp_path / "a.png", 48, 16)
    left_half(tmp_path / "a-mask.png", 96, 32)  # of another size, but of the same shape
    source = prepare(crops=3, mask_outside=0.1)
    whole, half, none = np.ones(8), np.repeat([1, 0.1], 4), np.full(8, 0.1)
    expected = {tuple(np.round(w, 3)) for own in (whole, half, none) for w in (own, own[::-1])}
    seen = {tuple(np.round(w[0].astype(float), 3)) for b, _ in batches(source, steps=20) for w in b.weight}  # pyright: ignore[reportOptionalIterable]
    assert seen == expected


def test_a_mask_goes_into_its_pictures_bucket(prepare: Prepare, tmp_path: Path):
    noise(tmp_path / "a.png", 60, 30)
    left_half(tmp_path / "a-mask.png", 60, 30)
    [(batch, _)] = batches(prepare(fit="bucket", flip_p=0.0, mask_outside=0.0), [0])
    assert batch.weight is not None
    np.testing.assert_allclose(batch.weight[0], np.repeat([[1.0] * 5 + [0.0] * 5], 6, axis=0))


def test_a_camera_s_orientation_is_applied_to_picture_and_mask(prepare: Prepare, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: what is stored on the left is above
    image = Image.new("RGB", (32, 16))
    image.save(tmp_path / "a.jpg", exif=exif)
    left_half(tmp_path / "a-mask.png", 32, 16, exif=exif)
    for name in ("turned", "upright"):
        [(batch, _)] = batches(prepare(fit="squash", flip_p=0.0, mask_outside=0.0), [0])
        assert batch.weight is not None
        np.testing.assert_allclose(batch.weight[0], np.repeat([[1.0]] * 4 + [[0.0]] * 4, 8, axis=1), err_msg=name)
        upright = Image.new("L", (16, 32))
        upright.paste(255, (0, 0, 16, 16))
        upright.save(tmp_path / "a-mask.png")


def test_transparency_weights_on_request(prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "pseudoword")
    image = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (0, 0, 16, 8))
    image.save(tmp_path / "a.png")
    noise(tmp_path / "b.png", 16, 16)
    [(batch, draw)] = batches(prepare(masks="alpha", flip_p=0.0, mask_outside=0.0))
    assert batch.weight is not None
    for picture, weight in zip(draw.picture, batch.weight, strict=True):
        assert np.array_equal(weight[:, 0], [1] * 8 if picture == 1 else [1] * 4 + [0] * 4)
    assert "Masks weight the loss of 1 of 2 pictures, 0 outside" in caplog.messages
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        PicturesError, match=r"^masks is 'alpha', but no picture has transparency; use masks 'files' or"
    ):
        prepare(masks="alpha")


def test_without_masks_there_are_no_weights(prepare: Prepare, tmp_path: Path):
    noise(tmp_path / "a.png", 16, 16)
    assert all(batch.weight is None for batch, _ in batches(prepare()))
    left_half(tmp_path / "a-mask.png", 16, 16)
    assert all(batch.weight is None for batch, _ in batches(prepare(masks="none")))


# The loss


@pytest.fixture
def engine(family: StableDiffusion) -> TorchEngine:
    engine = TorchEngine(EngineRecipe())
    engine.prepare(family)
    [(encoder, vocabulary)] = family.vocabularies.items()
    rows, _ = vocabulary.initial_rows("toy", 1)
    engine.start(family, methods.build(ClassicOptions()), {TOKEN: {encoder: rows}})
    return engine


def weighted(pair: tuple[Batch, Draw], weight: np.ndarray | None) -> list[tuple[Batch, Draw]]:
    batch, draw = pair
    return [(dataclasses.replace(batch, weight=weight), draw)]


def test_the_loss_is_the_weighted_mean_of_the_squares(prepare: Prepare, engine: TorchEngine, tmp_path: Path):
    noise(tmp_path / "a.png", 16, 16)
    [pair] = batches(prepare(), [0])
    squares = np.zeros((8, 8))
    for place in np.ndindex(8, 8):  # a weight of 1 in one place picks that place's error
        weight = np.zeros((1, 8, 8), dtype=np.float32)
        weight[0][place] = 1
        squares[place] = engine.fixed_loss(weighted(pair, weight))[TOKEN]
    assert engine.fixed_loss([pair])[TOKEN] == pytest.approx(squares.mean(), rel=1e-5)
    weight = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)
    expected = (squares * weight[0]).sum() / weight.sum()
    for scale in (1, 0.1):  # the magnitude does not depend on the mask's area
        assert engine.fixed_loss(weighted(pair, weight * np.float32(scale)))[TOKEN] == pytest.approx(expected, rel=1e-5)


def test_a_white_mask_is_no_mask(prepare: Prepare, engine: TorchEngine, tmp_path: Path):
    noise(tmp_path / "a.png", 16, 16)
    [pair] = batches(prepare())
    loss, [grads] = engine._gradients([pair])
    same_loss, [same] = engine._gradients(weighted(pair, np.ones((4, 8, 8), dtype=np.float32)))
    torch.testing.assert_close(same_loss, loss)
    torch.testing.assert_close(same, grads)


def test_masked_and_unmasked_pictures_count_the_same(prepare: Prepare, engine: TorchEngine, tmp_path: Path):
    for name in ("a.png", "b.png"):
        noise(tmp_path / name, 16, 16)
    left_half(tmp_path / "a-mask.png", 16, 16)
    source = prepare(mask_outside=0.0)
    loss, [together] = engine._gradients(batches(source))
    single = [engine._gradients(batches(source, [i])) for i in range(4)]
    torch.testing.assert_close(loss, torch.stack([one for one, _ in single]).mean(0))
    [encoder] = together
    torch.testing.assert_close(together[encoder], torch.stack([own[encoder] for _, [own] in single]).mean(0))
    [pair] = batches(source)
    assert [len(b.weight) for b in (pair[0].part(slice(0, 1)), pair[0].part(slice(1, 4))) if b.weight is not None] == [
        1,
        3,
    ]


def test_a_masked_run_goes_on_exactly_and_only_with_the_same_masks(
    make_recipe: MakeRecipe, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    own = tmp_path_factory.mktemp("masked")
    noise(own / "a.png", 16, 16)
    left_half(own / "a-mask.png", 16, 16)
    common = {"pictures": str(own), "lr_scheduler": "constant"}
    list(train(make_recipe(steps="6", folder=str(tmp_path / "straight"), **common)))
    list(train(make_recipe(steps="3", folder=str(tmp_path / "broken"), **common)))
    list(train(make_recipe(steps="6", folder=str(tmp_path / "broken"), **common), resume="latest"))
    assert np.array_equal(rows_of(tmp_path / "straight"), rows_of(tmp_path / "broken"))
    list(train(make_recipe(steps="6", folder=str(tmp_path / "none"), masks="none", **common)))
    assert not np.array_equal(rows_of(tmp_path / "straight"), rows_of(tmp_path / "none"))
    Image.new("L", (16, 16), 255).save(own / "a-mask.png")
    with pytest.raises(RunError, match=r"pictures was \['a\.png .* masked .*'\] and is \['a\.png .* masked"):
        list(train(make_recipe(steps="9", folder=str(tmp_path / "broken"), **common), resume="latest"))


# Refused


def test_masks_that_cannot_be_are_refused_by_name(prepare: Prepare, tmp_path: Path):
    noise(tmp_path / "a.png", 32, 16)
    left_half(tmp_path / "a-mask.png", 16, 32)
    with pytest.raises(
        PicturesError, match=r"^The mask a-mask\.png has 16 x 32 pixels, which is not the shape of a\.p"
    ):
        prepare()
    (tmp_path / "a-mask.png").write_bytes(b"nothing")
    with pytest.raises(PicturesError, match=r"^The mask a-mask\.png cannot be read: "):
        prepare()


def test_a_mask_that_leaves_nothing_is_refused_unless_the_outside_counts(prepare: Prepare, tmp_path: Path):
    noise(tmp_path / "a.png", 48, 16)
    Image.new("L", (48, 16)).save(tmp_path / "a-mask.png")
    message = r"^The mask of a\.png is black in all that is trained on, so nothing would count; make mask_outside more"
    with pytest.raises(PicturesError, match=message):
        prepare(mask_outside=0.0)
    prepare(mask_outside=0.1)
    corner = Image.new("L", (48, 16))
    corner.putpixel((0, 0), 255)
    corner.save(tmp_path / "a-mask.png")
    with pytest.raises(PicturesError, match=message):  # the centre is trained on, and has no white
        prepare(mask_outside=0.0)
    prepare(mask_outside=0.0, fit="squash")
