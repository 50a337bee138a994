"""Training that starts from other tools' words, and from the optimizer state that A1111 leaves beside one."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from pseudoword import Concept, formats, train
from pseudoword.formats import webui
from tests.miniatures import MakeRecipe, rows_of


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Return a word as A1111 saves it, with AdamW's state after 7 steps of large gradients."""
    rows = np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32) * 0.1
    path = formats.write_file(Concept("<old>", {"clip_l": rows}, steps=7), tmp_path / "old.pt", "webui")
    moments = {"step": torch.tensor(7.0), "exp_avg": torch.full((1, 32), 5.0), "exp_avg_sq": torch.ones(1, 32)}
    saved = {"hash": webui.checksum(rows), "optimizer_state_dict": {"state": {0: moments}, "param_groups": []}}
    torch.save(saved, tmp_path / "old.pt.optim")
    return path


@pytest.mark.parametrize("name", ["old.png", "old.webp"])
def test_training_starts_from_a_picture_that_is_a_word(tmp_path: Path, make_recipe: MakeRecipe, name: str):
    word = Concept("<old>", {"clip_l": np.full((1, 32), 0.25)})
    path = formats.write_file(word, tmp_path / "old.png", "webui").rename(tmp_path / name)
    list(train(make_recipe(initializer=str(path), learning_rate=0.0, steps="1")))
    assert (rows_of(tmp_path / "run") == 0.25).all()


def test_training_goes_on_with_the_optimizer_state_of_a1111(
    tmp_path: Path, make_recipe: MakeRecipe, earlier: Path, caplog: pytest.LogCaptureFixture
):
    start, beside = formats.read(earlier).rows["clip_l"], earlier.with_name("old.pt.optim")
    state = beside.read_bytes()
    moved = {}
    for name in ("with", "without"):
        recipe = make_recipe(initializer=str(earlier), folder=str(tmp_path / name), steps="2", lr_scheduler="constant")
        with caplog.at_level(logging.INFO):
            list(train(recipe))
        moved[name] = rows_of(tmp_path / name) - start
        beside.unlink(missing_ok=True)
    assert caplog.text.count("goes on with the optimizer's state of 7 steps") == 1
    assert (moved["with"] < -0.01).all(), "the running mean of the gradients was large and positive"
    assert (moved["without"] > 0).any()
    beside.write_bytes(state)
    longer = {"initializer": str(earlier), "steps": "4", "lr_scheduler": "constant"}
    list(train(make_recipe(**longer, folder=str(tmp_path / "with")), resume="latest"))
    list(train(make_recipe(**longer, folder=str(tmp_path / "at-once"))))
    assert rows_of(tmp_path / "with").tobytes() == rows_of(tmp_path / "at-once").tobytes()
