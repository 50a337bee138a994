"""A recipe file means the same from every directory, and a run knows what it is wherever it is moved."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from pseudoword import Concept, Recipe, cli, train
from pseudoword.errors import FormatError, RecipeError
from pseudoword.recipe_paths import absolute, read_beside
from pseudoword.trials import plain_recipe
from tests.data.test_custom_datasets import Plain, tokenizer_with
from tests.miniatures import TOKEN, MakeRecipe

Values = dict[str, object]


def recipe_file(folder: Path, **changes: object) -> Path:
    """Write a recipe by hand, with relative paths."""
    concept = {"token": TOKEN, "pictures": "cats", "initializer": "cat"}
    values = {"base": {"model": "base"}, "concepts": [concept], "output": {"folder": "run"}, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.toml").write_text(tomli_w.dumps(values))
    return folder / "mine.toml"


def test_relative_paths_are_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "cats", project / "base", elsewhere):
        folder.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    recipe = Recipe.read(recipe_file(project))
    assert recipe.concepts[0].pictures == str(project / "cats")
    assert recipe.base.model == str(project / "base")
    assert recipe.output.folder == str(project / "run")


def test_what_lies_in_the_current_directory_alone_is_meant_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cats", "run"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read(recipe_file(tmp_path / "recipes"))
    assert recipe.concepts[0].pictures == "cats"
    assert recipe.output.folder == "run"


@pytest.mark.parametrize("initializer", ["cat", "a cat", "cat/../x", "owner/name"])
def test_words_and_ids_stay_what_they_are(initializer: str, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    concept = {"token": TOKEN, "pictures": "owner/pictures", "initializer": initializer}
    values = read_beside({"base": {"model": "toybox"}, "concepts": [concept]}, tmp_path / "mine.toml")
    assert values == {"base": {"model": "toybox"}, "concepts": [concept]}
    assert absolute(values)["concepts"] == [concept]


def test_a_file_to_start_from_is_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "cat.safetensors").touch()
    concept = {"token": TOKEN, "pictures": "cats", "initializer": "cat.safetensors"}
    values = read_beside({"concepts": [concept]}, tmp_path / "mine.toml")
    assert values["concepts"][0]["initializer"] == str(tmp_path / "cat.safetensors")


@pytest.mark.parametrize("values", [{"concepts": [1]}, {"concepts": 1}, {"base": 1}, {"output": {"folder": 3}}])
def test_values_of_another_shape_are_left_to_be_refused(values: Values, tmp_path: Path) -> None:
    assert read_beside(values, tmp_path / "mine.toml") == values


def test_a_moved_runs_recipe_is_about_the_place_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As earlier versions wrote it: relative to the directory where the run was begun."""
    run = tmp_path / "new-place" / "run"
    file = recipe_file(run).rename(run / "recipe.toml")
    monkeypatch.chdir("/")
    assert Recipe.read(file).output.folder == str(run)


@pytest.fixture
def moved(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of four steps that was begun by relative paths, moved, and left for another directory."""
    began = tmp_path / "began"
    began.mkdir()
    made = make_recipe(steps="4", checkpointing_steps=2)
    monkeypatch.chdir(began)
    (began / "base").symlink_to(made.base.model)
    (began / "cats").symlink_to(made.concepts[0].pictures)
    values = made.to_dict()
    values["base"]["model"] = "base"
    values["concepts"][0]["pictures"] = "cats"
    values["output"]["folder"] = "run"
    list(train(Recipe.from_dict(values)))
    (tmp_path / "elsewhere").mkdir()
    shutil.move(began / "run", tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return Path("moved")


def test_a_moved_run_is_gone_on_with_by_its_folder_alone(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (moved / "learned_embeds.safetensors").read_bytes()
    assert cli.main(["train", "--resume", "latest", "--folder", "moved", "--steps", "6"]) == 0
    assert "Try next:\n  pseudoword generate --embeds moved --prompt " in capsys.readouterr().out
    assert Concept.load(moved).steps == 6
    assert (moved / "learned_embeds.safetensors").read_bytes() != before
    assert cli.main(["train", "--resume", "moved/checkpoint-2", "--steps", "4", "--json"]) == 0
    assert "Try next" not in capsys.readouterr().out
    assert (moved / "learned_embeds.safetensors").read_bytes() == before


def test_a_moved_run_repeats_itself_where_it_is(moved: Path) -> None:
    before = (moved / "learned_embeds.safetensors").read_bytes()
    assert cli.main(["train", "--recipe", "moved/recipe.toml"]) == 0
    assert (moved / "learned_embeds.safetensors").read_bytes() == before
    assert (moved / "earlier-1" / "learned_embeds.safetensors").read_bytes() == before


@pytest.mark.parametrize("word", ["moved", "moved/checkpoint-2", "moved/learned_embeds.safetensors"])
def test_a_picture_needs_no_model_where_the_run_knows_it(word: str, moved: Path) -> None:
    options = ["--prompt", f"a {TOKEN}", "--num-inference-steps", "1", "--output", "picture.png"]
    assert cli.main(["generate", "--embeds", word, *options]) == 0
    assert Path("picture.png").is_file()


def test_a_checkpoint_is_the_word_of_its_step(moved: Path) -> None:
    assert np.array_equal(*(Concept.load(moved / name).rows["clip_l"] for name in ("checkpoint-4", ".")))
    early = Concept.load(moved / "checkpoint-2")
    assert (early.token, early.steps) == (TOKEN, 2)
    assert not np.array_equal(early.rows["clip_l"], Concept.load(moved).rows["clip_l"])
    assert cli.main(["convert", "moved/checkpoint-2", "--to", "kohya", "--output", "early"]) in (0, 1)
    (moved / "checkpoint-2" / "checkpoint.json").write_text("{")
    with pytest.raises(FormatError, match="checkpoint-2' is damaged"):
        Concept.load(moved / "checkpoint-2")


def test_a_base_that_nobody_knows_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = []
    for name, base in (("a", ""), ("b", "one-base"), ("c", "other-base")):
        word = Concept(f"<{name}>", {"clip_l": np.ones((1, 32))}, base=base)
        words.append(str(word.save(tmp_path / f"{name}.safetensors")))
    common = ["--prompt", "a <a>", "--output", str(tmp_path / "x.png")]
    assert cli.main(["generate", "--embeds", words[0], *common]) == 1
    assert "--model says on which base to draw" in capsys.readouterr().err
    assert cli.main(["generate", "--embeds", *words, *common]) == 1
    assert "different bases (one-base, other-base); choose one with --model" in capsys.readouterr().err


def test_a_run_with_a_dataset_of_ones_own_says_so(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(steps="1")
    data = Plain(tokenizer_with(recipe, TOKEN), cacheable=True)
    list(train(recipe, dataset=data))
    file = Path(recipe.output.folder) / "recipe.toml"
    repeated = Recipe.read(file)
    assert repeated.dataset == "tests.data.test_custom_datasets.Plain"
    with pytest.raises(RecipeError, match=r"a run with a dataset of its own, tests\.data\.test_custom_datasets\.Plain"):
        list(train(repeated))
    assert cli.main(["train", "--recipe", str(file)]) == 1
    assert "pass one in Python" in capsys.readouterr().err
    list(train(repeated, dataset=data, resume="latest"))


def test_the_plain_recipe_of_a_suite_needs_no_place() -> None:
    assert Recipe.from_dict(plain_recipe().to_dict()) == plain_recipe()
