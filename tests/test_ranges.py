"""Settings by their names, whole and short, and the recipes that a sweep's ranges of them make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pseudoword import ranges, trials
from pseudoword import recipe as recipe_module
from pseudoword.errors import RecipeError
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import Recipe


def test_ranges_make_recipes():
    plain = trials.plain_recipe()
    found = ranges.varied(plain, ["schedule.steps=5,9", 'lr_scheduler=["constant", "cosine"]', "method.adam_beta2=0.9"])
    assert list(found) == [
        f"steps={steps},lr_scheduler={kind},adam_beta2=0.9" for steps in (5, 9) for kind in ("constant", "cosine")
    ]
    last = found["steps=9,lr_scheduler=cosine,adam_beta2=0.9"]
    assert (last.schedule.steps, last.schedule.lr_scheduler) == ("9", "cosine")
    assert last.schedule.learning_rate == plain.schedule.learning_rate
    epochs = ranges.varied(plain, ["steps=1 epoch,2 epochs"])
    assert [recipe.schedule.steps for recipe in epochs.values()] == ["1 epoch", "2 epochs"]
    assert len(set(epochs)) == 2
    assert not any(" " in name or "/" in name for name in epochs)
    assert [r.schedule.learning_rate for r in ranges.varied(plain, ["learning_rate=.5,2e-3,1"]).values()] == [
        0.5,
        2e-3,
        1,
    ]
    augmented = ranges.varied(plain, ['augment=["crop-jitter=0.2", ["crop-jitter", "colour-jitter"]]'])
    assert [r.data.augment for r in augmented.values()] == [("crop-jitter=0.2",), ("crop-jitter", "colour-jitter")]
    weighted = ranges.varied(plain, ["loss_weighting=min-snr=1,debiased"])
    assert [r.training.loss_weighting for r in weighted.values()] == ["min-snr=1", "debiased"]
    with pytest.raises(RecipeError, match="must be of type"):
        ranges.varied(plain, ["learning_rate=fast"])


def test_a_short_name_stands_for_the_one_setting_that_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = trials.plain_recipe()
    short, whole = ranges.varied(plain, ["adam_beta2=0.9,0.99"]), ranges.varied(plain, ["method.adam_beta2=0.9,0.99"])
    assert short == whole
    assert [recipe.method for recipe in short.values()] == [ClassicOptions(adam_beta2=beta) for beta in (0.9, 0.99)]
    assert ranges._full_name("method") == "method.name"
    known = recipe_module.setting_names()
    monkeypatch.setattr(recipe_module, "setting_names", lambda: [*known, "data.learning_rate"])
    monkeypatch.setattr(ranges, "setting_names", recipe_module.setting_names)
    several = (
        r"^'learning_rate' may be (data|schedule)\.learning_rate or (data|schedule)\.learning_rate; write which one\.$"
    )
    with pytest.raises(RecipeError, match=several):
        ranges.varied(plain, ["learning_rate=1,2"])
    with pytest.raises(RecipeError, match=several):
        Recipe.from_dict({**plain.to_dict(), "learning_rate": 1.0})
    assert ranges._full_name("schedule.learning_rate") == "schedule.learning_rate"


def test_a_recipe_file_takes_short_names_outside_of_its_sections(tmp_path: Path):
    (tmp_path / "r.toml").write_text("adam_beta2 = 0.9\nnum_vectors = 2\nsteps = 7\n[schedule]\nlearning_rate = 1e-3\n")
    read = trials.read(tmp_path / "r.toml")
    assert (read.method, read.schedule.steps, read.schedule.learning_rate) == (
        ClassicOptions(adam_beta2=0.9),
        "7",
        1e-3,
    )
    assert (read.concepts[0].num_vectors, read.base.model) == (2, "toybox")
    (tmp_path / "r.toml").write_text("learning_rate = 1\n[schedule]\nlearning_rate = 1e-3\n")
    with pytest.raises(
        RecipeError, match=r"learning_rate is set twice: outside of all sections, and in \[schedule\]\.$"
    ):
        trials.read(tmp_path / "r.toml")
    two = {"concepts": [{"token": "<a>"}, {"token": "<b>"}], "num_vectors": 2}
    with pytest.raises(
        RecipeError, match=r"^num_vectors is a setting of a concept; write it into the \[\[concepts\]\]"
    ):
        Recipe.from_dict(two)


VALUES = {"base.model": ("toybox", "other"), "base.family": ("sd", "sdxl"), "method.name": None}
VALUES |= {"data.fit": ("squash", "bucket"), "data.captions": ("templates", "files"), "data.masks": ("none", "alpha")}
VALUES |= {"data.alpha_colour": ("white", "red"), "data.shuffle_tags": None, "schedule.steps": (7, 9)}
VALUES |= {"schedule.lr_scheduler": ("constant", "linear"), "schedule.lr_step_rules": None}
VALUES |= {"base.prediction_type": ("epsilon", "v_prediction"), "engine.mixed_precision": ("no", "bf16")}
VALUES |= {"data.augment": ("crop-jitter", "colour-jitter"), "data.augment_variants": None}
VALUES |= {"training.loss_weighting": ("debiased", "min-snr=2")}
VALUES |= {"concepts.0.property": ("object", "style"), "data.split": ("train", "test")}
"""Two values of settings that are no number, text or switch; None where one alone contradicts the rest of a recipe."""


def test_settings_that_can_be_varied_are_told_apart_from_training_to_the_report(tmp_path: Path):
    plain, names = trials.plain_recipe(), ranges._settings()
    assert {"concepts.0.num_vectors", "schedule.learning_rate", "method.name"} <= set(names)
    assert not {"training.seed", "concepts.0.token", "concepts.0.pictures"} & set(names)
    for name in names:
        values = VALUES.get(name, _two(plain, name))
        if values is None:
            continue
        made = ranges.varied(plain, [f"{name}={json.dumps(list(values))}"])
        first, second = made.values()
        assert first.of_the_word() != second.of_the_word(), name
        if name in ("base.family", "data.repeats", "data.workers"):
            continue  # what they come to is the same word, or is said by the base itself
        told = [trials._told(recipe) for recipe in (first, second)]
        assert told[0] != told[1] or name in ("concepts.0.templates",), name


def _two(recipe: Recipe, name: str) -> tuple[object, object]:
    """Return two values for a setting of its own kind."""
    section, _, last = name.rpartition(".")
    table = recipe.concepts[0] if section == "concepts.0" else getattr(recipe, section)
    annotation = str(type(table).__dataclass_fields__[last].type)
    if "bool" in annotation:
        return (False, True)
    if "int" in annotation:
        return (8, 16)
    return (0.25, 0.5) if "float" in annotation else ("a", "b")
