"""Concepts that are added to a run, or repaired: they begin at their own step 0, and change no bit of the others."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from pseudoword import cli, train
from pseudoword.errors import RunError
from pseudoword.evaluate.words import Asked, words_of
from pseudoword.recipe import ConceptRecipe, Recipe
from pseudoword.run import Run
from tests.miniatures import in_folder, log_of, stopped_after, word
from tests.test_many_words_failing import spoil

MakeMany = Callable[..., Recipe]


def with_concepts(recipe: Recipe, *concepts: ConceptRecipe) -> Recipe:
    return dataclasses.replace(recipe, concepts=concepts)


def left_of(folder: Path) -> dict[str, bytes]:
    """Return a word's files that hold its numbers."""
    paths = [*folder.glob("learned_embeds*.safetensors"), *folder.glob("exports/*")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def states_of(run: Path) -> dict[str, bytes]:
    """Return the numbers of the checkpoints that a run began with."""
    return {path.parent.name: path.read_bytes() for path in run.glob("checkpoint-*/state.safetensors")}


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_a_concept_added_to_a_finished_run_is_what_it_is_alone(
    make_many: MakeMany, tmp_path: Path, engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(loss_steps=2, save_steps=2, engine=engine)
    cat, dog, style = recipe.concepts
    list(train(with_concepts(recipe, cat, style)))
    run, words = tmp_path / "run", tmp_path / "run" / "words"
    before = left_of(words / "cat"), left_of(words / "style"), states_of(run), log_of(run)
    steps = list(train(with_concepts(recipe, cat, dog, style), resume="latest"))
    assert [(p.step, list(p.loss)) for p in steps] == [(step, ["<dog>"]) for step in (1, 2, 3, 4)]
    assert (left_of(words / "cat"), left_of(words / "style"), states_of(run), log_of(run)) == before
    list(train(in_folder(recipe.alone(dog), tmp_path / "alone")))
    assert left_of(words / "dog") == left_of(tmp_path / "alone")
    assert log_of(run / "added-1") == log_of(tmp_path / "alone")
    assert len(Recipe.read(run / "recipe.toml").concepts) == 3
    assert cli.main(["inspect", str(words / "dog")]) == 0
    assert "<dog>" in capsys.readouterr().out


def test_a_concept_added_to_an_interrupted_run_changes_no_bit_of_the_others(
    make_many: MakeMany, tmp_path: Path
) -> None:
    recipe = make_many(steps="6", lr_scheduler="constant")
    cat, dog, style = recipe.concepts
    list(train(in_folder(with_concepts(recipe, cat, style), tmp_path / "whole")))
    stopped_after(with_concepts(recipe, cat, style), 3)
    # The added word's part is interrupted too, and the order of the recipe's concepts is another one.
    more = with_concepts(recipe, style, dog, cat)
    seen: list[int] = []
    seen.extend(progress.step for progress in train(more, resume="latest", stop=lambda: len(seen) >= 1))
    assert seen == [1, 2]
    steps = [(p.step, sorted(p.loss)) for p in train(more, resume="latest")]
    both = ["<cat>", "<style>"]
    assert steps == [(n, ["<dog>"]) for n in (3, 4, 5, 6)] + [(n, both) for n in (4, 5, 6)]
    for name in ("cat", "style"):
        assert left_of(tmp_path / "run" / "words" / name) == left_of(tmp_path / "whole" / "words" / name)
    # A longer run is one for all of them.
    longer = dataclasses.replace(more, schedule=dataclasses.replace(recipe.schedule, steps="8"))
    assert [p.step for p in train(longer, resume="latest")] == [7, 8, 7, 8]
    list(train(in_folder(longer.alone(dog), tmp_path / "alone")))
    assert left_of(tmp_path / "run" / "words" / "dog") == left_of(tmp_path / "alone")
    assert list(train(longer, resume="latest")) == []


def test_a_repaired_concept_is_learned_from_its_beginning(
    make_many: MakeMany, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_many(steps="5", save_steps=2)
    cat, dog, style = recipe.concepts
    gone = dataclasses.replace(style, pictures=str(tmp_path / "gone"))
    with monkeypatch.context() as patch:
        spoil(patch, {2: [1]})
        [*_, last] = train(with_concepts(recipe, cat, dog, gone))
    run = tmp_path / "run"
    assert list(last.failed) == ["<dog>", "<style>"]
    noted = json.loads((run / "not-learned.json").read_text())
    assert noted["<dog>"] == "the loss of step 3 is not finite"
    assert "There is no folder" in noted["<style>"]
    before = left_of(run / "words" / "cat")
    # One is repaired with fewer vectors, the other is not yet.
    fewer = dataclasses.replace(dog, num_vectors=1)
    [*_, last] = train(with_concepts(recipe, cat, fewer, gone), resume="latest")
    assert list(last.failed) == ["<style>"] == list(Run(run, hold=False).failed())
    assert "learned_embeds-steps-2.safetensors" in {p.name for p in (run / "earlier-1" / "words" / "dog").iterdir()}
    [*_, last] = train(with_concepts(recipe, cat, fewer, style), resume="latest")
    assert not last.failed
    assert not (run / "not-learned.json").exists()
    assert left_of(run / "words" / "cat") == before
    for concept, name in ((fewer, "dog"), (style, "style")):
        list(train(in_folder(recipe.alone(concept), tmp_path / f"alone-{name}")))
        assert left_of(run / "words" / name) == left_of(tmp_path / f"alone-{name}")


def test_a_concept_that_failed_may_get_another_token_or_be_left_out(make_many: MakeMany, tmp_path: Path) -> None:
    recipe = make_many(steps="2")
    cat, dog, style = recipe.concepts
    list(train(with_concepts(recipe, cat, dataclasses.replace(dog, token="toy"), style)))
    [*_, last] = train(recipe, resume="latest")
    assert (last.failed, list(last.loss)) == ({}, ["<dog>"])
    with pytest.raises(RunError, match=r"Cannot resume from checkpoint-2: .*token was '<dog>'"):
        list(train(with_concepts(recipe, cat, style), resume="latest"))


def test_a_word_that_failed_since_is_taken_out_of_an_earlier_checkpoint(
    make_many: MakeMany, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_many(steps="4", checkpointing_steps=1)
    with monkeypatch.context() as patch:
        spoil(patch, {2: [1]})
        list(train(recipe))
    list(train(recipe, resume="latest"))
    before = {name: left_of(tmp_path / "run" / "words" / name) for name in ("cat", "dog", "style")}
    [*_, last] = train(recipe, resume="checkpoint-2")
    assert list(last.loss) == ["<cat>", "<style>"]
    assert {name: left_of(tmp_path / "run" / "words" / name) for name in before} == before


def test_a_checkpoint_is_kept_when_a_concept_is_given_up(
    make_many: MakeMany, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run that is killed soon after goes on with it, and refuses what was done to repair it."""
    recipe = make_many(checkpointing_steps=2)
    spoil(monkeypatch, {2: [1]})
    run = train(recipe)
    for _ in range(3):
        next(run)
    run.close()
    monkeypatch.undo()
    assert list(Run(tmp_path / "run", hold=False).failed()) == ["<dog>"]
    cat, dog, style = recipe.concepts
    repaired = dataclasses.replace(dog, pictures=cat.pictures)
    [*_, last] = train(with_concepts(recipe, cat, repaired, style), resume="latest")
    assert not last.failed


def test_a_run_of_one_word_becomes_one_of_several(make_many: MakeMany, tmp_path: Path) -> None:
    looking = {"validation_prompts": ["a {} beside <cat>"], "num_validation_images": 1, "validation_sampling_steps": 1}
    recipe = make_many(steps="2", save_steps=1, loss_steps=1, **looking)
    cat, dog, _ = recipe.concepts
    list(train(recipe.alone(cat)))
    run = tmp_path / "run"
    before = left_of(run)
    (run / "mine.txt").write_text("mine")
    list(train(with_concepts(recipe, cat, dog), resume="latest"))
    assert left_of(run / "words" / "cat") == before
    assert (run / "words" / "cat" / "samples" / "strip.png").is_file()
    assert (run / "mine.txt").exists()
    assert not list(run.glob("learned_embeds*"))
    list(train(in_folder(recipe.alone(dog), tmp_path / "alone")))
    assert left_of(run / "words" / "dog") == left_of(tmp_path / "alone")
    assert [own.concept.token for own in words_of(str(run), Asked(), None)] == ["<cat>", "<dog>"]


def test_an_evaluation_reads_the_log_of_the_words_own_part(make_many: MakeMany, tmp_path: Path) -> None:
    recipe = make_many(steps="3", loss_steps=1)
    cat, _, style = recipe.concepts
    list(train(with_concepts(recipe, cat, style)))
    list(train(recipe, resume="latest"))
    found = {own.concept.token: own for own in words_of(str(tmp_path / "run"), Asked(), None)}
    steps, losses = found["<dog>"].fixed_draw_loss
    logged = [line["fixed_draw_loss"]["<dog>"] for line in log_of(tmp_path / "run" / "added-1")]
    assert (steps, losses) == ([0, 1, 2, 3], logged)
    assert found["<cat>"].fixed_draw_loss[0] == [0, 1, 2, 3]


def test_what_cannot_be_added_is_said_and_takes_nothing_from_the_rest(
    make_many: MakeMany, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_many(steps="2")
    cat, dog, style = recipe.concepts
    list(train(with_concepts(recipe, cat, dog)))
    before = left_of(tmp_path / "run" / "words" / "dog")
    same = dataclasses.replace(style, token="<dog>_2")
    assert list(train(with_concepts(recipe, cat, dog, same), resume="latest")) == []
    assert "'<dog>_2' is already the name of a learned word here" in caplog.text
    assert list(Run(tmp_path / "run", hold=False).failed()) == ["<dog>_2"]
    other = dataclasses.replace(recipe, schedule=dataclasses.replace(recipe.schedule, learning_rate=0.5))
    with pytest.raises(RunError, match=r"schedule\.learning_rate was 0\.01 and is 0\.5"):
        list(train(other, resume="latest"))
    assert not (tmp_path / "run" / "words" / "style").exists()
    assert left_of(tmp_path / "run" / "words" / "dog") == before


def test_a_new_run_in_the_folder_sets_all_parts_aside(make_many: MakeMany, tmp_path: Path) -> None:
    recipe = make_many(steps="1")
    cat, dog, _ = recipe.concepts
    list(train(with_concepts(recipe, cat, dog)))
    list(train(recipe, resume="latest"))
    list(train(recipe))
    assert not (tmp_path / "run" / "added-1").exists()
    assert {"added-1", "words", "log.jsonl"} <= {path.name for path in (tmp_path / "run" / "earlier-1").iterdir()}


def test_the_command_says_what_is_still_not_learned(
    make_many: MakeMany, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(steps="2")
    values, path = recipe.to_dict(), tmp_path / "many.toml"
    values["concepts"][1]["pictures"] = str(tmp_path / "later")
    path.write_text(tomli_w.dumps(values))
    assert cli.main(["train", "--recipe", str(path)]) == 1
    assert cli.main(["train", "--recipe", str(path), "--resume", "latest"]) == 1
    assert "error: <dog> was not learned: There is no folder" in capsys.readouterr().err
    shutil.copytree(recipe.concepts[1].pictures, tmp_path / "later")
    assert cli.main(["train", "--recipe", str(path), "--resume", "latest"]) == 0
    assert f"3 words are in {tmp_path / 'run' / 'words'}." in capsys.readouterr().out
    assert word(tmp_path / "run", "dog").steps == 2
