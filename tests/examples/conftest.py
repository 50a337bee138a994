"""The guide's script run in this process on miniatures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.examples.guide import QUICK, REQUIRED, SCRIPT, Argv, Learn, Learned, Refused
from tests.miniatures import TOKEN


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("textual_inversion", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a launcher's environment out, and what the script sets up for itself in."""
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1" if name.startswith("HF") else "error")


@pytest.fixture(scope="module")
def argv(base: Path, pictures: Path) -> Argv:
    """Make a command line of the required flags; keyword arguments change and add flags, None leaves one out."""
    required = dict(zip(REQUIRED, (base, pictures, TOKEN, "toy"), strict=True))

    def make(**changes: Any) -> list[str]:
        flags = {name: value for name, value in {**required, **changes}.items() if value is not None}
        return [word for name, v in flags.items() for word in ([f"--{name}"] if v is True else [f"--{name}", str(v)])]

    return make


@pytest.fixture(scope="module")
def learn(script: ModuleType, argv: Argv, tmp_path_factory: pytest.TempPathFactory) -> Learn:
    """Learn in three quick steps; keyword arguments are flags, and runs of the same flags happen once."""
    runs: dict[str, Learned] = {}

    def run(**changes: Any) -> Learned:
        key = repr(sorted(changes.items()))
        if key not in runs:
            folder = Path(changes.get("output_dir") or tmp_path_factory.mktemp("run"))
            assert script.main(argv(**{**QUICK, "output_dir": folder, **changes})) == 0
            runs[key] = Learned(folder)
        return runs[key]

    return run


@pytest.fixture
def refused(script: ModuleType, argv: Argv, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Return the one sentence with which a command line is refused."""

    def refusal(**changes: Any) -> str:
        capsys.readouterr()
        assert script.main(argv(**{"output_dir": tmp_path / "refused", "resolution": 16, **changes})) == 1
        told = capsys.readouterr()
        assert not told.out
        [line] = [line for line in told.err.splitlines() if line.startswith("error: ")]
        assert told.err.splitlines()[-1] == line
        return line

    return refusal
