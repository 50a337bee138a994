"""The page `docs/change-it.md`: its snippets are put where it says, and then train on both engines."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pseudoword import augmentations, methods, schedules, train, weightings
from pseudoword.recipe import Schedule
from tests.miniatures import MakeRecipe, log_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "change-it.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def snippet(of: str) -> str:
    [own] = [text for text in SNIPPETS if text.startswith(of)]
    return own


def added(monkeypatch: pytest.MonkeyPatch, file: str, line: str, table: dict[str, Any], **names: Any) -> Any:
    """Run the new file of a page's section, and its line in a copy of the table; return what the line adds."""
    made = types.ModuleType(Path(file).stem)
    monkeypatch.setitem(__import__("sys").modules, made.__name__, made)  # dataclasses look annotations up there
    exec(snippet(f"# {file}"), vars(made))
    name, _, _ = line.partition("[")
    before = dict(table)
    exec(snippet(line), {name: table, made.__name__: made, **vars(made), **names})
    [key] = table.keys() - before.keys()
    return table[key]


def test_every_file_that_the_page_names_is_there_or_new():
    named = set(re.findall(r"`(src/pseudoword/[\w/]+\.py|tests/[\w/]+\.py|engines/\w+\.py)`", PAGE))
    new = {file for file in named if file.endswith(("soft_min_snr.py", "grey.py", "signed.py"))}
    assert len(new) == 3
    for file in named - new:
        assert (ROOT / file).is_file() or (ROOT / "src" / "pseudoword" / file).is_file(), file
    assert len(SNIPPETS) == 7


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_the_pages_weighting_and_augmentation_train(
    engine: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weightings, "WEIGHTINGS", dict(weightings.WEIGHTINGS))
    monkeypatch.setattr(augmentations, "AUGMENTATIONS", dict(augmentations.AUGMENTATIONS))
    file, line = "src/pseudoword/weightings/soft_min_snr.py", 'WEIGHTINGS["soft-min-snr"]'
    made = added(monkeypatch, file, line, weightings.WEIGHTINGS)
    alpha = np.linspace(0.1, 0.99, 50)
    sigma, snr = np.sqrt(1 - alpha**2), alpha**2 / (1 - alpha**2)
    on_eps, on_v = (made.weight(np, alpha, sigma, kind, 5.0) for kind in ("epsilon", "v_prediction"))
    np.testing.assert_allclose(on_eps * snr, on_v * (snr + 1))
    np.testing.assert_allclose(on_eps * snr, 5 * snr / (snr + 5))
    file, line = "src/pseudoword/augmentations/grey.py", 'AUGMENTATIONS["grey"]'
    added(monkeypatch, file, line, augmentations.AUGMENTATIONS)
    changes: dict[str, Any] = {"engine": engine, "steps": "2", "loss_steps": 2, "flip_p": 0.0}
    list(train(make_recipe(**changes, folder=str(tmp_path / "plain"))))
    changes |= {"loss_weighting": "soft-min-snr=3", "augment": ("grey=0.9",), "augment_variants": 2}
    list(train(make_recipe(**changes, folder=str(tmp_path / "changed"))))
    plain, changed = log_of(tmp_path / "plain"), log_of(tmp_path / "changed")
    assert plain[0]["fixed_draw_loss"] == changed[0]["fixed_draw_loss"]
    assert plain[1]["loss"] != changed[1]["loss"]


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_the_pages_method_trains(engine: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    made = added(monkeypatch, "src/pseudoword/methods/signed.py", 'METHODS["signed"]', methods.METHODS)
    monkeypatch.setitem(methods.OPTIONS, "signed", made.Options)
    recipe = make_recipe(method="signed", momentum=0.5, engine=engine, steps="2", loss_steps=2)
    assert type(recipe).from_dict(recipe.to_dict()) == recipe
    list(train(recipe))
    losses = [line["fixed_draw_loss"] for line in log_of(tmp_path / "run") if "fixed_draw_loss" in line]
    assert losses[0] != losses[-1]


def test_the_pages_schedule_is_one(monkeypatch: pytest.MonkeyPatch):
    curves = dict(schedules.CURVES)
    exec(snippet("CURVES["), {"CURVES": curves, "_warmed_up": schedules._warmed_up})
    schedule = Schedule(lr_warmup_steps=10)
    assert curves["square_root"](schedule, 5, 110, 1.0) == 0.5
    assert curves["square_root"](schedule, 85, 110, 1.0) == pytest.approx(0.5)
