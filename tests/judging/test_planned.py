"""What a recipe is likely to suffer from is said before training, with the option that cures it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pseudoword import cli
from pseudoword.checking import check, check_each
from pseudoword.data.folder import Picture
from pseudoword.data.framing import Framing
from pseudoword.judging import planned
from pseudoword.recipe import ConceptRecipe, Recipe, Schedule
from pseudoword.vocabulary import Vocabulary
from tests.miniatures import TOKEN, MakeRecipe


def draw(folder: Path, name: str, size: tuple[int, int]) -> None:
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(folder / name)


def warnings(recipe: Recipe, about: str) -> list[str]:
    return [sentence for sentence in check(recipe)["warnings"] if about in sentence]


@pytest.mark.parametrize(
    ("size", "crops", "lost"),
    [((30, 20), 1, 1 / 3), ((1600, 900), 1, 0.4375), ((6400, 64), 1, 0.99), ((64, 192), 3, 0), ((64, 192), 2, 1 / 3)],
)
def test_what_no_crop_sees_is_counted_once(size: tuple[int, int], crops: int, lost: float):
    picture = Picture(Path("a.png"), "", size, "")
    assert 1 - planned.seen(picture, Framing(16, "crop", crops).frames(size)) == pytest.approx(lost, abs=1e-3)


def test_wide_and_endless_pictures_are_named_with_what_helps(make_recipe: MakeRecipe, tmp_path: Path):
    folder = tmp_path / "mixed"
    for name, size in {"photo.png": (60, 40), "wide.png": (160, 90), "strip.png": (1600, 16)}.items():
        draw(folder, name, size)
    [wide] = warnings(make_recipe(pictures=str(folder)), "Much is cut off")
    assert "wide.png (44%)" in wide
    assert "--fit bucket" in wide
    assert "--crops 2" in wide
    [strip] = warnings(make_recipe(pictures=str(folder)), "Most is cut off")
    assert "strip.png (99%)" in strip
    assert warnings(make_recipe(pictures=str(folder), fit="bucket"), "Much is cut off") == []
    assert warnings(make_recipe(pictures=str(folder), fit="bucket"), "strip.png")
    assert warnings(make_recipe(pictures=str(folder), crops=2), "Much is cut off") == []
    assert warnings(make_recipe(pictures=str(folder), fit="squash"), "cut off") == []


def test_pictures_that_show_nothing_are_named(make_recipe: MakeRecipe, tmp_path: Path):
    folder = tmp_path / "mixed"
    draw(folder, "photo.png", (20, 20))
    Image.new("RGBA", (20, 20), (200, 10, 10, 0)).save(folder / "ghost.png")
    Image.new("RGB", (20, 20), (9, 9, 9)).save(folder / "night.png")
    recipe = make_recipe(pictures=str(folder), alpha_colour="green")
    [ghost] = warnings(recipe, "Fully transparent")
    assert "--alpha-colour green" in ghost
    assert "ghost.png" in ghost
    [night] = warnings(recipe, "one plain colour")
    assert "night.png" in night
    assert "photo.png" not in ghost + night


def test_an_initializer_in_pieces_is_named_with_a_word_that_is_like_it(make_recipe: MakeRecipe, tmp_path: Path):
    [sentence] = warnings(make_recipe(initializer="red toyzq"), "is no word of this base")
    assert "'toyzq'" in sentence
    assert "such as 'toy'" in sentence
    assert warnings(make_recipe(initializer="red toy"), "is no word of this base") == []
    own = tmp_path / "zqxvkw.safetensors"
    vocabularies: dict[str, Vocabulary] = {}
    assert planned.initializer(ConceptRecipe(TOKEN, ".", str(own)), vocabularies) == []  # a file is no word


class Small:
    """Vectors of Stable Diffusion 1.5's width and length."""

    table = np.full((100, 768), 0.4 / 768**0.5, dtype=np.float32)


