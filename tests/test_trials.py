"""Suite runs and sweeps: many runs from one command, gone on with where it was stopped."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudoword import cli, ranges, trials
from pseudoword.errors import RecipeError, RunError
from pseudoword.recipe import Recipe
from pseudoword.toybox import suite

FEW = ["--num-images", "2", "--num-inference-steps", "2"]
RECIPE = '[training]\nbatch_size = 2\n[schedule]\nsteps = "3"\nlearning_rate = 0.02\n[validation]\nloss_steps = 0\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's first two subjects alone."""
    monkeypatch.setattr(suite, "SUBJECTS", suite.SUBJECTS[:2])


def command(*words: str | Path) -> int:
    logging.getLogger("pseudoword").handlers = []
    return cli.main([str(word) for word in words])


@pytest.mark.usefixtures("small")
def test_a_suite_is_trained_and_scored_and_its_runs_are_kept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = ["evaluate", "--suite", "toybox", "--recipe", recipe, "--seeds", "2", *FEW, "--output", tmp_path / "out"]
    assert command(*asked) == 0
    said = capsys.readouterr()
    assert "all concepts (2)" in said.out
    assert "Run 4 of 4: ladybird-seed-1" in said.err
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [word["name"] for word in told["words"]] == [
        "zebra-star-seed-0",
        "ladybird-seed-0",
        "zebra-star-seed-1",
        "ladybird-seed-1",
    ]
    [pool] = told["pools"]
    assert (pool["concepts"], pool["seeds"]) == (2, [0, 1])
    by_seed = [
        np.mean([word["means"]["fidelity"] for word in told["words"] if word["seed"] == seed]) for seed in (0, 1)
    ]
    assert pool["spreads"]["fidelity"]["mean"] == pytest.approx(np.mean(by_seed))
    assert pool["spreads"]["fidelity"]["half"] == pytest.approx(12.706 * np.std(by_seed, ddof=1) / 2**0.5, abs=1e-6)
    run = Recipe.read(tmp_path / "out" / "runs" / "ladybird-seed-1" / "recipe.toml")
    assert (run.training.seed, run.training.batch_size, run.schedule.steps) == (1, 2, "3")
    assert (run.concepts[0].initializer, run.base.model) == ("thing", "toybox")
    assert Image.open(tmp_path / "out" / "contact-sheet.png").width > 200

    # Nothing is trained again, and the same comes out.
    words = sorted((tmp_path / "out" / "runs").glob("*/learned_embeds.safetensors"))
    stamps = [word.stat().st_mtime_ns for word in words]
    assert command(*asked) == 0
    assert "4 of 4 runs are done already." in capsys.readouterr().err
    assert [word.stat().st_mtime_ns for word in words] == stamps
    assert json.loads((tmp_path / "out" / "report.json").read_text())["words"] == told["words"]

    # Another recipe does not go on from these runs.
    recipe.write_text(RECIPE.replace('"3"', '"4"'))
    assert command(*asked) == 1
    assert (
        "a run of another recipe: schedule.steps was '3' and is '4'. Name another --output." in capsys.readouterr().err
    )


