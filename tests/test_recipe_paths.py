"""A recipe file means the same from every directory, and a run knows what it is wherever it is moved."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from pseudoword import Concept, Recipe, cli, train
from pseudoword.checkpoints import Checkpoint, refuse_changes
from pseudoword.errors import FormatError, RecipeError, RunError
from pseudoword.evaluate.words import Asked, words_of
from pseudoword.recipe import BaseModel, ConceptRecipe, Output
from pseudoword.recipe_paths import absolute, read_beside, written
from pseudoword.trials import Trial, plain_recipe
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


def runs_own(project: Path) -> Path:
    """Write the recipe of a run in a project's folder, with its pictures and base beside the run's folder."""
    run = project / "run"
    for folder in (project / "cats", project / "base", run):
        folder.mkdir(parents=True)
    concept = {"token": TOKEN, "pictures": str(project / "cats"), "initializer": "cat"}
    values = {"base": {"model": str(project / "base")}, "concepts": [concept], "output": {"folder": str(run)}}
    (run / "recipe.toml").write_text(tomli_w.dumps(written(values, run)))
    (run / "log.jsonl").touch()
    return run / "recipe.toml"


def test_a_run_that_was_moved_together_with_its_pictures_finds_them(tmp_path: Path) -> None:
    runs_own(tmp_path / "project")
    (tmp_path / "project").rename(tmp_path / "renamed")
    recipe = Recipe.read(tmp_path / "renamed" / "run")
    assert Path(recipe.concepts[0].pictures).samefile(tmp_path / "renamed" / "cats")
    assert Path(recipe.base.model).samefile(tmp_path / "renamed" / "base")
    assert recipe.output.folder == str(tmp_path / "renamed" / "run")


def test_a_run_that_was_moved_alone_finds_its_pictures_where_they_are(tmp_path: Path) -> None:
    runs_own(tmp_path / "project")
    (tmp_path / "other").mkdir()
    (tmp_path / "cats").mkdir()  # lies as the pictures did, but they are not gone
    (tmp_path / "project" / "run").rename(tmp_path / "other" / "run")
    recipe = Recipe.read(tmp_path / "other" / "run" / "recipe.toml")
    assert recipe.concepts[0].pictures == str(tmp_path / "project" / "cats")


@pytest.mark.parametrize("name", ["mine.toml", "recipe.toml"])
def test_a_copy_of_a_runs_recipe_does_not_fill_the_directory_where_it_is(name: str, tmp_path: Path) -> None:
    file = runs_own(tmp_path / "project")
    shutil.copy(file, tmp_path / "project" / name)
    copy = Recipe.read(tmp_path / "project" / name)
    assert copy.output.folder == Output().folder
    assert copy.concepts == Recipe.read(file).concepts
    by_hand = recipe_file(tmp_path / "here", output={"folder": "."})
    assert Recipe.read(by_hand).output.folder == str(tmp_path / "here")


def test_a_recipe_of_several_words_leaves_each_word_its_place(tmp_path: Path) -> None:
    file = runs_own(tmp_path)
    place = tmp_path / "run" / "words" / "cat"
    place.mkdir(parents=True)
    values = Recipe.read(file).to_dict()
    (place / "recipe.toml").write_text(tomli_w.dumps(written(values, place)))
    assert Recipe.read(place).output.folder == str(place)


def test_a_run_of_before_finds_its_relative_paths_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cats").mkdir()
    run = tmp_path / "runs" / "first"
    file = recipe_file(run, output={"folder": "runs/first"}).rename(run / "recipe.toml")
    monkeypatch.chdir("/")
    recipe = Recipe.read(file)
    assert recipe.concepts[0].pictures == str(tmp_path / "cats")
    assert recipe.output.folder == str(run)


def test_a_trial_is_the_same_by_another_way_to_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("vae", "other/vae", "run", "cats"):
        Path(name).mkdir(parents=True)
    concept = ConceptRecipe(TOKEN, "cats", "cat")
    plain = plain_recipe()
    recipe = dataclasses.replace(plain, concepts=(concept,), base=BaseModel("toybox", vae="vae"), output=Output("run"))
    Path("run", "recipe.toml").write_text(tomli_w.dumps(written(recipe.to_dict(), Path("run"))))
    Trial("it", recipe).check()
    changed = dataclasses.replace(recipe, base=BaseModel("toybox", vae="other/vae"))
    with pytest.raises(RunError, match=r"base\.vae was"):
        Trial("it", changed).check()


@pytest.mark.parametrize("gone", [False, True])
def test_a_resumed_runs_vae_may_have_moved_but_not_be_another(gone: bool, tmp_path: Path) -> None:
    before, after = tmp_path / "before" / "vae", tmp_path / "after" / "vae"
    after.mkdir(parents=True)
    if not gone:
        before.mkdir(parents=True)
    facts = {"batch": 1, "pictures": [], "arithmetic": {}}
    checkpoint = Checkpoint(1, {}, {**facts, "recipe": {"base": {"vae": str(before)}}}, tmp_path)
    now = {**facts, "recipe": {"base": {"vae": str(after)}}}
    if gone:
        refuse_changes(checkpoint, now)
    else:
        with pytest.raises(RunError, match=r"base\.vae"):
            refuse_changes(checkpoint, now)


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
    assert np.array_equal(Concept.load(moved / "checkpoint-4").rows["clip_l"], Concept.load(moved).rows["clip_l"])
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
    sweep = ["sweep", "--recipe", str(file), "--vary", "learning_rate=0.1,0.2", "--output", str(file.parent / "sweep")]
    for command in (["train", "--recipe", str(file)], ["check", "--recipe", str(file)], sweep):
        assert cli.main(command) == 1
        assert "pass one in Python" in capsys.readouterr().err
    assert not (file.parent / "sweep" / "runs").exists()
    assert repeated.of_the_word()["dataset"] == repeated.dataset
    with pytest.raises(RecipeError, match="does not say what it was learned from"):
        words_of(str(file.parent), Asked(), None)
    list(train(repeated, dataset=data, resume="latest"))


def test_the_plain_recipe_of_a_suite_needs_no_place() -> None:
    assert Recipe.from_dict(plain_recipe().to_dict()) == plain_recipe()