@pytest.mark.parametrize(
    ("schedule", "about"),
    [
        (Schedule(), None),
        (Schedule(steps="3000", learning_rate=2e-3, lr_scheduler="constant"), None),  # the guide's
        (Schedule(steps="400", learning_rate=2e-2, lr_scheduler="constant"), None),  # the fastest that was published
        (Schedule(steps="3000", learning_rate=5e-4), None),
        (  # what A1111's users write
            Schedule(
                steps="800",
                learning_rate=5e-2,
                lr_scheduler="piecewise_constant",
                lr_step_rules="1:10,0.4:20,0.2:60,0.1",
            ),
            None,
        ),
        (Schedule(learning_rate=50.0), "--learning-rate"),
        (Schedule(learning_rate=0.5), "times as long"),
        (Schedule(learning_rate=1e-6), "or more --steps"),
        (Schedule(learning_rate=0.0), "or more --steps"),
    ],
)
def test_learning_rates_that_are_used_pass_and_others_are_named(
    make_recipe: MakeRecipe, schedule: Schedule, about: str | None
):
    recipe = dataclasses.replace(make_recipe(), schedule=schedule)
    small: Any = {"clip_l": Small()}
    sentences = planned.learning_rate(recipe, small, int(schedule.steps))
    assert len(sentences) == (about is not None)
    assert all(about in sentence for sentence in sentences if about)


def test_a_scaled_learning_rate_is_judged_as_it_will_be(make_recipe: MakeRecipe):
    schedule = Schedule(steps="500", learning_rate=2e-2, scale_lr=True)
    recipe = dataclasses.replace(make_recipe(batch_size=16), schedule=schedule)
    small: Any = {"clip_l": Small()}
    assert "0.32" in planned.learning_rate(recipe, small, 500)[0]


# The verdict


def arguments(recipe: Recipe, *more: str) -> list[str]:
    concept = recipe.concepts[0]
    own = ["--model", recipe.base.model, "--token", TOKEN, "--pictures", concept.pictures, "--initializer", "toy"]
    return ["check", *own, *more]


def test_the_command_ends_with_a_verdict(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments(make_recipe(), "--learning-rate", "50")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "Training would start, with 1 warning."
    assert lines[-2].startswith("Warning: At a learning rate of 50, 500 steps make rows about")
    assert cli.main(arguments(make_recipe(), "--captions", "files")) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "Training would refuse."


def test_templates_are_folded_and_captions_are_not(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments(make_recipe(), "--learning-rate", "5e-2")) == 0
    printed = capsys.readouterr().out
    assert printed.count("<|startoftext|>") == 1
    assert "of 27)" in printed
    folder = Path(make_recipe().concepts[0].pictures)
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"a {'red ' * i}{{}}")
    try:
        assert cli.main(arguments(make_recipe(), "--captions", "files")) == 0
    finally:
        for i in range(3):
            (folder / f"{i}.txt").unlink()
    assert capsys.readouterr().out.count("<|startoftext|>") == 3


def test_several_concepts_are_a_line_each_and_a_summary(
    make_many: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import tomli_w

    recipe: Recipe = make_many(learning_rate=1e-6)
    path = tmp_path / "three.toml"
    path.write_text(tomli_w.dumps(recipe.to_dict()))
    assert cli.main(["check", "--recipe", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["<cat>", "<dog>", "<style>"]
    assert sum("At a learning rate of 1e-06" in line for line in lines) == 1
    assert any(line.startswith("Warning (<cat>, <dog>, <style>): At a learning rate") for line in lines)
    assert lines[-1].startswith("Training would start, with ")
    broken = dataclasses.replace(recipe.concepts[1], pictures=str(tmp_path / "nowhere"))
    path.write_text(
        tomli_w.dumps(dataclasses.replace(recipe, concepts=(recipe.concepts[0], broken)).to_dict()),
    )
    assert cli.main(["check", "--recipe", str(path)]) == 1
    printed = capsys.readouterr()
    assert "would start" not in printed.out
    assert "1 of 2 concepts can be learned" in printed.out.splitlines()[-1]
    assert printed.err.splitlines()[-1].startswith("error: <dog>: There is no folder")


def test_a_refused_recipe_keeps_its_warnings(make_recipe: MakeRecipe, tmp_path: Path):
    folder = tmp_path / "wide"
    draw(folder, "wide.png", (160, 90))
    recipe = make_recipe(pictures=str(folder), num_vectors=80)
    [told] = check_each(recipe)
    assert not told["starts"]
    assert any("wide.png" in sentence for sentence in told["warnings"])
