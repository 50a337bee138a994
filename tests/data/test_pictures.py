"""What a recipe makes of a folder of pictures: frames, encoded once, of which each step sees one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import train
from pseudoword.data import examples, images
from pseudoword.data.pictures import ConceptPictures
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel, ConceptRecipe, Data
from tests.miniatures import TOKEN, MakeRecipe, rows_of


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    return StableDiffusion.load(BaseModel(str(base)))


def concept(folder: Path, **changes: Any) -> ConceptRecipe:
    return ConceptRecipe(TOKEN, str(folder), "toy", **changes)


Prepare = Callable[..., examples.Cached]


@pytest.fixture
def prepare(family: StableDiffusion) -> Prepare:
    """Encode a folder for the miniature."""

    def made(folder: Path, **changes: Any) -> examples.Cached:
        for vocabulary in family.vocabularies.values():
            vocabulary.give_back()
            vocabulary.lend(TOKEN, 1)
        framed = ConceptPictures(concept(folder), Data(**changes)).framed(family)
        source = examples.prepare(framed, family.vocabularies, [TOKEN], family.encode_images, seed=7, workers=0)
        assert isinstance(source, examples.Cached)
        return source

    return made


def draws(source: examples.Cached, steps: int, batch: int = 4) -> list[Any]:
    from pseudoword import schedules

    options = {"flip_p": source.flip_p, "num_timesteps": 1000, "latent_shapes": source.latent_shapes}
    return [d for step in range(steps) for d in schedules.draws(7, TOKEN, step, range(batch), batch, **options)]


def stripes(path: Path, width: int, height: int) -> Path:
    """A picture whose crops differ, for each column has a brightness of its own."""
    values = np.broadcast_to(np.linspace(0, 255, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    Image.fromarray(np.ascontiguousarray(values)).save(path)
    return path


def test_steps_see_every_crop_mirrored_and_not(prepare: Prepare, family: StableDiffusion, tmp_path: Path):
    stripes(tmp_path / "wide.png", 64, 16)
    source = prepare(tmp_path, crops=3)
    image = images.read_rgb(tmp_path / "wide.png")
    crops = [image.crop((left, 0, left + 16, 16)) for left in (0, 24, 48)]
    possible = {
        family.encode_images(images.pixels(crop, flipped)[None])[0].tobytes()
        for crop in crops
        for flipped in (False, True)
    }
    seen = {mean.tobytes() for batch, _ in source.batches(draws(source, 20)) for mean in batch.mean}
    assert seen == possible
    assert len(possible) == 6


def test_one_crop_teaches_what_it_did_before_there_were_several(make_recipe: MakeRecipe, tmp_path: Path):
    (tmp_path / "square").mkdir()
    stripes(tmp_path / "square" / "0.png", 16, 16)
    for crops in (1, 3):  # a square picture has one crop however many are asked for
        data = {"pictures": str(tmp_path / "square"), "crops": crops, "folder": str(tmp_path / f"run-{crops}")}
        list(train(make_recipe(**data)))
    assert np.array_equal(rows_of(tmp_path / "run-1"), rows_of(tmp_path / "run-3"))


def test_transparency_has_the_recipe_s_colour(prepare: Prepare, family: StableDiffusion, tmp_path: Path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    for colour in ("white", "#808080"):
        source = prepare(tmp_path, alpha_colour=colour, flip_p=0.0)
        [(batch, _)] = source.batches(draws(source, 1, batch=1))
        plain = images.pixels(Image.new("RGB", (16, 16), colour))
        assert np.array_equal(batch.mean, family.encode_images(plain[None])[0])


def test_pictures_below_the_resolution_are_named(prepare: Prepare, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING, "pseudoword")
    stripes(tmp_path / "large.png", 40, 40)
    stripes(tmp_path / "small.png", 40, 20)
    prepare(tmp_path, resolution=24)
    assert [r.getMessage() for r in caplog.records] == [
        "Smaller than 24 pixels, so enlarged, which teaches blur: small.png"
    ]
