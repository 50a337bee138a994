"""A concept that cannot be learned is reported and left out, and takes nothing from the others of its run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pseudoword import methods, train
from pseudoword.batch import Batch
from pseudoword.contracts import NonFiniteLoss
from pseudoword.engines.torch_engine import TorchEngine
from pseudoword.errors import RecipeError, TrainingStopped
from pseudoword.families.sd.torch import StableDiffusion
from pseudoword.recipe import EngineRecipe, Recipe
from tests.miniatures import MakeRecipe, in_folder, one_batch, stopped_after, word


def test_a_concept_without_pictures_is_left_out(
    make_many: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_many(checkpointing_steps=2)
    cat, dog, style = recipe.concepts
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = dataclasses.replace(recipe, concepts=(cat, dataclasses.replace(dog, pictures=str(empty)), style))
    [*_, last] = train(in_folder(broken, tmp_path / "broken"))
    assert list(last.failed) == ["<dog>"]
    assert "<dog> is left out, and the others are learned: " in caplog.text
    list(train(dataclasses.replace(recipe, concepts=(cat, style))))
    for name in ("cat", "style"):
        one, other = word(tmp_path / "run", name), word(tmp_path / "broken", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()
    assert not (tmp_path / "broken" / "words" / "dog" / "learned_embeds.safetensors").exists()


@pytest.mark.parametrize("spoiled", ["initializer", "vectors", "token"])
def test_whatever_is_wrong_with_a_concept_the_others_are_learned(
    make_many: Callable[..., Recipe], tmp_path: Path, spoiled: str
) -> None:
    recipe = make_many(steps="1")
    cat, dog, style = recipe.concepts
    change = {"initializer": {"initializer": "gone.pt"}, "vectors": {"num_vectors": 80}, "token": {"token": "toy"}}
    concepts = (cat, dataclasses.replace(dog, **change[spoiled]), style)
    [last] = train(dataclasses.replace(recipe, concepts=concepts))
    assert list(last.failed) == [concepts[1].token]
    longer = dataclasses.replace(recipe.schedule, steps="2")
    [last] = train(dataclasses.replace(recipe, concepts=concepts, schedule=longer), resume="latest")
    assert list(last.failed) == [concepts[1].token]
    list(train(dataclasses.replace(recipe, concepts=concepts)))
    list(train(in_folder(dataclasses.replace(recipe, concepts=(cat, style)), tmp_path / "without")))
    for name in ("cat", "style"):
        one, other = word(tmp_path / "run", name), word(tmp_path / "without", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()


def test_where_no_concept_can_be_learned_it_says_why(make_many: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_many()
    gone = tuple(dataclasses.replace(own, pictures=str(tmp_path / "gone")) for own in recipe.concepts)
    with pytest.raises(RecipeError, match=r"^None of the 3 concepts can be learned: There is no folder .*gone"):
        list(train(dataclasses.replace(recipe, concepts=gone)))


def spoil(monkeypatch: pytest.MonkeyPatch, steps: dict[int, list[int]]) -> None:
    """Let pictures of these concepts be infinite in these steps (from 0)."""
    loss = TorchEngine._loss

    def spoiled(self: TorchEngine, params: Any, batch: Batch, *more: Any, **options: Any) -> Any:
        bad = np.isin(batch.concept, steps.get(self.step_number, []))[:, None, None, None]
        batch = dataclasses.replace(batch, std=np.where(bad, np.float32(np.inf), batch.std))
        return loss(self, params, batch, *more, **options)

    monkeypatch.setattr(TorchEngine, "_loss", spoiled)


@pytest.mark.parametrize("at_once", [0, 1])
def test_a_loss_that_is_not_finite_is_none_of_the_others(
    make_many: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_once: int,
) -> None:
    list(train(make_many(pictures_at_once=at_once, folder=str(tmp_path / "well"))))
    spoil(monkeypatch, {2: [1]})
    steps = list(train(make_many(pictures_at_once=at_once)))
    assert [list(p.loss) for p in steps] == [["<cat>", "<dog>", "<style>"]] * 2 + [["<cat>", "<style>"]] * 2
    assert "<dog> is given up because the loss of step 3 is not finite; the other concepts go on." in caplog.text
    assert steps[-1].failed == {"<dog>": "the loss of step 3 is not finite"}
    for name in ("cat", "style"):
        well, other = word(tmp_path / "well", name), word(tmp_path / "run", name)
        assert np.allclose(well.rows["clip_l"], other.rows["clip_l"], rtol=0, atol=1e-5)
    left = {path.name for path in (tmp_path / "run" / "words" / "dog").iterdir()}
    assert "learned_embeds-steps-2.safetensors" in left, "what it had learned until then"
    assert not {"learned_embeds.safetensors", "learned_embeds-steps-3.safetensors"} & left


def test_a_run_goes_on_without_what_had_been_given_up(
    make_many: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1: [0]})
    list(train(make_many(steps="6", folder=str(tmp_path / "whole"))))
    stopped_after(make_many(steps="6"), 4)
    [*_, last] = train(make_many(steps="6"), resume="latest")
    assert list(last.failed) == ["<cat>"], "tried again, and failed again"
    for name in ("dog", "style"):
        one, other = word(tmp_path / "whole", name), word(tmp_path / "run", name)
        assert one.rows["clip_l"].tobytes() == other.rows["clip_l"].tobytes()


def test_when_the_last_ones_fail_the_run_stops(
    make_many: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1: [0], 2: [1, 2]})
    told = r"of <dog> the loss of step 3 is not finite; of <style> the loss of step 3 is not finite"
    with pytest.raises(TrainingStopped, match=told):
        list(train(make_many()))


def test_the_loss_scale_is_as_before_when_one_fails(make_recipe: MakeRecipe, base: Path) -> None:
    engine, family = TorchEngine(EngineRecipe(mixed_precision="fp16")), StableDiffusion.load(make_recipe().base)
    rows = {}
    for token in ("<cat>", "<dog>"):
        family.vocabularies["clip_l"].lend(token, 1)
        rows[token] = {"clip_l": np.zeros((1, 32), np.float32)}
    engine.start(family, methods.build(make_recipe().method), rows)
    local = engine._gradients

    def overflowing(pairs: Any) -> Any:
        losses, grads = local(pairs)
        grads[1] = {name: g * np.inf for name, g in grads[1].items()}
        return losses, grads

    engine._gradients = overflowing
    family.vocabularies["clip_l"].give_back()
    family.vocabularies["clip_l"].lend("<cat-toy>", 2)
    batch, draw = one_batch(family)
    with pytest.raises(NonFiniteLoss, match=r"^the gradient of step 1 is not finite$") as caught:
        engine.step([(dataclasses.replace(batch, concept=np.asarray([0, 1])), draw)], 1e-3)
    assert list(caught.value.reasons) == ["<dog>"]
    assert engine.loss_scale == 2.0**16
