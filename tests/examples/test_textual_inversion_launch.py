"""The guide's script as the guide starts it: python, accelerate launch, several processes, a fresh environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pseudoword.families.sd import miniature
from tests.examples.guide import QUICK, SCRIPT, Argv, Learn, Learned
from tests.miniatures import TOKEN

ROOT = SCRIPT.parents[2]
Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run a command in an empty folder, with an empty Hub cache and no configuration of Accelerate but its own."""

    def run(*words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        ours = {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "HF_", "TRANSFORMERS_"))}
        made = subprocess.run(
            words, cwd=tmp_path, env={**kept, **ours, **environment}, capture_output=True, text=True, check=False
        )
        assert made.returncode == code, made.stderr
        return made

    return run


def tool(name: str) -> str:
    """Return a command of this environment."""
    return str(Path(sys.prefix) / "bin" / name)


def test_python_alone_runs_it(start: Start, argv: Argv, learn: Learn, tmp_path: Path):
    told = start(sys.executable, str(SCRIPT), *argv(**QUICK))
    assert told.stdout.startswith(f"The word {TOKEN} is in text-inversion-model.")
    assert "step 3/3" in told.stderr
    np.testing.assert_allclose(Learned(tmp_path / "text-inversion-model").rows, learn().rows, atol=1e-5)


def test_other_processes_than_the_main_one_are_silent(start: Start, argv: Argv):
    told = start(sys.executable, str(SCRIPT), *argv(**QUICK), RANK="1")
    assert (told.stdout, told.stderr) == ("", "")
    told = start(
        sys.executable, str(SCRIPT), *argv(only_save_embeds=True, save_as_full_pipeline=True), RANK="1", code=1
    )
    assert (told.stdout, told.stderr) == ("", "")


def in_hub_cache(cache: Path, repository: str, revisions: dict[str, Path]) -> None:
    """Lay out bases as the Hub's client would have stored them, one for each branch."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for number, (branch, base) in enumerate(revisions.items()):
        commit = str(number) * 40
        (folder / "refs" / branch).write_text(commit)
        shutil.copytree(base, folder / "snapshots" / commit)


def test_revision_is_the_branch_of_a_hub_id_under_accelerate_launch_without_configuration(
    start: Start, argv: Argv, learn: Learn, base: Path, tmp_path: Path
):
    other = miniature.write(tmp_path / "other", seed=1)
    in_hub_cache(tmp_path / "hf" / "hub", "someone/base", {"main": base, "better": other})
    flags = argv(**QUICK, pretrained_model_name_or_path="someone/base", revision="better", output_dir="run")
    start(tool("accelerate"), "launch", str(SCRIPT), *flags)
    run = Learned(tmp_path / "run")
    np.testing.assert_allclose(run.rows, learn(pretrained_model_name_or_path=other).rows, atol=1e-5)
    assert run.recipe.base.model == "someone/base"


@pytest.mark.slow
@pytest.mark.parametrize(
    "configure",
    [
        (tool("accelerate"), "config", "default", "--mixed_precision", "bf16"),
        (sys.executable, "-c", "from accelerate.utils import write_basic_config; write_basic_config('bf16')"),
    ],
)
def test_accelerate_configured_runs_it_in_the_configured_precision(
    start: Start, argv: Argv, tmp_path: Path, configure: tuple[str, ...]
):
    start(*configure)
    assert (tmp_path / "hf" / "accelerate" / "default_config.yaml").is_file()
    start(tool("accelerate"), "launch", str(SCRIPT), *argv(**QUICK, output_dir="run"))
    assert Learned(tmp_path / "run").recipe.engine.mixed_precision == "bf16"


@pytest.mark.slow
def test_two_processes_share_a_batch_and_one_speaks(start: Start, argv: Argv, learn: Learn, tmp_path: Path):
    flags = argv(**{**QUICK, "train_batch_size": 1}, output_dir="run")
    told = start(tool("torchrun"), "--nproc_per_node", "2", str(SCRIPT), *flags, ACCELERATE_USE_CPU="true")
    assert told.stdout.count(f"The word {TOKEN} is in run.") == 1
    assert told.stderr.count("step 3/3") == 1
    np.testing.assert_allclose(Learned(tmp_path / "run").rows, learn().rows, atol=1e-5)


def readme_command(name: str = SCRIPT.name) -> str:
    """Return the command of a script's README: the guide's."""
    text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    [command] = re.findall(rf"^accelerate launch {re.escape(name)} .*?(?=\n```)", text, re.MULTILINE | re.DOTALL)
    return command


def test_readme_command_is_understood(script: ModuleType):
    flags = shlex.split(readme_command().replace("\\\n", " "))[3:]
    recipe = script.recipe_of(script.parse_args(flags))
    assert (recipe.schedule.steps, recipe.concepts[0].token) == ("3000 steps", TOKEN)
    flags = shlex.split(readme_command("textual_inversion_sdxl.py").replace("\\\n", " "))[3:]
    recipe = script.recipe_of(script.parse_args(flags))
    assert (recipe.data.resolution, recipe.output.full_pipeline, recipe.concepts[0].token) == (768, True, TOKEN)


@pytest.mark.slow
def test_fresh_environment_runs_the_readmes_command(start: Start, base: Path, pictures: Path, tmp_path: Path):
    copy, environment = tmp_path / "pseudoword", tmp_path / "environment"
    for part in ("src", "examples"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, copy / part)
    start(sys.executable, "-m", "venv", str(environment))
    here = {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "PIP_CONSTRAINT": os.environ.get("PIP_CONSTRAINT", str(ROOT / "constraints.txt")),
        "MODEL_NAME": str(base),
        "DATA_DIR": str(pictures),
    }
    folder = copy / SCRIPT.parent.relative_to(ROOT)
    start("bash", "-c", f"cd {folder} && pip install -q -r requirements.txt", **here)
    start("bash", "-c", f"cd {folder} && {readme_command()} --resolution=16 --max_train_steps=3", **here)
    run = Learned(folder / "textual_inversion_cat")
    assert run.rates == pytest.approx([5e-4 * 4] * 3)
    assert run.rows.shape == (1, 32)
