"""A run's folder: held by one process, checkpoints that are found or passed over, and what a resume may change."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pseudoword import disk
from pseudoword.checkpoints import Checkpoint, read_checkpoint, refuse_changes
from pseudoword.errors import RunError
from pseudoword.progress import Progress
from pseudoword.recipe import Recipe
from pseudoword.run import Run
from tests.miniatures import MakeRecipe

ARRAYS = {"params.0.clip_l": np.arange(6, dtype=np.float32).reshape(2, 3), "loss_scale": np.asarray([65536.0, 3.0])}
HOLD = (
    "import sys, time; from pseudoword.run import Run; r = Run(sys.argv[1]); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    held = Run(tmp_path / "run")
    yield held
    held.close()


def facts(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    told = {"recipe": recipe.to_dict(), "pictures": ["0.png ab"], "batch": 2, "arithmetic": {"torch": "2.13"}}
    return {**told, **changes}


def progress(step: int) -> Progress:
    return Progress(step, 10, {"<t>": 0.5}, 1e-3, 0.25)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


# One process at a time


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_is_closed(tmp_path: Path):
    folder = tmp_path / "a" / "run"
    first = Run(folder)
    with pytest.raises(RunError, match=r"^The folder '.*run' is in use by another run; wait for it or choose another"):
        Run(folder)
    Run(folder, hold=False).close()  # looking is allowed, and lets nothing go
    with pytest.raises(RunError, match="is in use"):
        Run(folder)
    first.close()
    Run(folder).close()


def test_another_process_holds_its_folder_until_it_is_killed(tmp_path: Path):
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="is in use by another run"):
            Run(folder)
    finally:
        other.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        other.wait()
        assert other.stdout is not None
        other.stdout.close()
    Run(folder).close()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"^The run's folder '.*file' is a file"):
        Run(tmp_path / "file")
    with pytest.raises(RunError, match=r"^Cannot write to the folder '.*run': Not a directory\.$"):
        Run(tmp_path / "file" / "run")


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was_kept(run: Run, make_recipe: MakeRecipe):
    told = facts(make_recipe(seed=2**63 - 1))
    path = run.keep(20, ARRAYS, told)
    assert path == run.folder / "checkpoint-20"
    found = read_checkpoint(path)
    assert (found.step, found.path, found.seed) == (20, path, 2**63 - 1)
    assert {k: found.facts[k] for k in told} == told
    assert found.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found.arrays[name].dtype == array.dtype
        assert np.array_equal(found.arrays[name], array)


def test_checkpoints_are_listed_by_their_number_and_nothing_else_is(run: Run, make_recipe: MakeRecipe):
    for step in (100, 9, 20):
        run.keep(step, ARRAYS, facts(make_recipe()))
    (run.folder / "checkpoint-7").write_text("a file")
    (run.folder / "checkpoint-x").mkdir()
    (run.folder / f"{disk.TEMPORARY}1-checkpoint-8").mkdir()
    assert [step for step, _ in run.checkpoints()] == [9, 20, 100]


def test_the_latest_checkpoint_or_a_named_one_is_found(run: Run, make_recipe: MakeRecipe, tmp_path: Path):
    assert run.find(None) is None
    for step in (9, 10):
        run.keep(step, ARRAYS, facts(make_recipe()))
    elsewhere = disk.write_folder(tmp_path / "checkpoint-3", lambda folder: None)
    for resume, step in [
        ("latest", 10),
        ("checkpoint-9", 9),
        (str(run.folder / "checkpoint-9"), 9),
        ("some/other/checkpoint-9", 9),
    ]:
        found = run.find(resume)
        assert found is not None
        assert found.step == step
    with pytest.raises(RunError, match=r"^The checkpoint .*checkpoint-3 cannot be read \(FileNotFoundError"):
        run.find(str(elsewhere))


def test_a_missing_checkpoint_is_refused_naming_those_there_are(run: Run, make_recipe: MakeRecipe):
    with pytest.raises(RunError, match=r"^There is no checkpoint 'checkpoint-5'; the folder '.*' has: none\.$"):
        run.find("checkpoint-5")
    for step in (100, 9):
        run.keep(step, ARRAYS, facts(make_recipe()))
    with pytest.raises(RunError, match=r"has: checkpoint-9, checkpoint-100\.$"):
        run.find("checkpoint-5")


def test_nothing_to_resume_from_is_said(run: Run, caplog: pytest.LogCaptureFixture):
    assert run.find("latest") is None
    assert "to resume from; starting from the beginning." in caplog.text


@pytest.mark.parametrize("damage", ["truncated", "no json", "no tensors", "half json", "another thing"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    run: Run, make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture, damage: str
):
    for step in (1, 2):
        run.keep(step, ARRAYS, facts(make_recipe()))
    state, told = run.folder / "checkpoint-2" / "state.safetensors", run.folder / "checkpoint-2" / "checkpoint.json"
    match damage:
        case "truncated":
            state.write_bytes(state.read_bytes()[:-5])
        case "no json":
            told.unlink()
        case "no tensors":
            state.write_bytes(b"")
        case "half json":
            told.write_text(told.read_text()[:40])
        case _:
            told.write_text("[1]")
    found = run.find("latest")
    assert found is not None
    assert found.step == 1
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"The checkpoint {run.folder / 'checkpoint-2'} cannot be read" in record.getMessage()
    assert record.getMessage().endswith("Trying the one before.")
    with pytest.raises(RunError, match="checkpoint-2 cannot be read"):
        run.find("checkpoint-2")


def test_rotation_keeps_the_newest(run: Run, make_recipe: MakeRecipe):
    for step in (5, 10, 100, 20):
        run.keep(step, ARRAYS, facts(make_recipe()))
    run.rotate(None)
    assert len(run.checkpoints()) == 4
    run.rotate(2)
    assert [step for step, _ in run.checkpoints()] == [20, 100]
    run.rotate(7)
    assert [step for step, _ in run.checkpoints()] == [20, 100]


# The folder's story


def test_the_recipe_is_written_and_the_log_begins_empty(run: Run, make_recipe: MakeRecipe):
    recipe = make_recipe()
    run.begin(recipe, None)
    assert Recipe.read(run.folder / "recipe.toml") == recipe
    assert (run.folder / "log.jsonl").read_text() == ""
    assert names(run.folder) == ["log.jsonl", "recipe.toml"]


def test_every_step_is_a_line_of_the_log(run: Run, make_recipe: MakeRecipe):
    run.begin(make_recipe(), None)
    run.report(progress(1))
    run.report(progress(2))
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "loss": {"<t>": 0.5}, "lr": 1e-3, "seconds": 0.25} for step in (1, 2)]


def test_a_resume_cuts_the_log_at_the_checkpoint_and_drops_a_half_written_line(run: Run, make_recipe: MakeRecipe):
    recipe = make_recipe()
    run.begin(recipe, None)
    for step in range(1, 6):
        run.report(progress(step))
    whole = (run.folder / "log.jsonl").read_text()
    (run.folder / "log.jsonl").write_text(whole + whole.splitlines()[0][:17])
    run.keep(3, ARRAYS, facts(recipe))
    run.begin(recipe, run.find("latest"))
    kept = (run.folder / "log.jsonl").read_text()
    assert kept == "".join(whole.splitlines(keepends=True)[:3])
    assert names(run.folder) == ["checkpoint-3", "log.jsonl", "recipe.toml"]


def test_what_an_earlier_run_left_is_set_aside_and_nothing_is_deleted(
    run: Run, make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
):
    for number in (1, 2):
        recipe = make_recipe(seed=number)
        run.begin(recipe, None)
        run.report(progress(number))
        run.keep(5, ARRAYS, facts(recipe))
    run.begin(make_recipe(seed=3), None)
    assert names(run.folder) == ["earlier-1", "earlier-2", "log.jsonl", "recipe.toml"]
    for number in (1, 2):
        aside = run.folder / f"earlier-{number}"
        assert names(aside) == ["checkpoint-5", "log.jsonl", "recipe.toml"]
        assert json.loads((aside / "log.jsonl").read_text())["step"] == number
        assert tomllib.loads((aside / "recipe.toml").read_text())["training"]["seed"] == number
    assert f"(checkpoint-5, log.jsonl, recipe.toml) to {run.folder / 'earlier-1'}." in caplog.text


def test_resuming_an_older_checkpoint_sets_aside_the_newer_ones(run: Run, make_recipe: MakeRecipe):
    recipe = make_recipe()
    run.begin(recipe, None)
    for step in (1, 2, 3):
        run.report(progress(step))
        run.keep(step, ARRAYS, facts(recipe))
    run.begin(recipe, run.find("checkpoint-1"))
    assert [step for step, _ in run.checkpoints()] == [1]
    assert names(run.folder / "earlier-1") == ["checkpoint-2", "checkpoint-3"]
    assert len((run.folder / "log.jsonl").read_text().splitlines()) == 1


def test_what_a_killed_process_left_half_written_is_removed(run: Run, make_recipe: MakeRecipe):
    half = run.folder / f"{disk.TEMPORARY}77-checkpoint-4"
    half.mkdir()
    (half / f"{disk.TEMPORARY}77-state.safetensors").write_text("")
    (run.folder / f"{disk.TEMPORARY}77-recipe.toml").write_text("[ba")
    samples = run.folder / "samples"
    samples.mkdir()
    (samples / f"{disk.TEMPORARY}77-step-000100.png").write_text("")
    (samples / "step-000000.png").write_text("")
    run.begin(make_recipe(), Checkpoint(3, ARRAYS, {}, Path("checkpoint-3")))
    assert names(run.folder) == ["log.jsonl", "recipe.toml", "samples"]
    assert names(samples) == ["step-000000.png"]


# What a resume may change


def checkpoint(recipe: Recipe, **changes: Any) -> Checkpoint:
    return Checkpoint(3, ARRAYS, facts(recipe, **changes), Path("checkpoint-3"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.02}, r"schedule\.learning_rate was 0\.01 and is 0\.02\."),
        ({"initializer": "dog"}, r"concepts\.0\.initializer was 'toy' and is 'dog'\."),
        ({"seed": 8}, r"training\.seed was 7 and is 8\."),
        ({"resolution": 16}, r"data\.resolution was None and is 16\."),
        ({"adam_beta1": 0.8}, r"method\.adam_beta1 was 0\.9 and is 0\.8\."),
        ({"clip_skip": 1, "flip_p": 0.0}, r"base\.clip_skip was None and is 1; data\.flip_p was 0\.5 and is 0\.0\."),
    ],
)
def test_a_change_that_makes_it_another_run_is_refused_naming_both_values(
    make_recipe: MakeRecipe, changes: dict[str, Any], message: str
):
    with pytest.raises(RunError, match=f"^Cannot resume from checkpoint-3: {message} Set it back, or start a new run"):
        refuse_changes(checkpoint(make_recipe()), facts(make_recipe(**changes)))


def test_other_pictures_or_another_batch_make_another_run(make_recipe: MakeRecipe):
    old, recipe = checkpoint(make_recipe()), make_recipe()
    with pytest.raises(RunError, match=r"global batch was 2 and is 4\."):
        refuse_changes(old, facts(recipe, batch=4))
    with pytest.raises(RunError, match=r"pictures was \['0\.png ab'\] and is \['0\.png cd'\]\."):
        refuse_changes(old, facts(recipe, pictures=["0.png cd"]))


def test_length_split_engine_output_and_place_of_the_pictures_may_change(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
):
    changes = {"steps": "9", "workers": 2, "repeats": 3, "batch_size": 1, "gradient_accumulation_steps": 2}
    changes |= {"pictures": "elsewhere", "folder": "moved", "save_steps": 3, "mixed_precision": "bf16"}
    refuse_changes(checkpoint(make_recipe()), facts(make_recipe(**changes)))
    [record] = caplog.records
    assert record.getMessage() == (
        "The length was 4 and is 9: from here the learning rate follows the cosine curve of the new length."
    )


def test_changed_arithmetic_is_said_but_not_refused(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture):
    told = facts(make_recipe(), arithmetic={"torch": "2.14", "threads": "2"})  # it was not known before
    refuse_changes(checkpoint(make_recipe()), told)
    [record] = caplog.records
    assert record.getMessage() == ("Resuming, but not bit for bit: torch was 2.13 and is 2.14.")
