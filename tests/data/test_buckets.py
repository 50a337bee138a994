"""Pictures of several shapes in one step: each counts the same, however the step is split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pseudoword import Recipe, methods, schedules, train
from pseudoword.batch import Batch, Draw
from pseudoword.concept import Concept
from pseudoword.data import examples
from pseudoword.data.pictures import ConceptPictures
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError
from pseudoword.evaluate.fixed_draw import fixed_draw_loss
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import EngineRecipe
from tests.miniatures import TOKEN, MakeRecipe, rows_of
from tests.test_processes import together as in_processes

SIZES = [(40, 40), (60, 30), (30, 60), (64, 20), (41, 40)]


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Five pictures for four buckets."""
    folder = tmp_path / "shapes"
    folder.mkdir()
    for i, (width, height) in enumerate(SIZES):
        values = np.random.default_rng(i).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def recipe(make_recipe: MakeRecipe, shapes: Path) -> Recipe:
    return make_recipe(pictures=str(shapes), fit="bucket", batch_size=5)


@pytest.fixture
def family(base: Path, recipe: Recipe) -> Iterator[StableDiffusion]:
    family = StableDiffusion.load(recipe.base)
    [vocabulary] = family.vocabularies.values()
    vocabulary.lend(TOKEN, 1)
    yield family
    vocabulary.give_back()


@pytest.fixture
def source(recipe: Recipe, family: StableDiffusion) -> examples.Cached:
    framed = ConceptPictures(recipe.concepts[0], recipe.data).framed(family)
    made = examples.prepare(framed, family.vocabularies, [TOKEN], family.encode_images, seed=7, workers=0)
    assert isinstance(made, examples.Cached)
    return made


def batches(source: examples.Cached, indices: list[int]) -> list[tuple[Batch, Draw]]:
    options = {"flip_p": 0.5, "num_timesteps": 1000, "latent_shapes": source.latent_shapes}
    return list(source.batches(schedules.draws(7, TOKEN, 0, indices, 5, **options)))


def test_each_picture_has_the_latents_of_its_bucket(source: examples.Cached):
    assert source.latent_shapes == [(4, 8, 8), (4, 6, 10), (4, 10, 6), (4, 4, 12), (4, 8, 8)]


def test_a_mixed_step_is_the_mean_of_its_pictures(recipe: Recipe, family: StableDiffusion, source: examples.Cached):
    engine = TorchEngine(EngineRecipe())
    engine.prepare(family)
    [(encoder, vocabulary)] = family.vocabularies.items()
    rows, _ = vocabulary.initial_rows("toy", 1)
    engine.start(family, methods.build(recipe.method), {TOKEN: {encoder: rows}})
    mixed = batches(source, list(range(5)))
    assert sorted(len(batch.concept) for batch, _ in mixed) == [1, 1, 1, 2], "four shapes, one of them twice"
    loss, [together] = engine._gradients(mixed)
    single = [engine._gradients(batches(source, [i])) for i in range(5)]
    torch.testing.assert_close(loss, torch.stack([one for one, _ in single]).mean(0))
    torch.testing.assert_close(together[encoder], torch.stack([own[encoder] for _, [own] in single]).mean(0))
    assert engine.fixed_loss(mixed)[TOKEN] == pytest.approx(loss.item())


def test_a_step_of_several_shapes_is_the_same_however_it_is_split(
    make_recipe: MakeRecipe, recipe: Recipe, shapes: Path, tmp_path: Path
):
    common = {"pictures": str(shapes), "fit": "bucket", "steps": "10", "learning_rate": 5e-4}
    for batch, accumulated in ((4, 1), (1, 4), (2, 2)):
        sizes = {"batch_size": batch, "gradient_accumulation_steps": accumulated}
        list(train(make_recipe(folder=str(tmp_path / f"{batch}x{accumulated}"), **sizes, **common)))
    in_processes(make_recipe(folder=str(tmp_path / "two"), batch_size=2, **common), 2, tmp_path / "said")
    assert not list(tmp_path.glob("said-*"))
    for other in ("1x4", "2x2", "two"):
        assert np.abs(rows_of(tmp_path / "4x1") - rows_of(tmp_path / other)).max() < 1e-5, other


def test_a_run_goes_on_exactly(make_recipe: MakeRecipe, shapes: Path, tmp_path: Path):
    common = {"pictures": str(shapes), "fit": "bucket", "lr_scheduler": "constant", "batch_size": 3}
    list(train(make_recipe(steps="6", folder=str(tmp_path / "straight"), **common)))
    list(train(make_recipe(steps="3", folder=str(tmp_path / "broken"), **common)))
    list(train(make_recipe(steps="6", folder=str(tmp_path / "broken"), **common), resume="latest"))
    assert np.array_equal(rows_of(tmp_path / "straight"), rows_of(tmp_path / "broken"))


def test_what_varies_in_size_can_be_measured(recipe: Recipe, family: StableDiffusion, source: examples.Cached):
    [(encoder, vocabulary)] = family.vocabularies.items()
    word = Concept(TOKEN, {encoder: vocabulary.initial_rows("toy", 1)[0]})
    vocabulary.give_back()
    framed = ConceptPictures(recipe.concepts[0], recipe.data).framed(family)
    assert 0 < fixed_draw_loss(family, word, framed, num_draws=16) < 10


def test_a_resolution_that_gives_no_whole_buckets_is_refused(make_recipe: MakeRecipe, shapes: Path):
    with pytest.raises(
        RecipeError, match=r"^resolution must be a multiple of 4 for fit 'bucket' on this base, but is 18\.$"
    ):
        list(train(make_recipe(pictures=str(shapes), fit="bucket", resolution=18)))
