"""Suite runs and sweeps: many runs from one command, gone on with where it was stopped."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pseudoword import cli, ranges, trials
from pseudoword.errors import Interrupted, RunError
from pseudoword.evaluate import groups
from pseudoword.progress import Progress
from pseudoword.recipe import Recipe
from pseudoword.toybox import suite

FEW = ["--num-images", "2", "--num-inference-steps", "2"]
RECIPE = '[training]\nbatch_size = 2\n[schedule]\nsteps = "3"\nlearning_rate = 0.02\n[validation]\nloss_steps = 0\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Leave the suite its first subjects alone."""

    def leave(count: int) -> None:
        monkeypatch.setattr(suite, "SUBJECTS", suite.SUBJECTS[:count])
        suite._known.cache_clear()

    yield leave
    suite._known.cache_clear()


@pytest.fixture
def small(few: Callable[[int], None]) -> None:
    few(2)


def command(*words: str | Path) -> int:
    logging.getLogger("pseudoword").handlers = []
    return cli.main([str(word) for word in words])


@pytest.mark.usefixtures("small")
def test_a_suite_is_trained_and_scored_and_its_runs_are_kept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked = ["evaluate", "--suite", "toybox", "--recipe", recipe, "--seeds", "2", *FEW, "--output", tmp_path / "out"]
    assert command(*asked) == 0
    said = capsys.readouterr()
    assert "all 2" in said.out
    assert "Run 4 of 4: ladybird-seed-1" in said.err
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [word["name"] for word in told["words"]] == [
        "zebra-star-seed-0",
        "ladybird-seed-0",
        "zebra-star-seed-1",
        "ladybird-seed-1",
    ]
    [pool] = told["pools"]
    assert (pool["concepts"], pool["of"], pool["seeds"]) == (2, 2, [0, 1])
    by_seed = [
        np.mean([word["means"]["fidelity"] for word in told["words"] if word["seed"] == seed]) for seed in (0, 1)
    ]
    assert pool["spreads"]["fidelity"]["mean"] == pytest.approx(np.mean(by_seed))
    assert pool["spreads"]["fidelity"]["half"] is None, "two seeds are too few for an interval"
    assert pool["spreads"]["fidelity"]["each"] == pytest.approx(by_seed)
    assert "2: too few for ±" in said.out
    assert "untrained" in said.out
    assert "in the base's own words" in said.out
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

    # From elsewhere, and written otherwise, it is the same suite.
    monkeypatch.chdir(tmp_path / "out")
    recipe.write_text(
        RECIPE.replace('"3"', '"3 steps"').replace("batch_size = 2", "batch_size = 1\ngradient_accumulation_steps = 2")
    )
    assert command(*asked[:-1], "../out") == 0
    assert "4 of 4 runs are done already." in capsys.readouterr().err

    # Another recipe does not go on from these runs.
    recipe.write_text(RECIPE.replace('"3"', '"4"'))
    assert command(*asked) == 1
    told = "a run of another recipe: schedule.steps was '3 steps' and is '4 steps'. Name another --output."
    assert told in capsys.readouterr().err
    recipe.write_text(RECIPE + '[engine]\nmixed_precision = "bf16"\n')
    assert command(*asked) == 1
    assert "engine.mixed_precision was 'no' and is 'bf16'" in capsys.readouterr().err


