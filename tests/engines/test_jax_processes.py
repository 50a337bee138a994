"""The JAX engine on several devices and processes, and where there is no torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from pseudoword import train
from pseudoword.recipe import Recipe
from tests.miniatures import TOKEN, MakeRecipe, rows_of

ROOT = Path(__file__).parents[2]
TRAIN = """
import sys
from pseudoword import train
from pseudoword.recipe import Recipe
for progress in train(Recipe.read(sys.argv[1])):
    print(progress.step, progress.loss)
"""
WITHOUT_TORCH = """
import sys
finders = list(sys.meta_path)
class NoTorch:  # as if they were not installed: transformers asks whether torch can be found
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "diffusers", "accelerate"):
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
    def find_distributions(self, context):
        return (own for f in finders if hasattr(f, "find_distributions") for own in f.find_distributions(context))
sys.meta_path[:] = [NoTorch()]
from pseudoword.cli import main
recipe, folder, model = sys.argv[1:]
assert main(["train", "--recipe", recipe]) == 0
sample = ["--num-inference-steps", "2", "--prompt", "a <cat-toy>", "--output", folder + "/picture.png"]
assert main(["generate", "--engine", "jax", "--model", model, "--embeds", folder, *sample]) == 0
print(sorted(name for name in ("torch", "diffusers", "accelerate") if name in sys.modules))
"""


def written(recipe: Recipe, path: Path) -> Path:
    path.write_text(tomli_w.dumps(recipe.to_dict()))
    return path


def python(code: str, *words: Any, **env: str) -> subprocess.Popen[str]:
    """Start code in an interpreter of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, words)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **env}, text=True, cwd=ROOT, **pipes)


def told(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for it, and return what it said."""
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    return said, wrong


@pytest.mark.parametrize("batch_size", [4, 3])
def test_four_devices_equal_one(make_recipe: MakeRecipe, tmp_path: Path, batch_size: int) -> None:
    common: dict[str, Any] = {"engine": "jax", "steps": "10", "learning_rate": 5e-4, "batch_size": batch_size}
    list(train(make_recipe(**common, folder=str(tmp_path / "one"))))
    four = written(make_recipe(**common, folder=str(tmp_path / "four")), tmp_path / "four.toml")
    told(python(TRAIN, four, XLA_FLAGS="--xla_force_host_platform_device_count=4"))
    assert np.abs(rows_of(tmp_path / "one") - rows_of(tmp_path / "four")).max() < 1e-5


@pytest.mark.slow
def test_two_processes_equal_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    common: dict[str, Any] = {"engine": "jax", "steps": "10", "learning_rate": 5e-4, "loss_steps": 5}
    list(train(make_recipe(**common, batch_size=4, folder=str(tmp_path / "one"))))
    two = written(make_recipe(**common, batch_size=2, folder=str(tmp_path / "two")), tmp_path / "two.toml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    said = [told(process)[0] for process in [python(TRAIN, two, **place, RANK=str(n)) for n in range(2)]]
    first, second = ([line for line in own.splitlines() if line[:1].isdigit()] for own in said)  # not gloo's
    assert first == second
    assert len(first) == 10
    assert np.abs(rows_of(tmp_path / "one") - rows_of(tmp_path / "two")).max() < 1e-5
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 11, "one process writes the log"


def test_a_launcher_that_names_no_place_is_refused() -> None:
    wrong = told(
        python(
            """
            from pseudoword.engines.jax_engine import JaxEngine
            from pseudoword.recipe import EngineRecipe
            try:
                JaxEngine(EngineRecipe(engine="jax"))
            except Exception as error:
                print(error)
            """,
            WORLD_SIZE="2",
            MASTER_ADDR="",
        )
    )[0]
    assert wrong.startswith("A launcher started 2 processes, but MASTER_ADDR and MASTER_PORT do not say where the")


def test_without_torch_it_trains_looks_and_generates(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    looking: dict[str, Any] = {"validation_prompts": [f"a {TOKEN}"], "validation_sampling_steps": 2}
    recipe = make_recipe(
        engine="jax", steps="1", loss_steps=1, num_validation_images=1, report_to="tensorboard", **looking
    )
    path = written(recipe, tmp_path / "recipe.toml")
    said, wrong = told(python(WITHOUT_TORCH, path, tmp_path / "run", recipe.base.model))
    assert said.splitlines()[-1] == "[]"
    assert "Nothing is tracked: trackers need pip install 'pseudoword[torch]'" in wrong
    assert (tmp_path / "run" / "picture.png").is_file()
    assert (tmp_path / "run" / "samples" / "step-000001.png").is_file()


@pytest.mark.slow
def test_an_environment_without_torch_learns_a_word_of_the_toybox(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "-e", f"{ROOT}[jax]"], check=True, timeout=900)
    known = subprocess.run([*pip[:3], "list"], check=True, capture_output=True, text=True).stdout.split()
    assert "jax" in known
    assert not {"torch", "diffusers", "accelerate"} & set(known)
    recipe = make_recipe(model="toybox", engine="jax", steps="3", initializer="circle", report_to="tensorboard")
    path = written(recipe, tmp_path / "recipe.toml")
    command = str(scripts / "pseudoword")
    subprocess.run([command, "train", "--recipe", str(path)], check=True, timeout=900)
    own = ["--engine", "jax", "--model", "toybox", "--embeds", str(tmp_path / "run"), "--prompt", f"a {TOKEN}"]
    output = tmp_path / "picture.png"
    subprocess.run([command, "generate", *own, "--output", str(output)], check=True, timeout=900)
    assert output.is_file()
