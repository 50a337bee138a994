"""What the README shows runs as printed, on a miniature where it names a real model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pseudoword import Concept, cli
from tests.hub_server import Hub

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COSTS = (ROOT / "docs" / "speed-and-memory.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def command(start: str) -> list[str]:
    """Return the words of the README's command that starts so."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return shlex.split(line)[1:]


def test_the_commands_of_the_readme(
    hub: Hub,
    base: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-cat").symlink_to(pictures)

    def here(start: str) -> list[str]:
        return [str(base) if "/stable-diffusion" in word else word for word in command(start)]

    assert cli.main([*here("pseudoword train"), "--steps", "2"]) == 0
    assert (tmp_path / "my-cat-run" / "exports" / "my-cat.safetensors").is_file()
    assert cli.main([*here("pseudoword train"), "--steps", "3", "--resume", "latest"]) == 0
    assert cli.main([*here("pseudoword generate"), "--num-inference-steps", "2"]) == 0
    assert (tmp_path / "beach.png").is_file()
    assert cli.main(here("pseudoword inspect my-cat-run")) == 0
    assert "<my-cat>" in capsys.readouterr().out
    assert cli.main(here("pseudoword push")) == 0
    assert "exports/my-cat.safetensors" in hub.files("someone/my-cat-run")
    real = np.random.default_rng(0).standard_normal((1, 768))  # the tools know no base of the miniature's width
    Concept("<my-cat>", {"clip_l": real}).save(tmp_path / "my-cat-run")
    assert cli.main(here("pseudoword convert")) == 0
    Path("downloaded.pt").write_bytes((tmp_path / "my-cat-files" / "a1111-picture" / "my-cat.png").read_bytes())
    assert cli.main(here("pseudoword inspect downloaded.pt")) == 0
    assert "no: reads PyTorch files alone" in capsys.readouterr().out


def test_the_python_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [block for block in blocks("python") if "pseudoword.train" in block]
    monkeypatch.chdir(tmp_path)
    code = code.replace('"steps": "20"', '"steps": "2"')
    exec(compile(code, "README.md", "exec"), {})
    assert Concept.load(tmp_path / "toy.safetensors").token == "<toy>"


@pytest.mark.parametrize("page", ["README.md", "docs/teach-a-word.md", "docs/speed-and-memory.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert all((path.parent / link).exists() for link in links), links


def test_the_readme_tells_how_to_get_and_install_it() -> None:
    commands = "\n".join(blocks("bash"))
    assert "git clone " in commands
    assert "pip wheel --no-deps --wheel-dir dist ." in commands
    assert "dist/pseudoword-*.whl" in commands


def test_what_it_is_stands_in_the_first_ten_lines() -> None:
    opening = " ".join(README.splitlines()[:10])
    for fact in ("Textual Inversion", "kilobytes", "frozen", "Stable Diffusion 1.x, 2.x and XL"):
        assert fact in opening, fact


def test_the_page_and_the_results_give_the_same_numbers() -> None:

    told = json.loads((ROOT / "benchmarks" / "results" / "whole_table.json").read_text())
    assert f"`{told['command']}`" in COSTS
    assert f"| {told['seconds_per_step']['rows']:.2f} s | {told['seconds_per_step']['table']:.2f} s |" in COSTS
    assert f"| {told['peak_mib']['rows']:,} MiB | {told['peak_mib']['table']:,} MiB |" in COSTS
    small, large = told["checkpoint_bytes"]["rows"], told["checkpoint_bytes"]["table"]
    assert f"| {small / 1e3:.1f} KB | {large / 1e6:.0f} MB |" in COSTS
    assert small < 100_000
    own, other = told["update_seconds"]["rows"], told["update_seconds"]["table"]
    assert f"| {own * 1e3:.1f} ms | {other * 1e3:.0f} ms |" in COSTS


def test_the_page_tells_what_checkpointing_and_lending_measured() -> None:
    memory, lending = (
        json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text()) for name in ("xl_memory", "lending")
    )
    for arm in ("kept", "checkpointed"):
        assert f"{memory[arm]['activations_mib']:,} MiB" in COSTS
    assert f"`{memory['command'].replace('=', ' ')}`" in COSTS
    for name in ("sd15", "sdxl"):
        ratio = lending[name]["ratio"]
        assert f"{ratio['median']} ({ratio['quartiles'][0]} to {ratio['quartiles'][1]})" in COSTS
        assert lending[name]["load_and_unload_seconds"] < 0.01
