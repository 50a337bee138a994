"""The guide's script: pushing to a Hub on this machine, and where its token is not to be seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.guide import QUICK, SCRIPT, Argv, Learn, Refused
from tests.hub_server import FILES, TOKEN, USER, Hub


def test_push_to_hub_uploads_the_word_to_a_repository_of_the_folders_name(hub: Hub, learn: Learn, tmp_path: Path):
    learn(push_to_hub=True, save_as_full_pipeline=True, output_dir=tmp_path / "cat_run")
    assert set(hub.files(f"{USER}/cat_run")) == FILES, "the word alone"


def test_hub_model_id_is_where_to(hub: Hub, learn: Learn, tmp_path: Path):
    learn(push_to_hub=True, hub_model_id=f"{USER}/elsewhere", output_dir=tmp_path)
    assert set(hub.repositories) == {f"{USER}/elsewhere"}


def test_hub_model_id_without_push_to_hub_is_kept_for_later(hub: Hub, learn: Learn, tmp_path: Path):
    run = learn(hub_model_id=f"{USER}/later", output_dir=tmp_path)
    assert run.recipe.output.hub_model_id == f"{USER}/later"
    assert hub.asked == []


def test_hub_token_is_what_is_pushed_with(
    hub: Hub, learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    learn(push_to_hub=True, hub_token=TOKEN, output_dir=tmp_path / "run")
    assert set(hub.files(f"{USER}/run")) == FILES
    assert hub.tokens <= {TOKEN, ""}
    assert not any(TOKEN in text for text in capfd.readouterr())
    assert [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []


def test_hub_token_that_the_hub_does_not_know_ends_with_one_sentence(hub: Hub, refused: Refused):
    told = refused(push_to_hub=True, hub_token="hf_wrong")
    assert told.startswith("error: Cannot push to refused: the Hub does not know the token (401)")
    assert "hf_wrong" not in told


@pytest.mark.parametrize("tracker", ["wandb", "all"])
def test_hub_token_is_not_taken_beside_a_tracker_that_records_the_command_line(refused: Refused, tracker: str):
    told = refused(report_to=tracker, hub_token=TOKEN)
    assert told.startswith(f"error: --report_to {tracker} and --hub_token do not go together")
    assert "hf auth login" in told
    assert TOKEN not in told


@pytest.mark.parametrize(
    "written", [["--hub_token", TOKEN], [f"--hub_token={TOKEN}"], ["--hub_t", TOKEN], ["--hub_tok="]]
)
def test_hub_token_is_taken_out_of_a_command_line_however_it_is_written(
    script: ModuleType, argv: Argv, written: list[str]
):
    others = argv(hub_model_id="a/b", output_dir="--hub_x")
    assert script.without_token([*others[:4], *written, *others[4:]]) == others
    assert script.without_token(["--hub_token"]) == []


def test_hub_token_leaves_the_command_line_where_there_is_no_starting_over(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["textual_inversion.py", "--seed", "1", "--hub_token", TOKEN])
    monkeypatch.setattr(sys, "orig_argv", ["python", "notebook"])
    script.hide_token(TOKEN)
    assert (sys.argv, sys.orig_argv) == (["textual_inversion.py", "--seed", "1"], ["python", "notebook"])
    monkeypatch.setattr(sys, "argv", ["textual_inversion.py", "--hub_token", TOKEN])
    monkeypatch.setattr(sys, "orig_argv", ["python", "textual_inversion.py", "--hub_token", TOKEN])
    monkeypatch.setattr(os, "name", "nt")
    script.hide_token(TOKEN)
    assert (sys.argv, sys.orig_argv) == (["textual_inversion.py"], ["python", "textual_inversion.py"])


def command_lines(of: int) -> dict[int, str]:
    """Return the command lines of a process and its descendants."""
    parents, lines = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                lines[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:  # gone meanwhile
                continue
    family = {of}
    while more := {child for child, parent in parents.items() if parent in family and child not in family}:
        family |= more
    return {number: lines[number] for number in family if number in lines}


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads command lines from /proc")
@pytest.mark.parametrize(
    "launcher",
    [
        [sys.executable],
        pytest.param([str(Path(sys.prefix) / "bin" / "accelerate"), "launch"], marks=pytest.mark.slow),
    ],
)
def test_hub_token_is_in_no_process_title_of_the_script_while_it_runs(
    hub: Hub, argv: Argv, tmp_path: Path, launcher: list[str]
):
    seen: list[dict[int, str]] = []
    hub.watch = lambda: seen.append(command_lines(run.pid))
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("HF_", "ACCELERATE_", "HTTP"))}
    env = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": ""}
    words = argv(**QUICK, push_to_hub=True, output_dir="run", hub_token=TOKEN)
    with (tmp_path / "said").open("w") as out:
        run = subprocess.Popen([*launcher, str(SCRIPT), *words], cwd=tmp_path, env=env, stdout=out, stderr=out)
        run.wait(timeout=240)
    said = (tmp_path / "said").read_text()
    assert run.returncode == 0, said
    assert f"The word is on the Hub: {hub.url}/{USER}/run" in said
    assert set(hub.files(f"{USER}/run")) == FILES
    scripts = [line for lines in seen for number, line in lines.items() if SCRIPT.name in line and "launch" not in line]
    assert len(scripts) >= 10
    assert not any(TOKEN in line for line in scripts)
    assert TOKEN not in said
    assert [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []
