"""A word that was not learned is called suspicious, with its reason; one that was is not."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from pseudoword import Concept, Recipe, cli, train
from pseudoword.judging import learned
from pseudoword.judging.lengths import by_chance, usual_length, way
from tests.miniatures import MakeRecipe

WIDTH = 768
USUAL = {"clip_l": 0.4}


def row(length: float, seed: int = 0) -> np.ndarray:
    direction = np.random.default_rng(seed).standard_normal(WIDTH)
    return (length * direction / np.linalg.norm(direction)).astype(np.float32)[None]


START = {"clip_l": row(0.4)}
FALLING = [0.12, 0.11, 0.10]


def signs(rows: np.ndarray, losses: list[float], start: np.ndarray | None = None) -> list[str]:
    begun = START if start is None else {"clip_l": start}
    found = learned.suspicions({"clip_l": rows}, begun, USUAL, losses, 5e-3)
    return [suspicion.sign for suspicion in found]


@pytest.mark.parametrize("length", [0.4, 2.4, 10.4])
def test_lengths_of_published_runs_are_not_suspicious(length: float):
    assert signs(row(length, 1), FALLING) == []


def test_each_sign_alone():
    assert signs(row(0.4 * 6114, 1), FALLING) == ["long"]
    assert signs(START["clip_l"] + row(0.001, 1), FALLING) == ["still"]
    assert signs(row(2, 1), [0.12, 0.13, 0.12]) == ["rose"]
    assert signs(row(2, 1), [0.12, 0.10, 0.13]) == ["ends worse"]


def test_without_losses_or_with_one_alone_they_are_not_judged():
    assert signs(row(2, 1), []) == signs(row(2, 1), [0.12]) == []


def test_a_long_start_that_turned_little_but_moved_far_is_no_sign():
    """Words that start at 70 times the usual length turn by a hundredth of themselves, and learn all the same."""
    start = row(28)
    assert "still" not in signs(start + row(2.4, 1), FALLING, start)


def test_one_row_or_one_encoder_that_moved_is_enough_and_one_that_is_long_is_too_much():
    still, moving = START["clip_l"], row(2, 1)
    start = {"clip_l": np.concatenate([still, still]), "clip_g": still}
    usual = {"clip_l": 0.4, "clip_g": 0.4}
    rows = {"clip_l": np.concatenate([still, moving]), "clip_g": still}
    assert learned.suspicions(rows, start, usual, [], 5e-3) == []
    rows["clip_g"] = row(100, 2)
    assert [found.sign for found in learned.suspicions(rows, start, usual, [], 5e-3)] == ["long"]


def test_many_words_with_one_sign_are_a_few_lines(caplog: pytest.LogCaptureFixture):
    sign = learned.Suspicion("long", "its rows are long.")
    learned.warn({f"<{i}>": [sign] for i in range(200)})
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == learned.NAMED + 1
    assert lines[0] == "<0> is suspicious: its rows are long."
    assert lines[-1] == "195 more words are suspicious for the same reason."


def test_the_usual_length_is_that_of_whole_words_not_of_rare_pieces():
    table = np.concatenate([row(0.1, i) for i in range(80)] + [row(2.0, i) for i in range(20)])
    assert usual_length(table.astype(np.float16)) == pytest.approx(2.0, rel=1e-2)


def test_adamw_by_chance_and_all_of_its_steps():
    """The guide's script: 3,000 steps at 2e-3 take a row of 768 numbers to 2.95 on noise alone."""
    rates = np.full(3000, 2e-3)
    assert by_chance(rates, 768) == pytest.approx(2.95, rel=0.1)
    assert way(rates, 768) == pytest.approx(0.23 * 2e-3 * 768**0.5 * 3000)


# Where it is told


def suspicious(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "suspicious" in r.getMessage()]


def test_a_run_that_went_wrong_says_so_at_its_end(make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture):
    last = list(train(make_recipe(learning_rate=50.0, loss_steps=2)))[-1]
    [sentences] = last.suspicious.values()
    assert any("times as long as the vocabulary's" in sentence for sentence in sentences)
    assert "Try a lower --learning-rate (it is 50;" in suspicious(caplog)[0]
    caplog.clear()
    again = make_recipe(learning_rate=50.0, loss_steps=2)
    assert list(train(again, resume="latest")) == []  # nothing is left to train; the verdict is the same
    assert suspicious(caplog)


def test_a_run_that_hardly_moved_says_so_and_one_that_learned_does_not(
    make_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture
):
    for _ in train(make_recipe(learning_rate=1e-6)):
        pass
    assert "so it is still what it started as" in suspicious(caplog)[0]
    caplog.clear()
    progress = list(train(make_recipe(learning_rate=2e-1, steps="6", folder=make_recipe().output.folder + "-b")))
    assert suspicious(caplog) == []
    assert not any(p.suspicious for p in progress)


def test_each_of_several_words_is_judged_by_itself(make_many: MakeRecipe, caplog: pytest.LogCaptureFixture):
    recipe: Recipe = make_many(learning_rate=1e-6)
    caplog.set_level(logging.WARNING)
    last = list(train(recipe))[-1]
    assert set(last.suspicious) == {"<cat>", "<dog>", "<style>"}
    assert len(suspicious(caplog)) == 3


def test_json_has_it_once_and_the_exit_code_stays(make_recipe: MakeRecipe, capsys: pytest.CaptureFixture[str]):
    recipe = make_recipe()
    words = ["train", "--model", recipe.base.model, "--token", "<a>", "--pictures", recipe.concepts[0].pictures]
    words += ["--initializer", "toy", "--steps", "3", "--learning-rate", "50", "--report-to", "none", "--json"]
    assert cli.main([*words, "--batch-size", "1", "--folder", recipe.output.folder]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["suspicious" in line for line in lines] == [False, False, True]
    assert "<a>" in lines[-1]["suspicious"]
    assert Concept.load(recipe.output.folder).token == "<a>"
