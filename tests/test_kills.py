"""Killed at random moments while it validates, saves, tracks and pushes: no bit differs, and every file reads."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pseudoword import Recipe, cli
from tests.hub_server import FILES, USER, Hub, point_at
from tests.hub_server import TOKEN as TOKEN_OF_HUB
from tests.miniatures import PROCESSES, TOKEN, MakeRecipe, log_of

EVERYTHING: dict[str, Any] = {
    "steps": "40",
    "checkpointing_steps": 1,
    "save_steps": 3,
    "validation_prompts": [f"a photo of a {TOKEN}", f"a red {TOKEN}"],
    "num_validation_images": 2,
    "validation_steps": "4",
    "validation_sampling_steps": 2,
    "loss_steps": 2,
    "report_to": "tensorboard",
    "push_to_hub": True,
    "push_steps": 3,
}


def command(words: list[str], url: str) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        point_at(url, patch)
        sys.exit(cli.main(words))


def started(recipe: Path, folder: Path, hub: Hub) -> Any:
    """Start or go on with a run as people do, in a process of its own."""
    words = ["train", "--recipe", str(recipe), "--folder", str(folder), "--resume", "latest"]
    process = PROCESSES.Process(target=command, args=(words, hub.url))
    process.start()
    return process


def write(recipe: Recipe, path: Path) -> Path:
    path.write_text(tomli_w.dumps(recipe.to_dict()))
    return path


def length_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def killed(recipe: Path, folder: Path, hub: Hub, number: signal.Signals, kills: int, seed: int) -> None:
    """Run to the end, killed on the way: each time at a random moment after a sign of life."""
    dice, done = random.Random(seed), 0
    while True:
        process = started(recipe, folder, hub)
        before = length_of(folder / "log.jsonl")
        if done < kills:
            until = time.monotonic() + 60
            while process.exitcode is None and length_of(folder / "log.jsonl") == before and time.monotonic() < until:
                time.sleep(0.002)
            process.join(dice.uniform(0, 0.25))
            if process.exitcode is None:
                os.kill(process.pid, number)
                done += 1
        process.join(120)
        assert process.exitcode in (0, -signal.SIGKILL, 128 + number), f"ended with {process.exitcode}"
        if process.exitcode == 0:
            break
    assert done == kills, f"the run was over after {done} of {kills} kills; give it more steps"


def outputs(folder: Path) -> dict[str, bytes]:
    """Return what a run leaves, but for what tells the time or the folder."""
    kept = [*folder.glob("learned_embeds*"), *folder.glob("exports/*"), *folder.glob("samples/*")]
    kept += folder.glob("checkpoint-*/state.safetensors")
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def read_everything(folder: Path) -> None:
    """Open every file that a run has left."""
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".bin":
            torch.load(path, weights_only=True)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.is_file() and "tfevents" not in path.name and path.name != ".lock":
            path.read_text(encoding="utf-8")
    assert not list(folder.rglob(".tmp-*")), "what a kill left half-written is gone"
    events = EventAccumulator(str(folder / "logs" / "textual_inversion"))
    events.Reload()
    assert [e.step for e in events.Scalars("lr")][-1] == log_of(folder)[-1]["step"]


def check(
    make_recipe: MakeRecipe, hub: Hub, tmp_path: Path, number: signal.Signals, kills: int, **changes: Any
) -> None:
    recipe = write(make_recipe(**{**EVERYTHING, **changes}), tmp_path / "recipe.toml")
    straight = started(recipe, tmp_path / "straight", hub)
    killed(recipe, tmp_path / "broken", hub, number, kills, seed=kills + number)
    straight.join(120)
    assert straight.exitcode == 0
    assert outputs(tmp_path / "broken").keys() == outputs(tmp_path / "straight").keys()
    assert outputs(tmp_path / "broken") == outputs(tmp_path / "straight")
    assert log_of(tmp_path / "broken") == log_of(tmp_path / "straight")
    read_everything(tmp_path / "broken")
    pushed = hub.files(f"{USER}/broken")
    assert pushed == {name: (tmp_path / "broken" / name).read_bytes() for name in pushed}
    assert pushed.keys() == {*FILES, "samples/strip.png"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN_OF_HUB.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("engine", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_three_kills_at_random_moments_change_no_bit(
    make_recipe: MakeRecipe, hub: Hub, tmp_path: Path, engine: str, number: signal.Signals
) -> None:
    check(make_recipe, hub, tmp_path, number, 3, engine=engine)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_twenty_kills_at_random_moments_change_no_bit(
    make_recipe: MakeRecipe, hub: Hub, tmp_path: Path, number: signal.Signals
) -> None:
    check(make_recipe, hub, tmp_path, number, 20, steps="240")
