"""The package as it is installed from a wheel: everything in it that is no code, and the commands that need it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pseudoword"


def data_files() -> set[str]:
    """Return what the package holds besides code, as paths inside it."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(PACKAGE).as_posix() for path in paths if path.suffix != ".py"}


def test_every_file_that_is_no_code_is_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["pseudoword"]
    matched = {path.relative_to(PACKAGE).as_posix() for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert {"py.typed", "evaluate/report.html", "toybox/oracle/oracle.safetensors"} <= matched
    assert data_files() == matched, "name these in pyproject.toml, or a wheel is without them"


@pytest.mark.slow
def test_the_commands_run_from_a_wheel(tmp_path: Path) -> None:
    source, dist, venv = (tmp_path / name for name in ("source", "dist", "venv"))
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist), str(source)]
    subprocess.run(build, check=True)
    [wheel] = dist.glob("pseudoword-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.removeprefix("pseudoword/") for name in archive.namelist()}
    assert data_files() <= names
    assert {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")} <= names

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    install = [*pip, "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True).stdout.strip()
    Path(own, "shared.pth").write_text(sysconfig.get_path("purelib"))  # what the package needs, but not the package

    here = tmp_path / "here"
    here.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def said(*words: str, program: str = "pseudoword") -> str:
        command = [str(scripts / program), *words]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = said("-c", "import pseudoword; print(pseudoword.__file__)", program=python.name)
    assert Path(place.strip()).is_relative_to(venv), "and not the code beside this test"
    assert said("demo", "--help").startswith("usage: pseudoword demo")
    assert "train-oracle" in said("toybox", "--help")
    said("toybox", "render", "--concept", "toadstool", "--output", "toadstool")
    concept = ["--token", "<it>", "--pictures", "toadstool", "--initializer", "star"]
    said("train", "--model", "toybox", *concept, "--steps", "2", "--folder", "run")
    said("generate", "--model", "toybox", "--embeds", "run", "--prompt", "a <it>", "--num-inference-steps", "2")
    assert (here / "picture.png").is_file()
    few = ["--num-images", "1", "--num-inference-steps", "2"]
    said("evaluate", "run", *few, "--output", "evaluation")  # with the oracle's weights and the report's template
    assert (here / "evaluation" / "report.html").is_file()
