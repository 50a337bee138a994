"""Compiling the denoiser: when it pays, what it leaves as it is, and going on without where it fails."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pseudoword import train
from pseudoword.engines import compiling
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.families.latent_diffusion import LatentDiffusion
from tests.miniatures import MakeRecipe, rows_of, stopped_after


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Let torch.compile trace and differentiate, but leave machine code to PyTorch's own kernels; notes its modes."""
    modes: list[str | None] = []

    def compiled(self: LatentDiffusion, mode: str | None, *, dynamic: bool | None = None) -> None:
        modes.append(mode)
        traced = None if mode is None else torch.compile(self.unet, backend="aot_eager", dynamic=dynamic)
        self._compiled = traced

    monkeypatch.setattr(LatentDiffusion, "compile", compiled)
    return modes


def told(folder: Path, step: int) -> str:
    return json.loads((folder / f"checkpoint-{step}" / "checkpoint.json").read_text())["arithmetic"]["compiled"]


def test_a_compiled_denoiser_learns_the_same_word(
    make_recipe: MakeRecipe, tmp_path: Path, quick: list[str | None]
) -> None:
    list(train(make_recipe(folder=str(tmp_path / "plain"))))
    assert quick == []
    list(train(make_recipe(compile="on", loss_steps=2)))
    assert quick == ["default"]
    assert np.allclose(rows_of(tmp_path / "run"), rows_of(tmp_path / "plain"), atol=1e-5)
    assert (told(tmp_path / "run", 4), told(tmp_path / "plain", 4)) == ("True", "False")


def test_a_run_that_was_compiled_goes_on_compiled_bit_for_bit(
    make_recipe: MakeRecipe, tmp_path: Path, quick: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "pays", lambda *args: True)  # decided once, and kept
    list(train(make_recipe(folder=str(tmp_path / "whole"))))
    stopped_after(make_recipe(), 2)
    monkeypatch.setattr(compiling, "pays", lambda *args: pytest.fail("decided already"))
    list(train(make_recipe(), resume="latest"))
    assert quick == ["default"] * 3
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "whole").tobytes()


def test_a_resumed_run_that_says_otherwise_is_told_so(
    make_recipe: MakeRecipe, quick: list[str | None], caplog: pytest.LogCaptureFixture
) -> None:
    stopped_after(make_recipe(), 2)
    list(train(make_recipe(compile="on"), resume="latest"))
    assert "Resuming, but not bit for bit: compiled was False and is True." in caplog.text


def test_several_shapes_and_sizes_of_batches(make_recipe: MakeRecipe, tmp_path: Path, quick: list[str | None]) -> None:
    changes: dict[str, Any] = {"fit": "bucket", "resolution": 32, "batch_size": 5, "pictures_at_once": 2}
    list(train(make_recipe(**changes, folder=str(tmp_path / "plain"))))
    list(train(make_recipe(**changes, compile="on")))
    assert quick == ["default"]
    assert np.allclose(rows_of(tmp_path / "run"), rows_of(tmp_path / "plain"), atol=1e-5)


@pytest.mark.parametrize("when", ["at once", "in the second step"])
def test_where_the_compiler_fails_it_goes_on_without(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    when: str,
) -> None:
    list(train(make_recipe(folder=str(tmp_path / "plain"))))

    def compiled(self: LatentDiffusion, mode: str | None, *, dynamic: bool | None = None) -> None:
        calls: list[int] = []

        def fails(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if when == "at once" or len(calls) > 2:
                raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n and so on")
            return self.unet(*args, **options)

        self._compiled = None if mode is None else fails

    monkeypatch.setattr(LatentDiffusion, "compile", compiled)
    list(train(make_recipe(compile="on")))
    sentence = "torch.compile failed (InvalidCxxCompiler: No working C++ compiler found); going on without it"
    assert sentence in caplog.text
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "plain").tobytes()
    assert told(tmp_path / "run", 4) == str(when != "at once"), "what a resumed run tries again"


def test_an_error_of_ones_own_is_not_the_compilers(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LatentDiffusion, *args: Any, **options: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(TorchEngine, "_loss", broken)
    with pytest.raises(RuntimeError, match="broken"):
        list(train(make_recipe()))


@pytest.mark.parametrize(
    ("device", "steps", "seconds", "compiled"),
    [("cpu", 10**6, 10.0, False), ("cuda", 3000, 0.5, True), ("cuda", 10, 0.5, False), ("mps", 10**6, 1.0, False)],
)
def test_it_is_done_where_it_pays(
    device: str, steps: int, seconds: float, compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert compiling.pays(device, 280, steps, lambda: seconds) is compiled
    if device == "cuda":
        assert f"of {steps} steps: {'compiled' if compiled else 'left as it is'}" in caplog.text


def test_a_step_is_timed_for_the_decision(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, quick: list[str | None]
) -> None:
    asked: list[float] = []

    def pays(device: str, layers: int, steps: int, seconds: Callable[[], float]) -> bool:
        asked.extend([layers, steps, seconds()])
        return False

    monkeypatch.setattr(compiling, "pays", pays)
    list(train(make_recipe()))
    assert asked[0] > 20
    assert asked[1] == 4
    assert 0 < asked[2] < 60
    assert quick == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_real_machine_code(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(folder=str(tmp_path / "plain"))))
    list(train(make_recipe(compile="on", folder=str(tmp_path / "whole"))))
    stopped_after(make_recipe(compile="on"), 2)
    list(train(make_recipe(compile="on"), resume="latest"))
    assert told(tmp_path / "whole", 4) == "True"
    assert np.allclose(rows_of(tmp_path / "whole"), rows_of(tmp_path / "plain"), atol=1e-4)
    assert rows_of(tmp_path / "run").tobytes() == rows_of(tmp_path / "whole").tobytes()
