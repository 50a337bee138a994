"""The benchmarks run, keep what they have done, and count as they say."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
OURS = Path(__file__).parent.parent / "examples" / "textual_inversion" / "textual_inversion.py"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


def module(name: str) -> Any:
    return importlib.import_module(name)


def run(*words: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arms_are_compared_by_what_seeds_leave():
    """Two concepts, three seeds, means 0.5 and 0.6 apart by a shift of 0.1; variances by hand."""
    baseline = module("guide_baseline")
    values = {"guide": {"a": (0.4, 0.5, 0.6), "b": (0.1, 0.2, 0.3)}, "pseudoword": {"a": (0.6,) * 3, "b": (0.3,) * 3}}
    found: list[dict[str, Any]] = [
        {"arm": arm, "concept": concept, "seed": seed, "step": 5, "fidelity": [value - 0.1, value + 0.1]}
        for arm, concepts in values.items()
        for concept, seeds in concepts.items()
        for seed, value in enumerate(seeds)
    ]
    both = baseline.comparison(found, "fidelity", 5, ["a", "b"])
    assert (both["guide"], both["pseudoword"], both["difference"]) == (0.35, 0.45, 0.1)
    variance = (0.02 + 0.02) / 8  # squares around the means of four groups, over 4 × (3 - 1)
    half = 2.306 * np.sqrt(variance * 4 / 3) / 2
    assert both["interval_half"] == pytest.approx(half, abs=1e-4)
    assert both["within"] == (half >= 0.1)
    one = baseline.comparison([line for line in found if line["seed"] == 0], "fidelity", 5, ["a"])
    assert one["interval_half"] is None
    assert not one["within"]


def test_the_stand_in_mirrors_as_often_as_asked():
    stand_in = module("without_torchvision")
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    mirrored = [np.array(stand_in.RandomHorizontalFlip(p)(picture)) for p in (0, 1)]
    np.testing.assert_array_equal(mirrored[0], np.array(picture))
    np.testing.assert_array_equal(mirrored[1], np.array(picture)[:, ::-1])


def test_the_page_and_the_baseline_give_the_same_numbers():
    page = (BENCHMARKS.parent / "docs" / "how-good-is-my-word.md").read_text(encoding="utf-8")
    told = json.loads((BENCHMARKS / "results" / "guide-baseline.json").read_text(encoding="utf-8"))
    for step in (250, 500, 1000, 2000, 3000):
        [line] = [line for line in page.splitlines() if line.startswith(f"| {step:,} |")]
        for one in told["compared"]:
            if one["step"] == step and len(one["concepts"]) == 4:
                numbers = f"| {one['guide']:.3f} | {one['pseudoword']:.3f} |"
                assert numbers in line
                assert f"{abs(one['difference']):.3f} ± {one['interval_half']:.3f}" in line
    assert f"Of {told['within'].split()[-1]} comparisons" in page
    assert f"{told['within'].split()[0]} lie within" in page
    variances: dict[str, list[float]] = {}
    for concept in ("candy-heart", "cottage", "toadstool", "mosaic"):
        for arm in ("guide", "pseudoword"):
            for step in (250, 500, 1000, 2000, 3000):
                own = [
                    np.mean(one["fidelity"])
                    for one in told["scores"]
                    if (one["arm"], one["concept"], one["step"]) == (arm, concept, step)
                ]
                assert len(own) == 3
                variances.setdefault(concept, []).append(float(np.var(own, ddof=1)))
    deviations = {concept: np.sqrt(np.mean(own)) for concept, own in variances.items()}
    assert f"{deviations['candy-heart']:.3f} in" in page
    assert all(f"{value:.3f} of {concept}" in page for concept, value in list(deviations.items())[1:])
    assert f"({np.sqrt(np.mean(list(variances.values()))):.3f} over all four)" in page


def test_what_many_words_cost_is_measured_small_too(tmp_path: Path):
    run(BENCHMARKS / "loading_many.py", "--words", "3", "--output", tmp_path / "many.json")
    [small] = json.loads((tmp_path / "many.json").read_text())["milliseconds"]
    [*_, kept] = json.loads((BENCHMARKS / "results" / "loading_many.json").read_text())["milliseconds"]
    assert small.keys() == kept.keys()
    assert kept["load_a_word"] < 1
    assert kept["load_a_word_one_by_one"] < 1


def test_what_lending_costs_is_measured_small_too(tmp_path: Path):
    run(BENCHMARKS / "lending.py", "--small", "--rounds", "2", "--output", tmp_path / "lending.json")
    told = json.loads((tmp_path / "lending.json").read_text())
    for name in ("sd15", "sdxl"):
        assert told[name]["ratio"]["median"] > 0
        assert told[name]["load_and_unload_seconds"] > 0


def test_what_checkpointing_saves_is_measured_small_too(tmp_path: Path):
    run(BENCHMARKS / "xl_memory.py", "--small", "--resolution", "256", "--output", tmp_path / "memory.json")
    told = json.loads((tmp_path / "memory.json").read_text())
    assert told["kept"]["gradient"] == pytest.approx(told["checkpointed"]["gradient"], rel=0.05)
    assert min(told["kept"]["gradient"]) > 0
    assert told["kept"]["activations_mib"] > 0


def test_converting_is_measured_small_too(tmp_path: Path):
    run(BENCHMARKS / "converting.py", "--files", "20", "--rounds", "2", "--output", tmp_path / "converting.json")
    told = json.loads((tmp_path / "converting.json").read_text())
    assert len(told["share_of_the_disks_pace"]["all"]) == 2
    assert told["convert_files_per_second"] > 0


@pytest.mark.parametrize("geometry", ["toybox", pytest.param("sd15-small", marks=pytest.mark.slow)])
def test_speed_is_measured_of_a_script_against_itself(tmp_path: Path, geometry: str):
    asked = ["--script", OURS, "--geometry", geometry, "--warm", "1", "--steps", "2", "--rounds", "1"]
    run(BENCHMARKS / "against_guide.py", *asked, "--work", tmp_path / "w", "--output", tmp_path / "speed.json")
    told = json.loads((tmp_path / "speed.json").read_text())
    assert told["pseudoword_times_as_fast_as_guide"]["median"] > 0
    assert {len(own) for own in told["runs"].values()} == {1}
    assert told["runs"]["guide"][0]["steps"] == 3


def test_speed_of_several_words_is_measured_beside_as_many_runs(tmp_path: Path):
    asked = ["--script", OURS, "--warm", "1", "--steps", "1", "--rounds", "1", "--words", "3"]
    run(BENCHMARKS / "against_guide.py", *asked, "--work", tmp_path / "w", "--output", tmp_path / "speed.json")
    told = json.loads((tmp_path / "speed.json").read_text())
    assert told["command"].endswith("--rounds 1 --words 3")
    assert told["pseudoword_times_as_fast_as_guide"]["whole_process_of_these_steps"] > 1


@pytest.mark.parametrize(
    ("geometry", "more"),
    [
        ("toybox", ["--words", "2", "--deterministic"]),
        pytest.param("sd15-small", ["--memory", "lowest"], marks=pytest.mark.slow),
        pytest.param("sdxl-small", ["--mixed-precision", "bf16"], marks=pytest.mark.slow),
    ],
)
def test_a_step_is_measured_part_by_part(tmp_path: Path, geometry: str, more: list[str]):
    asked = ["--geometry", geometry, "--at-once", "2", "4", "--rounds", "2", "--work", tmp_path / "w", *more]
    shown = run(BENCHMARKS / "step.py", *asked, "--output", tmp_path / "step.json")
    told = json.loads((tmp_path / "step.json").read_text())
    for line in told["at_once"]:
        parts = line["seconds"]
        assert 0 < parts["prompts"] < parts["step"]
        assert 0 < line["share_of_matrix_product"] < 1
        assert f"{line['pictures_per_second']:.1f}" in shown
    assert told["at_once"][1]["tflop"] == pytest.approx(2 * told["at_once"][0]["tflop"], rel=0.01)


@pytest.mark.slow
def test_the_baseline_of_a_script_against_itself_and_again_from_its_words(tmp_path: Path):
    asked = [BENCHMARKS / "guide_baseline.py", "--script", OURS, "--concepts", "gold-ring", "--seeds", "0", "1"]
    asked += ["--steps", "4", "--save-steps", "2", "--evaluated", "2", "4", "--noises", "2", "--jobs", "1"]
    asked += ["--work", tmp_path / "work", "--output", tmp_path / "out"]
    assert "within the interval: 8 of 8" in run(*asked)
    told = json.loads((tmp_path / "out.json").read_text())
    assert {one["difference"] for one in told["compared"]} == {0}
    assert {(one["arm"], one["step"]) for one in told["scores"]} == {
        ("untrained", 0),
        *((arm, step) for arm in ("guide", "pseudoword") for step in (2, 4)),
    }
    assert len(told["runs"]) == 4
    assert Image.open(tmp_path / "out.png").width > 200

    # The words alone are enough to score again.
    shutil.rmtree(tmp_path / "work")
    run(*asked)
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["scores"] == told["scores"]
    assert again["runs"] == told["runs"]
    assert not list((tmp_path / "work").glob("*-gold-ring-*"))
    assert {one["script"] == "ours" for one in again["trained"]} == {True, False}
    assert "--gradient_accumulation_steps=4" in again["trained"][0]["flags"]

    # Other means are other words.
    run(*asked, "--batch", "2", "2", "--seeds", "0", "--concepts", "gold-ring")
    assert len(list((tmp_path / "work").glob("*-gold-ring-0"))) == 2


def test_what_fits_is_counted_small_too(tmp_path: Path):
    run(BENCHMARKS / "fits.py", "--geometries", "sdxl-small", "--work", tmp_path, "--output", tmp_path / "fits.json")
    told = json.loads((tmp_path / "fits.json").read_text())
    whole, low, lowest = (told[f"sdxl-small {mode}"]["together"] for mode in ("auto", "low", "lowest"))
    assert whole > low > lowest > 0


def test_both_engines_words_are_scored_small_too(tmp_path: Path):
    asked = ["--concepts", "gold-ring", "--seeds", "0", "1", "--steps", "2", "--noises", "2"]
    run(BENCHMARKS / "engines.py", *asked, "--work", tmp_path / "w", "--output", tmp_path / "engines.json")
    told = json.loads((tmp_path / "engines.json").read_text())
    assert max(told["gold-ring"]["rows_apart"]) < 1e-4
    for measure in ("fidelity", "editability"):
        assert told["gold-ring"][measure]["apart"] < 0.01
        assert len(told["gold-ring"][measure]["jax"]) == 2


def test_a_step_in_jax_is_measured_small_too(tmp_path: Path):
    asked = ["--geometry", "toybox", "--pictures", "2", "--steps", "1", "--work", tmp_path / "w"]
    run(BENCHMARKS / "jax_real_size.py", *asked, "--output", tmp_path / "jax.json")
    told = json.loads((tmp_path / "jax.json").read_text())
    assert 0 < told["step_seconds"] < told["first_step_seconds"]
    assert told["kept_for_gradient_counted_mib"] < told["step_peak_mib"]
    assert len(told["loss"]) == 2


def test_the_page_on_speed_has_the_numbers_of_the_results():
    page = (BENCHMARKS.parent / "docs" / "speed-and-memory.md").read_text(encoding="utf-8")
    real = json.loads((BENCHMARKS / "results" / "jax-sd15.json").read_text(encoding="utf-8"))
    seconds = [f"{real[name]:.1f} s" for name in ("step_seconds", "first_step_seconds", "load_seconds")]
    assert all(one in page for one in [*seconds, f"{real['step_peak_mib']:,} MiB", real["command"]])
    both = json.loads((BENCHMARKS / "results" / "engines.json").read_text(encoding="utf-8"))
    concepts = [both[name] for name in ("candy-heart", "toadstool")]
    assert f"at most {max(apart for one in concepts for apart in one['rows_apart'])} of their" in page
    assert all(
        one[measure]["jax"] == one[measure]["torch"] for one in concepts for measure in ("fidelity", "editability")
    )
    fits = json.loads((BENCHMARKS / "results" / "fits.json").read_text(encoding="utf-8"))
    for name in ("sd15 low", "sd15 lowest", "sdxl low", "sdxl lowest"):
        assert " | ".join(f"{mib:,} MiB" for mib in fits[name].values()) in page
    for path in (BENCHMARKS / "results").glob("against-guide-*.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        for mine in (arm for arm in told["runs"] if arm.startswith("pseudoword")):
            ratio = told[f"{mine}_times_as_fast_as_guide"]
            numbers = [told["guide"]["pictures_per_second"], told[mine]["pictures_per_second"]]
            pairs = f"{min(ratio['pairs'])} to {max(ratio['pairs'])}"
            assert f"| {numbers[0]:.1f} | {numbers[1]:.1f} | {ratio['median']} ({pairs}) |" in page
            beside = told.get(f"{mine}_times_as_fast_as_pseudoword")
            if beside:
                assert f"takes {beside['median']} times as many pictures" in page
                assert f"pairs: {min(beside['pairs'])} to {max(beside['pairs'])}" in page
        assert told["command"] in page
