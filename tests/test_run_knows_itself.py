"""A run, finished or not, and each of its checkpoints can be named alone: what it is, it says itself."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pseudoword import Concept, Recipe, cli, converting, formats, hub, train
from pseudoword.commands import train as command
from pseudoword.errors import FormatError, HubError, RecipeError
from pseudoword.evaluate.words import Asked, words_of
from pseudoword.formats import checkpoint
from pseudoword.recipe import BaseModel, ConceptRecipe, Output
from pseudoword.trials import plain_recipe
from tests.miniatures import TOKEN, MakeRecipe, stopped_after


@pytest.fixture
def stopped(make_recipe: MakeRecipe) -> Path:
    """A run that was stopped after three of its steps, and has written no word."""
    recipe = make_recipe(steps="5", checkpointing_steps=2)
    stopped_after(recipe, 3)
    return Path(recipe.output.folder)


def draw(*embeds: str | Path, prompt: str, output: Path) -> int:
    logging.getLogger("pseudoword").handlers = []
    options = ["--prompt", prompt, "--num-inference-steps", "1", "--output", str(output)]
    return cli.main(["generate", "--embeds", *map(str, embeds), *options])


def test_a_run_that_was_stopped_is_named_like_a_finished_one(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = Concept.load(stopped / "checkpoint-3")
    assert draw(stopped, prompt=f"a {TOKEN}", output=tmp_path / "x.png") == 0
    assert "There is no finished word in" in capsys.readouterr().err
    assert np.array_equal(Concept.load(stopped).rows["clip_l"], last.rows["clip_l"])
    assert converting.sources([stopped]) == [stopped / "checkpoint-3" / checkpoint.STATE]
    [word] = words_of(str(stopped), Asked(), None)
    assert (word.step, word.base.model, word.class_word) == (3, Recipe.read(stopped).base.model, "toy")
    with pytest.raises(HubError, match="no learned word to push"):
        hub.files_of(stopped)
    last.save(stopped / "learned_embeds-best.safetensors")
    assert formats.find(stopped).name == "learned_embeds-best.safetensors"
    shutil.rmtree(stopped / "checkpoint-3")
    shutil.rmtree(stopped / "checkpoint-2")
    (stopped / "learned_embeds-best.safetensors").unlink()
    with pytest.raises(FormatError, match=r"holds no learned_embeds\.safetensors"):
        Concept.load(stopped)


def test_checkpoints_and_files_of_a_run_are_evaluated_by_what_the_run_knows(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(steps="4", checkpointing_steps=2)
    list(train(recipe))
    run = tmp_path / "run"
    [early] = words_of(str(run / "checkpoint-2"), Asked(), None)
    [same] = words_of(str(run), Asked(), [2])
    assert (early.place, early.step, early.run, early.recipe) == (same.place, 2, run, same.recipe)
    assert np.array_equal(early.concept.rows["clip_l"], same.concept.rows["clip_l"])
    for file in (run / "learned_embeds.safetensors", *formats.exports_in(run)):
        [word] = words_of(str(file), Asked(), None)
        assert (word.step, word.base, word.seed) == (4, Recipe.read(run).base, 7)
    foreign = Concept("<foreign>", {"clip_l": np.ones((1, 32))}).save(run / "foreign.safetensors")
    with pytest.raises(RecipeError, match="does not say which base it is for"):
        words_of(str(foreign), Asked(), None)
    with pytest.raises(RecipeError, match="--steps goes with the folders of runs"):
        words_of(str(run / "checkpoint-2"), Asked(), [2])
    shutil.copytree(run / "checkpoint-2", tmp_path / "alone" / "checkpoint-2")
    with pytest.raises(RecipeError, match="does not say which base it is for"):
        words_of(str(tmp_path / "alone" / "checkpoint-2"), Asked(), None)


def test_a_run_of_several_words_that_was_stopped(
    make_many: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_after(make_many(steps="5", checkpointing_steps=2), 3)
    run = tmp_path / "run"
    for name, step in (("run", 3), ("run/checkpoint-2", 2)):
        found = words_of(str(tmp_path / name), Asked(), None)
        assert [word.concept.token for word in found] == ["<cat>", "<dog>", "<style>"]
        assert {word.step for word in found} == {step}
        assert [word.class_word for word in found] == ["cat", "dog", "red"]
    assert draw(run / "checkpoint-2", prompt="a <dog>", output=tmp_path / "x.png") == 0
    assert "none of the prompts" not in capsys.readouterr().err
    assert draw(run / "checkpoint-2", prompt="a wolf", output=tmp_path / "x.png") == 0
    assert "<cat>, <dog>, <style> is in none of the prompts" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "latest", "--folder", str(run / "words" / "dog")]) == 1
    said = capsys.readouterr().err
    assert f"is the folder of one word of a run of several; go on with all of them: --folder {run}." in said


def test_a_checkpoint_is_inspected_and_a_word_starts_from_it(
    stopped: Path,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["inspect", str(stopped / "checkpoint-2"), "--json"]) == 0
    [word] = json.loads(capsys.readouterr().out)
    assert (word["format"], word["token"], word["steps"]) == ("checkpoint", TOKEN, 2)
    assert not any(tool["loads"] for tool in word["tools"].values())
    monkeypatch.chdir(stopped)
    early = Concept.load("checkpoint-2")
    list(train(make_recipe(initializer="checkpoint-2", steps="1", learning_rate=0.0, folder=str(tmp_path / "second"))))
    assert np.array_equal(Concept.load(tmp_path / "second").rows["clip_l"], early.rows["clip_l"])


def test_a_run_is_gone_on_with_from_inside_of_its_folder(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped)
    assert cli.main(["train", "--resume", "checkpoint-2", "--steps", "4", "--json"]) == 0
    assert Concept.load(stopped).steps == 4
    assert cli.main(["train", "--resume", "latest", "--folder", ".", "--steps", "5", "--json"]) == 0
    assert Concept.load(stopped).steps == 5
    capsys.readouterr()


def test_resuming_without_a_folder_looks_into_the_one_that_train_writes_to(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stopped.parent)
    stopped.rename(Output().folder)
    assert cli.main(["train", "--resume", "latest", "--steps", "4", "--json"]) == 0
    capsys.readouterr()
    assert Concept.load(Output().folder).steps == 4
    assert cli.main(["train", "--resume", "latest", "--folder", "nowhere"]) == 1
    assert "error: There is no run to go on with in 'nowhere'" in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_a_base_that_is_not_here_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Concept("<a>", {"clip_l": np.ones((1, 32))}, base="their-base").save(tmp_path / "a.safetensors")
    assert draw(file, prompt="<a>", output=tmp_path / "x.png") == 1
    assert "learned on 'their-base', which is not there; say where it is with --model" in capsys.readouterr().err


def test_a_recipe_that_lies_beside_a_foreign_word_says_nothing_of_it(
    make_recipe: MakeRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    list(train(make_recipe(steps="1")))
    file = Concept("<a>", {"clip_l": np.ones((1, 32))}, base="their-base").save(tmp_path / "run" / "a.safetensors")
    assert draw(file, prompt="<a>", output=tmp_path / "x.png") == 1
    assert "learned on 'their-base'" in capsys.readouterr().err


def test_a_file_that_left_its_run_is_drawn_on_the_base_that_another_run_knows(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    list(train(make_recipe(steps="1")))
    shutil.copy(tmp_path / "run" / "learned_embeds.safetensors", tmp_path / "other.safetensors")
    renamed = Concept.load(tmp_path / "other.safetensors", token="<other>").save(tmp_path / "other.safetensors")
    assert draw(tmp_path / "run", renamed, prompt=f"{TOKEN} <other>", output=tmp_path / "x.png") == 0


def test_a_checkpoint_keeps_the_whole_id_of_its_base(stopped: Path) -> None:
    file = stopped / "checkpoint-2" / checkpoint.DESCRIPTION
    facts = json.loads(file.read_text())
    facts["recipe"]["base"]["model"] = "owner/base"
    file.write_text(json.dumps(facts))
    assert Concept.load(stopped / "checkpoint-2").base == "owner/base"


# What to type next


def next_commands(base: str, concept: ConceptRecipe, folder: str = "my run") -> list[str]:
    recipe = dataclasses.replace(
        plain_recipe(), base=BaseModel(base), concepts=(concept,), output=Output(folder=folder)
    )
    return command._next_commands(recipe, {}).splitlines()


def test_the_next_commands_are_ones_that_can_be_copied() -> None:
    assert next_commands("owner/base", ConceptRecipe("<it's>", "cats", "cat")) == [
        "Try next:",
        """  pseudoword generate --embeds 'my run' --prompt 'a photo of <it'"'"'s>'""",
        "  pseudoword evaluate 'my run'",
        "  pseudoword convert 'my run' --to comfyui,a1111",
    ]


def test_the_next_commands_suit_the_word() -> None:
    style = next_commands("toybox", ConceptRecipe("<ink>", "inks", "drawing", property="style"))
    assert "'a painting in the style of <ink>'" in style[1]
    assert not any("convert" in line for line in style), "other tools cannot draw with the toybox"


def test_the_next_commands_are_quoted_for_the_shell_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "os", SimpleNamespace(name="nt"))
    assert '--embeds "my run" --prompt "a photo of <it>"' in next_commands("b/b", ConceptRecipe("<it>", "c", "cat"))[1]


def test_a_run_that_is_stopped_says_the_whole_command_that_goes_on(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pseudoword.interruption.Interruption.wanted", lambda self: True)
    assert cli.main(["train", "--resume", "checkpoint-2", "--folder", str(stopped)]) != 0
    said = capsys.readouterr().err
    assert f"Stopped after step 3; pseudoword train --resume latest --folder {stopped} goes on." in said