@pytest.mark.usefixtures("small")
def test_a_sweep_compares_settings_over_all_concepts(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["sweep", "--suite", "toybox", "--recipe", recipe, *FEW, "--output", tmp_path / "out"]
    assert command(*asked, "--vary", "learning_rate=0.01", "--vary", "concepts.num_vectors=1,2") == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [pool["name"] for pool in told["pools"]] == ["num_vectors=1", "num_vectors=2"]
    assert all(pool["concepts"] == 2 for pool in told["pools"])
    assert "num_vectors=2" in said
    assert "One seed is too few to tell settings apart" in " ".join(said.split())
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("<h2>Settings</h2>") < page.index("<h2>The plane</h2>") < page.index("<summary>4 words</summary>")
    assert "zebra-star" not in said
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 4


def test_a_run_that_has_to_stop_does_not_stop_the_others(
    recipe: Path, tmp_path: Path, few: Callable[[int], None], capsys: pytest.CaptureFixture[str]
):
    few(1)
    asked = ["sweep", "--suite", "toybox", "--recipe", recipe, *FEW, "--output", tmp_path / "out"]
    assert command(*asked, "--vary", "learning_rate=1e39,0.02") == 1
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(told["failed"]) == ["learning_rate=1e+39-zebra-star-seed-0"]
    assert "Training stopped because" in told["failed"]["learning_rate=1e+39-zebra-star-seed-0"]
    assert len(told["words"]) == 1
    assert "Runs that had to stop" in (tmp_path / "out" / "report.html").read_text()
    assert "Runs that had to stop, and are not in it: learning_rate=1e+39-zebra-star-seed-0" in capsys.readouterr().out
    assert command(*asked, "--vary", "num_vectors=1,75") == 1  # the captions of the second are too long
    assert "Run 2 of 2: num_vectors=75-zebra-star-seed-0" in capsys.readouterr().err
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "use fewer vectors or a shorter caption" in told["failed"]["num_vectors=75-zebra-star-seed-0"]
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
    values[0].check()
    told = (values[0].folder / "recipe.toml").read_text()
    (values[0].folder / "recipe.toml").write_text("")
    with pytest.raises(RunError, match=r"has a recipe that cannot be read; delete that folder to train it again\.$"):
        values[0].check()
    (values[0].folder / "recipe.toml").unlink()
    assert not values[0].is_done
    (values[0].folder / "recipe.toml").write_text(told)
    trials._facts_of.cache_clear()
    Image.new("RGB", (64, 64), "red").save(folder / "pictures" / "another.png")
    with pytest.raises(RunError, match=r"holds a run of another recipe: pictures was \[.*\] and is \[.*another\.png"):
        values[0].check()


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
    before = (begun.parent / "log.jsonl").read_text().splitlines()[:6]
    done = subprocess.run(list(map(str, asked)), env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 runs are done already." in done.stderr
    after = (begun.parent / "log.jsonl").read_text().splitlines()
    assert len(after) == 40
    assert after[:5] == before[:5], "the steps up to the checkpoint were not trained again"
    assert not (begun.parent / "earlier-1").exists()
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
            "There is no setting 'lr' to vary; those of a recipe",
        ),
        (["sweep", "--suite", "toybox", "--vary", "seed=1"], "There is no setting 'seed' to vary; "),
        (["sweep", "--suite", "toybox", "--vary", "learning_rat=1"], "did you mean 'learning_rate'?"),
        (["sweep", "--suite", "toybox", "--vary", "steps=1,x"], "steps must be a positive number of steps or epochs"),
        (["sweep", "--suite", "toybox", "--vary", "steps=[1"], "The values of steps are none that TOML knows: '[1'."),
        (["sweep", "--suite", "toybox", "--vary", "steps=1,1"], "'steps=1' and 'steps=1' are the same setting, given"),
        (["sweep", "--suite", "toybox", "--vary", 'steps=[5,"5 steps"]'], "are the same setting, given twice."),
        (["sweep", "--suite", "toybox", "--vary", "flip_p=0,0.0"], "'flip_p=0' and 'flip_p=0.0' are the same setting"),
        (["sweep", "--suite", "toybox", "--vary", "initializer=a,b"], "concepts.0.initializer comes with each concept"),
        (["sweep", "--recipe", "r", "--half", "all", "--vary", "steps=1"], "--half chooses concepts of a suite; add"),
        (["evaluate", "--suite", "toybox", "--prompts", "no.txt"], "no.txt"),
        (["evaluate", "--suite", "toybox", "--steps", "900"], "--steps are 1 to 500, as long as a run is, not 900."),
        (["sweep", "--suite", "toybox", "--vary", "method.momentum=1"], "Unknown setting 'momentum' in [method]"),
        (["sweep", "--suite", "toybox", "--vary", "steps=1", "--output", __file__], "--output must be a folder, but"),
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


def evaluated(name: str, recipe: Recipe, score: float) -> groups.Evaluated:
    """A word that was measured, as far as putting words together is concerned."""
    word = SimpleNamespace(choices=recipe.of_the_word(), seed=recipe.training.seed, step=5, seconds=1.0)
    done = SimpleNamespace(scores={"f": np.full((2, 2), score), "e": np.full((2, 2), score)})
    return groups.Evaluated(name, word, [], done, None, "f", "e", [], [])  # type: ignore[arg-type]


def pooled(recipes: Mapping[str, Recipe]) -> dict[str, float]:
    words = [evaluated(name, recipe, float(i)) for i, (name, recipe) in enumerate(recipes.items())]
    return {pool.name: pool.spreads["f"].mean for pool in groups.pools(words) if pool.spreads}


def test_settings_are_compared_whatever_they_are_of():
    plain = trials.plain_recipe()
    assert pooled(ranges.varied(plain, ["mixed_precision=no,bf16"])) == {
        "mixed_precision=no": 0.0,
        "mixed_precision=bf16": 1.0,
    }
    assert pooled(ranges.varied(plain, ["initializer=ring,star"])) == {"initializer=ring": 0.0, "initializer=star": 1.0}
    suites = {
        str(path): replace(plain, concepts=(replace(plain.concepts[0], pictures=path, initializer=path),))
        for path in ("a", "b")
    }
    assert pooled(suites) == {"": 0.5}, "concepts of a suite each have their own initializer"


def test_a_setting_that_lacks_concepts_is_shown_and_not_compared(caplog: pytest.LogCaptureFixture):
    plain = trials.plain_recipe()
    other = replace(plain, concepts=(replace(plain.concepts[0], pictures="other"),))
    faster = replace(plain, schedule=replace(plain.schedule, learning_rate=1.0))
    words = [
        evaluated("a", plain, 0.5),
        evaluated("b", other, 1.0),
        evaluated("c", faster, 0.0),
        evaluated("d", other, 9),
    ]
    whole, part = groups.pools(words)
    assert (whole.concepts, whole.of, whole.spreads["f"].mean) == (2, 2, 0.75)
    assert (part.name, part.concepts, part.of, part.spreads) == ("learning_rate=1.0", 1, 2, {})
    assert "d was trained as b was, so it counts for nothing beside it." in caplog.text


def test_a_signal_in_the_last_step_stops_what_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = suite.recipe(suite.NAMED["gold-ring"], tmp_path / "first", "<ring>", steps=2)
    begun: list[str] = []

    def train(recipe: Recipe, *, stop: Callable[[], bool], **others: object) -> Iterator[Progress]:
        begun.append(recipe.output.folder)
        stop()
        yield Progress(1, 1, {"<ring>": 0.1}, 0.1, 0.1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trials, "train", train)
    with pytest.raises(Interrupted, match=r"^Stopped in x-seed-0; the same command goes on\.$") as stopped:
        trials.carry_out(trials.of_seeds(own, 2, tmp_path, "x"))
    assert stopped.value.code == 130
    assert len(begun) == 1


def test_the_pages_sweeps_are_ones_that_can_be_made():
    page = (Path(__file__).parents[1] / "docs" / "how-good-is-my-word.md").read_text()
    sweeps = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("pseudoword sweep")]
    assert len(sweeps) >= 2
    for words in sweeps:
        vary = [value for flag, value in itertools.pairwise(words) if flag == "--vary"]
        assert len(ranges.varied(trials.plain_recipe(), vary)) > 1


def test_a_suites_recipe_may_say_part_of_its_concept_and_base(tmp_path: Path):
    (tmp_path / "r.toml").write_text("[[concepts]]\nnum_vectors = 2\n[base]\nclip_skip = 1\n")
    read = trials.read(tmp_path / "r.toml")
    assert (read.concepts[0].num_vectors, read.concepts[0].token, read.base.model) == (2, trials.TOKEN, "toybox")
    assert read.base.clip_skip == 1
