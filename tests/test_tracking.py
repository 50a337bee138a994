"""Trackers get losses, learning rate and pictures, by Accelerate's names; one that fails does not end a run."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import accelerate.tracking
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pseudoword.errors import RecipeError
from pseudoword.training import train
from tests.miniatures import TOKEN, MakeRecipe, rows_of

LOOKING: dict[str, Any] = {
    "validation_prompts": [f"a photo of a {TOKEN}"],
    "num_validation_images": 2,
    "validation_steps": "2",
    "validation_sampling_steps": 2,
    "loss_steps": 2,
}


def board(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "textual_inversion"))
    events.Reload()
    return events


def test_tensorboard_has_numbers_and_pictures(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    list(train(make_recipe(report_to="tensorboard", **LOOKING)))
    events = board(tmp_path / "run" / "logs")
    assert sorted(events.Tags()["scalars"]) == ["fixed_draw_loss", "loss", "lr"]
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("fixed_draw_loss")] == [0, 2, 4]
    assert events.Scalars("lr")[0].value == pytest.approx(1e-2)
    pictures = events.Images("validation")
    assert [(e.step, e.width, e.height) for e in pictures] == [(0, 32, 16), (2, 32, 16), (4, 32, 16)]


def test_a_resumed_run_overwrites_what_came_after_its_checkpoint(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(report_to="tensorboard", checkpointing_steps=2, steps="5")
    run = train(recipe)
    for _ in range(3):  # killed after step 3; the checkpoint is step 2's
        next(run)
    run.close()
    list(train(recipe, resume="latest"))
    assert [e.step for e in board(tmp_path / "run" / "logs").Scalars("loss")] == [1, 2, 3, 4, 5]


def test_logging_dir_may_be_anywhere(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for folder in ("inside", str(tmp_path / "outside"), "../beside", "."):
        list(train(make_recipe(report_to="tensorboard", logging_dir=folder, steps="1")))
        assert [e.step for e in board(tmp_path / "run" / folder).Scalars("loss")] == [1]
    assert (tmp_path / "outside" / "textual_inversion").is_dir(), "what is outside stays where it is"
    assert (tmp_path / "beside" / "textual_inversion").is_dir()


class Recorder:
    """Stands for a tracker's package: whatever is called on it is written down."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return self

        return call