@pytest.mark.usefixtures("small")
def test_a_sweep_compares_settings_over_all_concepts(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["sweep", "--suite", "toybox", "--recipe", recipe, *FEW, "--output", tmp_path / "out"]
    assert command(*asked, "--vary", "learning_rate=0.01", "--vary", "concepts.num_vectors=1,2") == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [pool["name"] for pool in told["pools"]] == ["num_vectors=1", "num_vectors=2"]
    assert all(pool["concepts"] == 2 for pool in told["pools"])
    assert "num_vectors=2" in said
    assert "zebra-star" not in said
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 4


def test_a_run_that_has_to_stop_does_not_stop_the_others(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(suite, "SUBJECTS", suite.SUBJECTS[:1])
    asked = ["sweep", "--suite", "toybox", "--recipe", recipe, *FEW, "--output", tmp_path / "out"]
    assert command(*asked, "--vary", "learning_rate=1e39,0.02") == 1
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(told["failed"]) == ["learning_rate=1e+39-zebra-star-seed-0"]
    assert "Training stopped because" in told["failed"]["learning_rate=1e+39-zebra-star-seed-0"]
    assert len(told["words"]) == 1
    assert "Runs that had to stop" in (tmp_path / "out" / "report.html").read_text()
    assert command(*asked, "--vary", "learning_rate=1e39") == 1
    assert "No run has come to its end. Training stopped" in capsys.readouterr().err


def test_a_sweep_of_ones_own_concept_has_no_suite(tmp_path: Path):
    folder = tmp_path / "first"
    own = suite.recipe(suite.NAMED["gold-ring"], folder, "<ring>", steps=2)
    values = trials.of_seeds(own, 2, tmp_path / "sweep", "x")
    assert [trial.name for trial in values] == ["x-seed-0", "x-seed-1"]
    assert [trial.recipe.concepts for trial in values] == [own.concepts, own.concepts]
    assert values[1].folder == tmp_path / "sweep" / "runs" / "x-seed-1"
    trials.carry_out(values[:1])
    assert [trial.is_done for trial in values] == [True, False]
    changed = replace(values[0], recipe=replace(values[0].recipe, training=replace(own.training, seed=3)))
    with pytest.raises(RunError, match=r"training\.seed was 0 and is 3"):
        changed.check()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_suite_goes_on(number: signal.Signals, recipe: Path, tmp_path: Path):
    recipe.write_text(RECIPE.replace('"3"', '"40"') + "[output]\ncheckpointing_steps = 5\n")
    asked = [sys.executable, "-c", STOPPED, "evaluate", "--suite", "toybox", "--recipe", recipe, *FEW]
    asked += ["--output", tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(list(map(str, asked)), env=environment, stderr=subprocess.PIPE, text=True)
    begun = tmp_path / "out" / "runs" / "ladybird-seed-0" / "checkpoint-5"
    deadline = time.monotonic() + 120
    while not begun.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(number)
    _, said = first.communicate(timeout=60)
    if number == signal.SIGINT:
        assert first.returncode == 130
        assert "the same command goes on." in said
    assert not (begun.parent / "README.md").exists()
    done = subprocess.run(list(map(str, asked)), env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are done already." in done.stderr
    assert len((begun.parent / "log.jsonl").read_text().splitlines()) == 40
    assert (begun.parent / "README.md").exists()


STOPPED = """
import sys
from pseudoword import cli
from pseudoword.toybox import suite
suite.SUBJECTS = suite.SUBJECTS[:2]
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["evaluate", "--suite", "toybox", "some-run"],
            "--suite brings words, base and pictures of its own; leave",
        ),
        (["evaluate", "--suite", "toybox", "--model", "x"], "leave out --model."),
        (["evaluate", "some-run", "--seeds", "2"], "--recipe, --seeds and --half train a suite; add --suite toybox"),
        (["evaluate", "--suite", "toybox", "--seeds", "0"], "--seeds must be at least 1, but is 0."),
        (["sweep", "--suite", "toybox"], "--vary says which settings to compare, such as"),
        (["sweep", "--vary", "learning_rate=1"], "Name the recipe to vary with --recipe, such as"),
        (["sweep", "--suite", "toybox", "--vary", "learning_rate"], "--vary needs a setting and its values, such as"),
        (
            ["sweep", "--suite", "toybox", "--vary", "lr=1"],
            "There is no one setting 'lr' to vary; those of a recipe",
        ),
        (["sweep", "--suite", "toybox", "--vary", "seed=1"], "There is no one setting 'seed' to vary"),
        (["sweep", "--suite", "toybox", "--vary", "steps=1,x"], "steps must be a positive number of steps or epochs"),
        (["sweep", "--suite", "toybox", "--vary", "steps=[1"], "The values of steps are none that TOML knows: '[1'."),
        (["sweep", "--suite", "toybox", "--vary", "steps=1,1"], "steps has the same value twice in '1,1'."),
        (["sweep", "--suite", "toybox", "--vary", "method.momentum=1"], "Unknown setting 'momentum' in [method]"),
        (["sweep", "--suite", "toybox", "--vary", "steps=1", "--output", "x.html"], "--output must be a folder, not"),
        (
            ["sweep", "--suite", "toybox", "--vary", "steps=1", "--vary", "schedule.steps=2"],
            "A setting is varied twice; give all of its values in one --vary.",
        ),
    ],
)
def test_bad_questions_are_answered_before_anything_is_trained(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert command(*words) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ranges_make_recipes():
    plain = trials.plain_recipe()
    found = ranges.varied(plain, ["schedule.steps=5,9", 'lr_scheduler=["constant", "cosine"]', "method.adam_beta2=0.9"])
    assert list(found) == [
        f"steps={steps},lr_scheduler={kind},adam_beta2=0.9" for steps in (5, 9) for kind in ("constant", "cosine")
    ]
    last = found["steps=9,lr_scheduler=cosine,adam_beta2=0.9"]
    assert (last.schedule.steps, last.schedule.lr_scheduler) == ("9", "cosine")
    assert last.schedule.learning_rate == plain.schedule.learning_rate
    epochs = ranges.varied(plain, ["steps=1 epoch,2 epochs"])
    assert [recipe.schedule.steps for recipe in epochs.values()] == ["1 epoch", "2 epochs"]
    assert len(set(epochs)) == 2
    assert not any(" " in name or "/" in name for name in epochs)
    with pytest.raises(RecipeError, match="must be of type"):
        ranges.varied(plain, ["learning_rate=fast"])


def test_every_setting_of_the_page_of_settings_can_be_varied():
    assert {"concepts.0.num_vectors", "schedule.learning_rate", "data.flip_p", "method.name"} <= set(ranges._settings())
    assert not {"training.seed", "concepts.0.token", "concepts.0.pictures"} & set(ranges._settings())
