"""From one file to a word: whatever takes a base takes a file, and what that leaves does not say where it was."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from pseudoword import Concept, Recipe, cli, train
from pseudoword.checking import check
from pseudoword.errors import RecipeError, RunError
from pseudoword.families.sd import miniature
from tests.examples.guide import SCRIPT
from tests.families import ldm
from tests.miniatures import TOKEN, MakeRecipe, rows_of


@pytest.fixture(scope="module")
def place(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder 'bases' with a base in one file and its configuration."""
    folder = tmp_path_factory.mktemp("secret") / "bases"
    ldm.config_folder(base, folder / "sd-config")
    ldm.one_file(base, folder / "my-model.safetensors")
    return folder


def learned(recipe: Recipe, **options: Any) -> np.ndarray:
    assert list(train(recipe, **options))[-1].step
    return rows_of(recipe.output.folder)


def files_that_say(word: str, folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and word.encode() in p.read_bytes())


def test_a_word_learned_from_one_file_is_bit_for_bit_that_of_the_folder(
    make_recipe: MakeRecipe, place: Path, tmp_path: Path
):
    one = make_recipe(model=str(place / "my-model.safetensors"), config=str(place / "sd-config"), steps="2")
    rows = learned(one)
    assert np.array_equal(rows, learned(make_recipe(steps="2", folder=str(tmp_path / "of-folder"))))
    assert not np.array_equal(rows, learned(make_recipe(steps="1", folder=str(tmp_path / "shorter"))))


def test_only_the_recipe_says_where_the_file_was(make_recipe: MakeRecipe, place: Path, tmp_path: Path):
    settings = {"model": str(place / "my-model.safetensors"), "config": str(place / "sd-config")}
    learned(make_recipe(**settings, steps="2", save_steps=1))
    assert files_that_say(str(place.parent), tmp_path / "run") == ["recipe.toml"]
    assert files_that_say("secret", tmp_path / "run") == ["recipe.toml"]
    word = Concept.load(tmp_path / "run")
    assert word.base == "my-model.safetensors"
    told = json.loads(word.metadata["recipe"])["base"]
    assert (told["model"], told["config"]) == ("my-model.safetensors", "sd-config")
    card = (tmp_path / "run" / "README.md").read_text()
    assert 'from_single_file("path/to/my-model.safetensors")' in card
    assert "base_model:" not in card


def test_a_link_to_a_file_one_folder_down_is_no_hub_id(
    make_recipe: MakeRecipe, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "linked.safetensors").symlink_to(place / "my-model.safetensors")
    monkeypatch.chdir(tmp_path)
    learned(make_recipe(model="bases/linked.safetensors", config=str(place / "sd-config"), steps="1"))
    assert Concept.load(tmp_path / "run").base == "linked.safetensors"
    assert "base_model:" not in (tmp_path / "run" / "README.md").read_text()


def test_a_run_goes_on_from_the_file_elsewhere_but_not_from_another(
    make_recipe: MakeRecipe, place: Path, base: Path, tmp_path: Path
):
    settings = {
        "model": str(place / "my-model.safetensors"),
        "config": str(place / "sd-config"),
        "lr_scheduler": "constant",
    }
    whole = learned(make_recipe(**settings, folder=str(tmp_path / "whole")))
    learned(make_recipe(**settings, steps="2"))
    moved = ldm.config_folder(base, tmp_path / "other" / "sd-config").parent
    ldm.one_file(base, moved / "my-model.safetensors")
    ldm.one_file(base, moved / "other.safetensors")
    elsewhere = {**settings, "model": str(moved / "my-model.safetensors"), "config": str(moved / "sd-config")}
    other = make_recipe(**{**elsewhere, "model": str(moved / "other.safetensors")})
    with pytest.raises(RunError, match=r"base\.model was 'my-model\.safetensors' and is 'other\.safetensors'"):
        learned(other, resume="latest")
    assert np.array_equal(learned(make_recipe(**elsewhere), resume="latest"), whole)


def test_a_full_pipeline_from_one_file_knows_the_word(make_recipe: MakeRecipe, place: Path, tmp_path: Path):
    settings = {"model": str(place / "my-model.safetensors"), "config": str(place / "sd-config")}
    rows = learned(make_recipe(**settings, steps="1", full_pipeline=True))
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "run")
    token_id = pipeline.tokenizer.convert_tokens_to_ids(TOKEN)
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(table[[token_id]], rows)


def test_the_commands_take_a_file_and_its_configuration(
    base: Path, place: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one = [str(place / "my-model.safetensors"), "--config", str(place / "sd-config")]
    for model, run in ((one, "of-file"), ([str(base)], "of-folder")):
        words = ["--token", TOKEN, "--pictures", str(pictures), "--initializer", "toy", "--folder", str(tmp_path / run)]
        assert cli.main(["train", "--model", *model, *words, "--steps", "2", "--seed", "7"]) == 0
        words = ["--embeds", str(tmp_path / run), "--prompt", f"a {TOKEN}", "--num-inference-steps", "2"]
        assert cli.main(["generate", "--model", *model, *words, "--output", str(tmp_path / f"{run}.png")]) == 0
    of_file, of_folder = (Image.open(tmp_path / f"{run}.png").tobytes() for run in ("of-file", "of-folder"))
    assert of_file == of_folder
    capsys.readouterr()
    beside = []
    for model in (one, [str(base)]):
        assert cli.main(["inspect", str(tmp_path / "of-file"), "--base", *model, "--json"]) == 0
        beside.append(json.loads(capsys.readouterr().out)[0]["vocabulary"])
    assert beside[0] == beside[1]


def test_a_configuration_without_a_base_to_configure_is_refused(
    base: Path, place: Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["inspect", "x.pt", "--config", str(place / "sd-config")]) == 1
    assert "--config goes with --model FILE, but there is no --model." in capsys.readouterr().err
    assert cli.main(["generate", "--model", str(base), "--prompt", "a toy", "--config", str(place / "sd-config")]) == 1
    assert "a folder or a model on the Hub has its own configuration, so leave --config out." in capsys.readouterr().err


def test_the_guides_script_takes_a_file(place: Path, pictures: Path, tmp_path: Path):
    spec = importlib.util.spec_from_file_location("textual_inversion", SCRIPT)
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    base = [
        "--pretrained_model_name_or_path",
        str(place / "my-model.safetensors"),
        "--config",
        str(place / "sd-config"),
    ]
    word = ["--train_data_dir", str(pictures), "--placeholder_token", TOKEN, "--initializer_token", "toy"]
    length = ["--max_train_steps", "1", "--resolution", "16", "--output_dir", str(tmp_path / "run")]
    assert script.main([*base, *word, *length]) == 0
    assert Concept.load(tmp_path / "run").base == "my-model.safetensors"


def test_what_training_needs_is_missing_before_any_weight_is_read(make_recipe: MakeRecipe, tmp_path: Path):
    other = miniature.write(tmp_path / "other", width=64)
    config = ldm.config_folder(other, tmp_path / "config")
    (config / "vae" / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"^The configuration '.*' for '.*' lacks vae/config\.json; give --config"):
        learned(make_recipe(model=str(ldm.one_file(other, tmp_path / "m.safetensors")), config=str(config)))


def test_a_dry_run_tells_the_same_of_a_file_and_of_its_folder(make_recipe: MakeRecipe, place: Path):
    of_folder = check(make_recipe())
    of_file = check(make_recipe(model=str(place / "my-model.safetensors"), config=str(place / "sd-config")))
    assert of_folder["starts"]
    assert of_file == of_folder