def pretend(monkeypatch: pytest.MonkeyPatch, name: str) -> Recorder:
    """Install a package that records; its `Image` keeps what it is made of."""
    recorder = Recorder()
    module = types.ModuleType(name)
    module.__dict__.update(
        __version__="9.0",
        init=lambda **kwargs: recorder,
        start=lambda **kwargs: recorder,
        config=recorder,
        Image=lambda picture, caption=None: ("image", picture, caption),
    )
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [name])
    return recorder


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_get_images_with_the_prompt(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder = pretend(monkeypatch, name)
    list(train(make_recipe(report_to=name, **LOOKING)))
    logged = [(args[0], kwargs["step"]) for call, args, kwargs in recorder.calls if call == "log"]
    assert [step for values, step in logged if "loss" in values] == [1, 2, 3, 4]
    values = [v for values, step in logged if step == 4 for key, v in values.items() if key.startswith("validation")]
    images = values[0] if name == "wandb" else values
    assert [caption for _, _, caption in images] == [f"{i}: a photo of a {TOKEN}" for i in range(2)]
    assert all(isinstance(picture, Image.Image) and picture.size == (16, 16) for _, picture, _ in images)
    [config] = [args[0] for call, args, _ in recorder.calls if call == "update"]
    assert config["training.seed"] == 7
    assert config["concepts.0.token"] == TOKEN
    assert [call for call, _, _ in recorder.calls][-1] == "finish"


def test_comet_gets_images_by_name_and_step(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = pretend(monkeypatch, "comet_ml")
    list(train(make_recipe(report_to="comet_ml", **LOOKING)))
    images = [kwargs for call, _, kwargs in recorder.calls if call == "log_image"]
    assert [(image["name"], image["step"]) for image in images[-2:]] == [
        (f"validation {i}: a photo of a {TOKEN}", 4) for i in range(2)
    ]
    assert [call for call, _, _ in recorder.calls][-1] == "end"


def test_several_prompts_have_a_name_each(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = pretend(monkeypatch, "wandb")
    prompts = [f"a photo of a {TOKEN}", f"a red {TOKEN}"]
    list(train(make_recipe(report_to="wandb", **{**LOOKING, "validation_prompts": prompts})))
    keys = {key for call, args, _ in recorder.calls if call == "log" for key in args[0]}
    assert keys == {"loss", "lr", "fixed_draw_loss", "validation-1", "validation-2"}


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["tensorboard"])
    with pytest.raises(RecipeError, match="The tracker 'comet_ml' is not installed: pip install comet-ml, or choose"):
        next(train(make_recipe(report_to="comet_ml", model="nowhere/at-all")))
    with pytest.raises(RecipeError, match="report_to must be one of 'none', 'all', 'tensorboard'"):
        make_recipe(report_to="paper")


def test_a_tracker_that_does_not_start_is_refused_alone_and_left_out_of_all(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, "wandb")
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["wandb", "tensorboard"])

    def no_key(**kwargs: Any) -> None:
        raise RuntimeError("api_key not configured\nlong story")

    monkeypatch.setattr(sys.modules["wandb"], "init", no_key)
    with pytest.raises(RecipeError, match=r"The tracker 'wandb' does not start \(api_key not configured\)\. Set it up"):
        next(train(make_recipe(report_to="wandb")))
    assert [p.step for p in train(make_recipe(report_to="all"))] == [1, 2, 3, 4]
    assert "The tracker 'wandb' does not start (api_key not configured); going on without it." in caplog.text


def test_a_signal_while_a_tracker_starts_ends_the_process(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "wandb")

    def told_to_end(**kwargs: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(sys.modules["wandb"], "init", told_to_end)
    with pytest.raises(SystemExit, match="143"):
        next(train(make_recipe(report_to="wandb")))


def test_a_tracker_that_fails_on_the_way_is_left_out(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    list(train(make_recipe(folder=str(tmp_path / "without"))))

    def full(self: Any, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(accelerate.tracking.TensorBoardTracker, "log", full)
    list(train(make_recipe(report_to="tensorboard")))
    [warning] = [record.message for record in caplog.records if "failed" in record.message]
    assert warning == "The tracker 'tensorboard' failed ([Errno 28] No space left on device); going on without it."
    assert np.array_equal(rows_of(tmp_path / "run"), rows_of(tmp_path / "without"))


REAL = """
import sys
from pseudoword import Recipe, train
list(train(Recipe.read(sys.argv[1])))
"""


@pytest.mark.slow
def test_the_real_packages_take_what_they_are_given(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """W&B, trackio and Comet, installed for this test, all of them offline."""
    added = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(added)]
    subprocess.run([*pip, "wandb", "trackio", "comet-ml"], check=True, timeout=600)
    for name in ("wandb", "trackio", "comet_ml"):
        file, folder = tmp_path / f"{name}.toml", tmp_path / name
        list(train(make_recipe(folder=str(folder), **LOOKING)))
        text = (folder / "recipe.toml").read_text().replace('report_to = "none"', f'report_to = "{name}"')
        file.write_text(text.replace(str(folder), str(folder / "again")))
        (folder / "again").mkdir()
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": f"{':'.join(sys.path)}:{added}",
            "WANDB_MODE": "offline",
            "COMET_START_ONLINE": "0",
            "COMET_OFFLINE_DIRECTORY": str(folder / "comet"),
            "TRACKIO_DIR": str(folder / "trackio"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", REAL, str(file)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "going on without it" not in done.stderr
        assert rows_of(folder / "again").tobytes() == rows_of(folder).tobytes()
        left = [path for path in folder.rglob("*") if path.suffix in (".wandb", ".zip", ".db")]
        assert left, f"{name} wrote nothing: {sorted(folder.rglob('*'))}"
