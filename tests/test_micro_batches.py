"""Micro-batches of a step are taken together as memory allows: the same step, and the same one again when resumed."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from pseudoword import train
from pseudoword.batch import joined, parts
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import BaseModel
from tests.miniatures import TOKEN, MakeRecipe, one_batch, rows_of


def test_a_step_of_several_micro_batches_is_one_pass_and_the_same_step(
    tmp_path: Path, make_recipe: MakeRecipe, passes: list[list[int]]
):
    rows = {}
    for name, changes, sizes in [
        ("together", {"batch_size": 1, "gradient_accumulation_steps": 4}, [4, 4]),
        ("apart", {"batch_size": 1, "gradient_accumulation_steps": 4, "pictures_at_once": 1}, [1] * 8),
        ("in pairs", {"batch_size": 1, "gradient_accumulation_steps": 4, "pictures_at_once": 3}, [2, 2, 2, 2]),
        ("one batch", {"batch_size": 4}, [4, 4]),
        ("checkpointed", {"batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}, [4, 4]),
    ]:
        passes.clear()
        list(train(make_recipe(**changes, steps="2", folder=str(tmp_path / name))))
        assert [len(own) for own in passes] == sizes, name
        rows[name] = rows_of(tmp_path / name)
    assert rows["together"].tobytes() == rows["one batch"].tobytes()
    for name in ("apart", "in pairs", "checkpointed"):
        assert np.allclose(rows["together"], rows[name], atol=1e-5), name


@pytest.mark.parametrize(("share", "sizes"), [(0.5, [1] * 4), (2.5, [2, 2]), (100, [4])])
def test_as_many_are_taken_together_as_fit(
    make_recipe: MakeRecipe,
    passes: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    base: Path,
    share: float,
    sizes: list[int],
    caplog: pytest.LogCaptureFixture,
):
    from pseudoword.families.sd import costs
    from pseudoword.job import MARGIN

    one = costs.kept_for_gradient(BaseModel(str(base)), (16, 16), 1)
    monkeypatch.setattr(TorchEngine, "free_memory", lambda self: int(share * one * MARGIN))
    with caplog.at_level(logging.INFO):
        list(train(make_recipe(batch_size=1, gradient_accumulation_steps=4, steps="1", resolution=16)))
    assert [len(own) for own in passes] == sizes
    assert f"Taking {sizes[0]} of 4 pictures of a step at once, as memory allows" in caplog.text


def test_a_resumed_run_takes_them_as_it_did_before(
    tmp_path: Path,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[list[int]],
    caplog: pytest.LogCaptureFixture,
):
    changes = {"batch_size": 1, "gradient_accumulation_steps": 4, "lr_scheduler": "constant", "steps": "4"}
    list(train(make_recipe(**changes, folder=str(tmp_path / "whole"))))
    list(train(make_recipe(**{**changes, "steps": "2"}, folder=str(tmp_path / "cut"))))
    monkeypatch.setattr(TorchEngine, "free_memory", lambda self: 0)  # another day, on a busy machine
    passes.clear()
    list(train(make_recipe(**changes, folder=str(tmp_path / "cut")), resume="latest"))
    assert [len(own) for own in passes] == [4, 4]
    assert rows_of(tmp_path / "cut").tobytes() == rows_of(tmp_path / "whole").tobytes()
    assert "not bit for bit" not in caplog.text
    list(train(make_recipe(**changes, pictures_at_once=1, folder=str(tmp_path / "cut")), resume="latest"))
    assert "Resuming, but not bit for bit: micro-batch was 4 and is 1." in caplog.text


@pytest.mark.parametrize(("at_once", "sizes"), [(1, [1] * 6), (4, [3, 3]), (5, [3, 3]), (6, [6]), (99, [6])])
def test_a_step_is_cut_into_equal_parts(at_once: int, sizes: list[int], base: Path):
    family = StableDiffusion.load(BaseModel(str(base)))
    for vocabulary in family.vocabularies.values():
        vocabulary.lend(TOKEN, 1)
    batch, draw = one_batch(family, count=6)
    found = parts((batch, draw), at_once)
    assert [len(part.concept) for part, _ in found] == sizes
    again, choices = joined(found)
    assert all(np.array_equal(getattr(again, name), getattr(batch, name)) for name in ("mean", "std", "placement"))
    assert np.array_equal(choices.noise, draw.noise)
    assert np.array_equal(choices.picture, draw.picture)
