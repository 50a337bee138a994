"""A run killed at any instant goes on from its last checkpoint as if nothing had happened, bit for bit."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import signal
import tomllib
from pathlib import Path

import pytest
import torch

from pseudoword import Concept, Recipe, train
from pseudoword.errors import RunError
from tests.miniatures import PROCESSES, TOKEN, MakeRecipe


def child(recipe: Recipe, resume: str | None, kill_after: int) -> None:
    """Train, and be killed right after a step."""
    torch.set_num_threads(1)
    for progress in train(recipe, resume=resume):
        if progress.step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_child(recipe: Recipe, resume: str | None = None, kill_after: int = 0) -> int | None:
    """Train in a process of its own that is killed after a step; return its exit code."""
    process = PROCESSES.Process(target=child, args=(recipe, resume, kill_after))
    process.start()
    process.join(120)
    return process.exitcode


def outputs(folder: Path) -> dict[str, bytes]:
    """Return every file of a run that later steps, or other tools, depend on."""
    names = [*folder.glob("learned_embeds*"), *folder.glob("exports/*"), *folder.glob("checkpoint-*/state.safetensors")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names if path.suffix != ".bin"}


def killed_and_resumed(make_recipe: MakeRecipe, tmp_path: Path, kills: list[int], num_vectors: int) -> None:
    common = {"steps": "12", "checkpointing_steps": 1, "save_steps": 4, "num_vectors": num_vectors}
    straight = make_recipe(**common, folder=str(tmp_path / "straight"))
    assert in_a_child(straight) == 0
    broken = make_recipe(**common, folder=str(tmp_path / "broken"))
    for i, step in enumerate(kills):
        assert in_a_child(broken, "latest" if i else None, step) == -signal.SIGKILL
    assert in_a_child(broken, "latest") == 0
    assert outputs(tmp_path / "broken") == outputs(tmp_path / "straight")
    assert log_without_times(tmp_path / "broken") == log_without_times(tmp_path / "straight")


def log_without_times(folder: Path) -> list[str]:
    return [line.rsplit(', "seconds"', 1)[0] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("num_vectors", [1, 2])
def test_three_kills_change_no_bit(make_recipe: MakeRecipe, tmp_path: Path, num_vectors: int) -> None:
    killed_and_resumed(make_recipe, tmp_path, [3, 4, 9], num_vectors)


@pytest.mark.slow
@pytest.mark.parametrize("num_vectors", [1, 2])
def test_twenty_kills_change_no_bit(make_recipe: MakeRecipe, tmp_path: Path, num_vectors: int) -> None:
    kills = sorted(random.Random(num_vectors).choices(range(1, 12), k=20))
    steps = [step for i, step in enumerate(kills) if i == 0 or step > kills[i - 1]]
    killed_and_resumed(make_recipe, tmp_path, steps, num_vectors)
    for i in range(20 - len(steps)):  # the rest at any instant, not only after a step
        killed_while_writing(make_recipe, tmp_path / str(i), num_vectors, after=0.02 * i)


def killed_while_writing(make_recipe: MakeRecipe, tmp_path: Path, num_vectors: int, after: float) -> None:
    tmp_path.mkdir()
    common = {"steps": "60", "checkpointing_steps": 1, "save_steps": 1, "num_vectors": num_vectors}
    straight = make_recipe(**common, folder=str(tmp_path / "straight"))
    assert in_a_child(straight) == 0
    broken = make_recipe(**common, folder=str(tmp_path / "broken"))
    process = PROCESSES.Process(target=child, args=(broken, None, 0))
    process.start()
    while not (tmp_path / "broken" / "checkpoint-2").exists():
        assert process.exitcode is None
    process.join(after)
    process.kill()
    process.join()
    assert in_a_child(broken, "latest") == 0
    assert outputs(tmp_path / "broken") == outputs(tmp_path / "straight")


def test_resuming_streamed_pictures_repeats_them(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from tests.data.test_custom_datasets import Jittered, tokenizer_with

    recipe = make_recipe(steps="6", checkpointing_steps=3, folder=str(tmp_path / "straight"))
    data = Jittered(recipe.concepts[0].pictures, tokenizer_with(recipe, TOKEN), size=16, placeholder_token=TOKEN)
    list(train(recipe, dataset=data))
    broken = dataclasses.replace(recipe, output=dataclasses.replace(recipe.output, folder=str(tmp_path / "broken")))
    run = train(broken, dataset=data)
    for _ in range(4):
        next(run)
    run.close()
    assert [p.step for p in train(broken, dataset=data, resume="latest")] == [4, 5, 6]
    assert outputs(tmp_path / "broken") == outputs(tmp_path / "straight")


def test_a_finished_run_goes_on_and_a_longer_schedule_is_followed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(steps="4", lr_scheduler="constant")))
    longer = make_recipe(steps="8", lr_scheduler="constant", checkpointing_steps=2, save_steps=3)
    assert [p.step for p in train(longer, resume="latest")] == [5, 6, 7, 8]
    whole = make_recipe(steps="8", lr_scheduler="constant", folder=str(tmp_path / "whole"))
    list(train(whole))
    assert (
        Concept.load(tmp_path / "run").rows["clip_l"].tobytes()
        == Concept.load(tmp_path / "whole").rows["clip_l"].tobytes()
    )
    assert Concept.load(tmp_path / "run").steps == 8


def test_resuming_a_finished_run_with_nothing_left_writes_its_outputs_again(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    list(train(make_recipe()))
    before = outputs(tmp_path / "run")
    (tmp_path / "run" / "learned_embeds.safetensors").unlink()
    assert list(train(make_recipe(), resume="latest")) == []
    assert outputs(tmp_path / "run") == before


def test_a_named_checkpoint_makes_the_folder_say_what_happened_up_to_it(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    list(train(make_recipe(steps="6", checkpointing_steps=2)))
    assert [p.step for p in train(make_recipe(steps="6", checkpointing_steps=2), resume="checkpoint-2")] == [3, 4, 5, 6]
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(log) == 6
    assert {p.name for p in (tmp_path / "run" / "earlier-1").iterdir()} == {"checkpoint-4", "checkpoint-6"}


def test_a_bare_name_means_the_runs_own_checkpoint(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(train(make_recipe(checkpointing_steps=2)))
    (tmp_path / "here" / "checkpoint-2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert [p.step for p in train(make_recipe(), resume="checkpoint-2")] == [3, 4]


def test_a_run_from_the_beginning_sets_the_earlier_one_aside(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(save_steps=2, checkpointing_steps=2)))
    list(train(make_recipe(save_steps=3, checkpointing_steps=3)))
    assert {p.name for p in (tmp_path / "run" / "earlier-1").iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
        "learned_embeds-steps-2.safetensors",
        "learned_embeds-steps-4.safetensors",
        "log.jsonl",
        "recipe.toml",
        "learned_embeds.safetensors",
        "learned_embeds.bin",
        "token_identifier.txt",
        "type_of_concept.txt",
        "README.md",
        "exports",
    }


def test_latest_with_nothing_there_says_so_and_starts(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        assert len(list(train(make_recipe(), resume="latest"))) == 4
    assert "No checkpoint in" in caplog.text
    assert "starting from the beginning" in caplog.text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"token": "<other>"}, "concepts.0.token was '<cat-toy>' and is '<other>'"),
        ({"num_vectors": 2}, "concepts.0.num_vectors was 1 and is 2"),
        ({"seed": 8}, "training.seed was 7 and is 8"),
        ({"batch_size": 3}, "global batch was 2 and is 3"),
        ({"adam_beta1": 0.5}, "method.adam_beta1 was 0.9 and is 0.5"),
        ({"learning_rate": 1.0}, "schedule.learning_rate was 0.01 and is 1.0"),
        ({"flip_p": 0.0}, "data.flip_p was 0.5 and is 0.0"),
    ],
)
def test_what_would_be_another_run_is_refused_naming_both_values(
    make_recipe: MakeRecipe, change: dict, sentence: str
) -> None:
    list(train(make_recipe()))
    with pytest.raises(RunError, match=f"{sentence}.*Set it back, or start a new run"):
        list(train(make_recipe(**change), resume="latest"))


def test_other_pictures_are_refused(make_recipe: MakeRecipe, pictures: Path, tmp_path: Path) -> None:
    list(train(make_recipe()))
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    (fewer / "0.png").write_bytes((pictures / "0.png").read_bytes())
    with pytest.raises(RunError, match="pictures was"):
        list(train(make_recipe(pictures=str(fewer)), resume="latest"))


def test_the_split_of_a_batch_and_the_precision_may_change(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    list(train(make_recipe()))
    split = {"batch_size": 1, "gradient_accumulation_steps": 2, "mixed_precision": "bf16", "steps": "6"}
    with caplog.at_level(logging.WARNING, logger="pseudoword"):
        assert [p.step for p in train(make_recipe(**split), resume="latest")] == [5, 6]
    assert "not bit for bit: mixed_precision was no and is bf16" in caplog.text


def test_checkpoints_are_kilobytes_and_rotated(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(steps="5", checkpointing_steps=1, checkpoints_total_limit=2)))
    kept = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert [p.name for p in kept] == ["checkpoint-4", "checkpoint-5"]
    assert sum(p.stat().st_size for p in kept[0].iterdir()) < 10_000


def test_the_recipe_in_a_runs_folder_is_a_recipe(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(num_vectors=2, gradient_clip=1.0, lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.1")
    list(train(recipe))
    found = dataclasses.replace(recipe, base=dataclasses.replace(recipe.base, family="sd"))
    assert Recipe.read(tmp_path / "run" / "recipe.toml") == found, "with the family that the base was found to be of"
    assert tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())["method"]["name"] == "classic"
