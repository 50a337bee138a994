"""Micro-batches of a step are taken together as memory allows: the same step, and the same one again when resumed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pseudoword import train
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.recipe import EngineRecipe
from tests.miniatures import MakeRecipe, rows_of


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which every pass through the model adds its pictures."""
    seen: list[int] = []
    loss = TorchEngine._loss

    def counted(self: TorchEngine, params: object, batch: object, draw: object) -> object:
        seen.append(len(batch.concept))  # pyright: ignore[reportAttributeAccessIssue]
        return loss(self, params, batch, draw)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(TorchEngine, "_loss", counted)
    return seen


def test_a_step_of_several_micro_batches_is_one_pass_and_the_same_step(
    tmp_path: Path, make_recipe: MakeRecipe, sizes: list[int]
):
    rows = {}
    for name, changes, passes in [
        ("together", {"batch_size": 1, "gradient_accumulation_steps": 4}, [4, 4]),
        ("apart", {"batch_size": 1, "gradient_accumulation_steps": 4, "pictures_at_once": 1}, [1] * 8),
        ("in pairs", {"batch_size": 1, "gradient_accumulation_steps": 4, "pictures_at_once": 3}, [3, 1, 3, 1]),
        ("one batch", {"batch_size": 4}, [4, 4]),
        ("checkpointed", {"batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}, [2] * 4),
    ]:
        sizes.clear()
        list(train(make_recipe(**changes, steps="2", folder=str(tmp_path / name))))
        assert sizes == passes, name
        rows[name] = rows_of(tmp_path / name)
    assert rows["together"].tobytes() == rows["one batch"].tobytes()
    for name in ("apart", "in pairs", "checkpointed"):
        assert np.allclose(rows["together"], rows[name], atol=1e-5), name


@pytest.mark.parametrize(("share", "passes"), [(0.5, [1] * 4), (2.5, [2, 2]), (100, [4])])
def test_as_many_are_taken_together_as_fit(
    make_recipe: MakeRecipe,
    sizes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    base: Path,
    share: float,
    passes: list[int],
    caplog: pytest.LogCaptureFixture,
):
    from pseudoword.families.sd import costs
    from pseudoword.job import MARGIN
    from pseudoword.recipe import BaseModel

    one = costs.kept_for_gradient(BaseModel(str(base)), (16, 16), 1)
    monkeypatch.setattr(TorchEngine, "free_memory", lambda self: int(share * one * MARGIN))
    with caplog.at_level(logging.INFO):
        list(train(make_recipe(batch_size=1, gradient_accumulation_steps=4, steps="1", resolution=16)))
    assert sizes == passes
    assert f"Taking {passes[0]} of 4 micro-batches at once, as memory allows" in caplog.text


def test_a_resumed_run_takes_them_as_it_did_before(
    tmp_path: Path,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    caplog: pytest.LogCaptureFixture,
):
    changes = {"batch_size": 1, "gradient_accumulation_steps": 4, "lr_scheduler": "constant", "steps": "4"}
    list(train(make_recipe(**changes, folder=str(tmp_path / "whole"))))
    list(train(make_recipe(**{**changes, "steps": "2"}, folder=str(tmp_path / "cut"))))
    monkeypatch.setattr(TorchEngine, "free_memory", lambda self: 0)  # another day, on a busy machine
    sizes.clear()
    list(train(make_recipe(**changes, folder=str(tmp_path / "cut")), resume="latest"))
    assert sizes == [4, 4]
    assert rows_of(tmp_path / "cut").tobytes() == rows_of(tmp_path / "whole").tobytes()
    assert "not bit for bit" not in caplog.text
    list(train(make_recipe(**changes, pictures_at_once=1, folder=str(tmp_path / "cut")), resume="latest"))
    assert "Resuming, but not bit for bit: micro-batch was 4 and is 1." in caplog.text


@pytest.mark.parametrize(
    ("at_once", "shares"), [(1, [[0, 1], [2, 3], [4, 5]]), (4, [[0, 1, 2, 3], [4, 5]]), (99, [[0, 1, 2, 3, 4, 5]])]
)
def test_micro_batches_stay_whole(at_once: int, shares: list[list[int]]):
    assert TorchEngine(EngineRecipe()).shares(2, 3, at_once) == shares
