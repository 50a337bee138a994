"""Recipes of several concepts from the command line, and what else reads their runs."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from PIL import Image

from pseudoword import Concept, cli, train
from pseudoword.errors import RecipeError
from pseudoword.evaluate.words import Asked, words_of
from pseudoword.recipe import Recipe
from tests.miniatures import in_folder, log_of, stopped_after, word


def test_the_command_trains_a_recipe_of_several_concepts(
    make_many: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(steps="2")
    path = tmp_path / "many.toml"
    path.write_text(tomli_w.dumps(recipe.to_dict()))
    assert cli.main(["train", "--recipe", str(path), "--steps", "1"]) == 0
    assert f"3 words are in {tmp_path / 'run' / 'words'}." in capsys.readouterr().out
    assert cli.main(["train", "--recipe", str(path), "--token", "<other>"]) == 1
    assert "has 3 concepts, so options of one, such as --token, cannot say which" in capsys.readouterr().err
    assert cli.main(["check", "--recipe", str(path), "--json"]) == 0
    assert [told["token"] for told in json.loads(capsys.readouterr().out)] == ["<cat>", "<dog>", "<style>"]
    assert cli.main(["sweep", "--recipe", str(path), "--vary", "learning_rate=0.1,0.2", "--output", "x"]) == 1
    assert "has 3 concepts, but a sweep trains words one by one" in capsys.readouterr().err
    values = recipe.to_dict()
    values["concepts"][1]["pictures"] = str(tmp_path / "gone")
    path.write_text(tomli_w.dumps(values))
    assert cli.main(["train", "--recipe", str(path)]) == 1
    for more in ([], ["--resume", "latest"]):
        if more:
            assert cli.main(["train", "--recipe", str(path), *more]) == 1, "nothing left to do, and one not learned"
        told = capsys.readouterr()
        assert f"2 words are in {tmp_path / 'run' / 'words'}." in told.out
        assert "error: <dog> was not learned: There is no folder" in told.err
    assert cli.main(["check", "--recipe", str(path)]) == 1


def test_what_a_check_of_several_says(
    make_many: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(steps="3")
    cat, dog, _ = recipe.concepts
    path = tmp_path / "many.toml"
    colliding = (dataclasses.replace(cat, num_vectors=2), dataclasses.replace(dog, token="<cat>_1"))
    path.write_text(tomli_w.dumps(dataclasses.replace(recipe, concepts=colliding).to_dict()))
    assert cli.main(["check", "--recipe", str(path)]) == 1
    assert "'<cat>_1' is already the name of a learned word here" in capsys.readouterr().err
    path.write_text(tomli_w.dumps(dataclasses.replace(recipe, concepts=(cat, dog)).to_dict()))
    assert cli.main(["check", "--recipe", str(path), "--time"]) == 0
    said = capsys.readouterr().out
    assert (said.count("Time: "), said.count("Memory: "), said.count("Training would start")) == (1, 1, 1)
    assert re.search(r"s a step, 0:\d\d:\d\d for 3 steps", said)


def test_a_words_recipe_learns_that_word_again_in_its_own_folder(
    make_many: Callable[..., Recipe], tmp_path: Path
) -> None:
    list(train(make_many(loss_steps=2)))
    place = tmp_path / "run" / "words" / "cat"
    before, recipe = Concept.load(place).rows["clip_l"], Recipe.read(place / "recipe.toml")
    list(train(recipe))
    assert np.allclose(Concept.load(place).rows["clip_l"], before, rtol=0, atol=1e-5)
    assert (tmp_path / "run" / "checkpoint-4").is_dir()


def test_an_evaluation_of_several_reads_each_words_own_log(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    stopped_after(make_many(), 1)
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(RecipeError, match="has not learned a word yet; go on with it: --resume latest"):
        words_of(str(tmp_path / "run"), Asked(), None)
    list(train(make_many(loss_steps=2)))
    found = words_of(str(tmp_path / "run"), Asked(), None)
    assert [own.concept.token for own in found] == ["<cat>", "<dog>", "<style>"]
    log = log_of(tmp_path / "run")
    for own in found:
        steps, losses = own.fixed_draw_loss
        logged = {n["step"]: n["fixed_draw_loss"][own.concept.token] for n in log if "fixed_draw_loss" in n}
        assert dict(zip(steps, losses, strict=True)) == logged
        assert own.seconds
        assert own.seconds > 0


def test_a_prompt_is_for_the_words_that_stand_alone_in_it(
    make_many: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looking = {"validation_prompts": ["a sksx", "a red toy"], "num_validation_images": 1}
    recipe = make_many(**looking, steps="1", validation_sampling_steps=1)
    cat, dog, _ = recipe.concepts
    two = (dataclasses.replace(cat, token="sks"), dataclasses.replace(dog, token="sksx"))
    list(train(dataclasses.replace(recipe, concepts=two)))
    assert not (tmp_path / "run" / "words" / "sks" / "samples").exists()
    assert (tmp_path / "run" / "words" / "sksx" / "samples").is_dir()
    assert "The validation prompt 'a red toy' holds none of the words, so it is left out." in caplog.text


def test_threads_prepare_what_comes_next_and_let_errors_through() -> None:
    from pseudoword.data.lessons import ahead

    def numbers() -> Any:
        yield from range(5)
        raise ValueError("no more")

    found: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        deque(map(found.append, ahead(numbers())))
    assert found == list(range(5))
    made = ahead(iter(range(100)))
    assert next(made) == 0
    made.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert list(ahead(iter([]))) == []


def test_other_words_in_captions_stay_plain_text(
    make_many: Callable[..., Recipe], tmp_path: Path, others: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A caption of one word that happens to name another would otherwise teach that one too."""
    captioned = tmp_path / "captioned"
    captioned.mkdir()
    Image.new("RGB", (24, 24), "red").save(captioned / "0.png")
    (captioned / "0.txt").write_text("{} beside <dog>")
    for name in ("0", "1"):
        (others / f"{name}.txt").write_text("a {}")
    recipe = make_many(captions="files", steps="2")
    cat, dog, _ = recipe.concepts
    both = dataclasses.replace(recipe, concepts=(dataclasses.replace(cat, pictures=str(captioned)), dog))
    with caplog.at_level(logging.INFO):
        list(train(both))
    list(train(in_folder(both.alone(dog), tmp_path / "alone")))
    own, found = Concept.load(tmp_path / "alone"), word(tmp_path / "run", "dog")
    assert np.allclose(own.rows["clip_l"], found.rows["clip_l"], rtol=0, atol=1e-5)
