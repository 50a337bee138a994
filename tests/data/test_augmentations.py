"""Augmentations: each of the table is the same for the same draw; what is cached and what is not; looking sees none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import Recipe, augmentations, schedules, train
from pseudoword.augmentations import AUGMENTATIONS
from pseudoword.data import examples
from pseudoword.data.lessons import Lesson
from pseudoword.data.pictures import ConceptPictures
from pseudoword.errors import RecipeError
from pseudoword.evaluate.fixed_draw import fixed_draws
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import ConceptRecipe, Data
from pseudoword.toybox import suite
from tests.data.test_masks import left_half, noise
from tests.miniatures import TOKEN, MakeRecipe, log_of, rows_of, stopped_after

BOTH = ("colour-jitter=0.3", "crop-jitter=0.3")


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_an_augmentation_is_a_function_of_its_draw(name: str):
    [augmentation] = augmentations.read([name])
    image, box = suite.pictures(suite.NAMED["cottage"])[0], (10, 20, 90, 60)

    def made(seed: int) -> tuple[tuple[int, ...], bytes]:
        rng = np.random.default_rng(seed)
        seen = augmentation.picture(image, rng)
        assert seen.size == image.size
        return augmentation.box(box, rng), seen.tobytes()

    assert made(1) == made(1)
    assert len({made(seed) for seed in range(20)}) > 10
    for seed in range(50):
        left, top, right, bottom = augmentation.box(box, np.random.default_rng(seed))
        assert 10 <= left < right <= 90
        assert 20 <= top < bottom <= 60
        assert (right - left) / (bottom - top) == pytest.approx(2, abs=0.06)


def test_colours_stay_within_the_strength_and_hues_stay():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [AUGMENTATIONS["colour-jitter"].picture(grey, np.random.default_rng(i), 0.2) for i in range(50)]
    means = [np.asarray(value).mean() for value in values]
    assert 70 < min(means) < 90
    assert 110 < max(means) < 130
    assert all(len(set(value.getpixel((0, 0)))) == 1 for value in values), "grey stays grey"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": ("color-jitter",)}, "There is no augment 'color-jitter'; did you mean 'colour-jitter'?"),
        ({"augment": ("colour-jitter=1",)}, "The strength of colour-jitter must be above 0 and below 1, such as"),
        ({"augment": ("crop-jitter", "crop-jitter=0.2")}, "augment has crop-jitter twice; leave one out."),
        ({"augment_variants": 4}, "augment_variants is 4, but nothing is augmented; set augment, such as"),
        ({"augment": ("crop-jitter",), "augment_variants": -1}, "augment_variants must be at least 0, but is -1."),
    ],
)
def test_what_is_no_augmentation_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(RecipeError) as refused:
        Data(**options)
    assert str(refused.value).startswith(message)


def prepared(family: StableDiffusion, folder: Path, seed: int = 7, **changes: Any) -> tuple[examples.Source, Lesson]:
    wanted = ConceptRecipe(TOKEN, str(folder), "toy")
    framed = ConceptPictures(wanted, Data(**changes)).framed(family)
    source = examples.prepare(framed, family.vocabularies, [TOKEN], family.encode_images, seed=seed, workers=0)
    return source, Lesson(wanted, 0, framed, source)


def means(source: examples.Source, step: int, indices: tuple[int, ...] = (0, 1)) -> list[bytes]:
    options: dict[str, Any] = {"flip_p": source.flip_p, "num_timesteps": 1000, "latent_shapes": source.latent_shapes}
    drawn = schedules.draws(7, TOKEN, step, indices, 2, **options)
    return [row.tobytes() for batch, _ in source.batches(drawn) for row in batch.mean]


@pytest.mark.parametrize("variants", [2, 0])
def test_a_steps_pictures_are_the_same_again_and_a_split_changes_none(
    variants: int, family: StableDiffusion, pictures: Path
):
    options: dict[str, Any] = {"augment": BOTH, "augment_variants": variants}
    (one, _), (other, _) = prepared(family, pictures, **options), prepared(family, pictures, **options)
    seen = [means(one, step) for step in range(8)]
    assert seen == [means(other, step) for step in range(8)]
    assert seen[5] == [*means(one, 5, (0,)), *means(one, 5, (1,))]
    different = {row for rows in seen for row in rows}
    assert len(different) <= 3 * 2 * variants if variants else len(different) == 16
    assert different != {row for step in range(8) for row in means(prepared(family, pictures, 8, **options)[0], step)}


@pytest.mark.parametrize("variants", [2, 0])
def test_fixed_draws_see_pictures_as_they_are(variants: int, family: StableDiffusion, pictures: Path):
    plain = prepared(family, pictures)[1]
    augmented = prepared(family, pictures, augment=BOTH, augment_variants=variants)[1]
    for (own, _), (expected, _) in zip(fixed_draws(augmented, 1000, 8, 7), fixed_draws(plain, 1000, 8, 7), strict=True):
        np.testing.assert_array_equal(own.mean, expected.mean)
        np.testing.assert_array_equal(own.placement, expected.placement)


def test_the_cache_holds_as_many_variants_as_said_and_none_at_zero(
    family: StableDiffusion, pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    encode, seen = family.encode_images, []
    monkeypatch.setattr(family, "encode_images", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    source, _ = prepared(family, pictures, augment=BOTH, augment_variants=3)
    assert len(seen) == 3 * 2 * (1 + 3), "three pictures, mirrored too, plain and in three variants"
    assert "Encoding 3 augmented variants (colour-jitter=0.3 and crop-jitter=0.3) of each picture" in caplog.text
    list(means(source, 0))
    assert len(seen) == 24
    source, _ = prepared(family, pictures, augment=BOTH, augment_variants=0, flip_p=0.0)
    assert isinstance(source, examples.Fresh)
    assert "Every step augments (colour-jitter=0.3 and crop-jitter=0.3) and encodes its pictures anew" in caplog.text
    list(means(source, 0))
    assert len(seen) == 24 + 3 + 2
    prepared(family, pictures, augment=("crop-jitter",), flip_p=0.0)
    assert len(seen) == 29 + 3 + 3 * examples.VARIANTS


@pytest.mark.parametrize("variants", [2, 0])
def test_a_mask_and_what_is_told_of_the_crop_follow_it(variants: int, family: StableDiffusion, tmp_path: Path):
    noise(tmp_path / "a.png", 64, 64)
    left_half(tmp_path / "a-mask.png", 64, 64)
    source, _ = prepared(
        family, tmp_path, augment=("crop-jitter=0.9",), augment_variants=variants, flip_p=0.0, mask_outside=0.0
    )
    options: dict[str, Any] = {"flip_p": 0.0, "num_timesteps": 1000, "latent_shapes": source.latent_shapes}
    shares = []
    for step in range(30):
        [(batch, _)] = source.batches(schedules.draws(7, TOKEN, step, [0], 1, **options))
        assert batch.weight is not None
        shares.append(batch.weight.mean())
        [(height, width, top, left, high, wide)] = batch.placement.tolist()
        assert (height, width, high, wide) == (64, 64, 16, 16)
        assert (top > 0 or left > 0) or batch.weight.mean() > 0
    assert min(shares) > 0, "where nothing counts, the plain frame is seen"
    assert len({round(float(share), 4) for share in shares}) > 1


@pytest.mark.parametrize("variants", [None, 0])
def test_an_augmented_run_resumes_bit_for_bit(variants: int | None, make_recipe: MakeRecipe, tmp_path: Path):
    def recipe(name: str) -> Recipe:
        return make_recipe(
            augment=BOTH, augment_variants=variants, loss_steps=2, checkpointing_steps=1, folder=str(tmp_path / name)
        )

    list(train(recipe("whole")))
    stopped_after(recipe("broken"), 2)
    list(train(recipe("broken"), resume="latest"))
    assert rows_of(tmp_path / "whole").tobytes() == rows_of(tmp_path / "broken").tobytes()
    list(train(make_recipe(loss_steps=2, folder=str(tmp_path / "plain"))))
    assert rows_of(tmp_path / "whole").tobytes() != rows_of(tmp_path / "plain").tobytes()
    first = [log_of(tmp_path / name)[0]["fixed_draw_loss"] for name in ("whole", "plain")]
    assert first[0] == first[1]


def test_a_dataset_of_ones_own_augments_itself(make_recipe: MakeRecipe):
    dataset: Any = [{}]
    with pytest.raises(RecipeError, match=r"^augment is for folders of pictures, but a dataset of your own is"):
        list(train(make_recipe(augment=("crop-jitter",)), dataset=dataset))
