from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudoword import cli
from pseudoword.concept import Concept
from pseudoword.evaluate import suite_score
from pseudoword.evaluate.answer_key import own_embedding
from pseudoword.evaluate.suite_score import Said, WordScore, goals_of_words, said, word_score
from pseudoword.generate import load as load_base
from pseudoword.recipe import BaseModel
from pseudoword.toybox import BASES, suite, words
from pseudoword.toybox.oracle import ATTRIBUTES, load, truth
from pseudoword.toybox.render import render
from pseudoword.toybox.score import Goal, as_array, held_out

SUBJECT = suite.NAMED


class Omniscient:
    """A judge that has been told what is on each picture, in order."""

    def __init__(self, answers: list[dict[str, str]]) -> None:
        self.answers = answers

    def read(self, pictures: np.ndarray) -> list[dict[str, tuple[str, float]]]:
        unsaid = {name: (values[-1], 0.5) for name, values in ATTRIBUTES.items()}
        return [unsaid | {name: (value, 1.0) for name, value in answer.items()} for answer in self.answers]


def answers(subject: suite.Subject, **wrong: str) -> list[dict[str, str]]:
    return [truth(p.expected) | wrong for p in suite.prompts(subject) for _ in range(suite_score.PICTURES)]


@pytest.mark.parametrize("name", ["ladybird", "goldfish", "sepia"])
def test_what_is_drawn_as_asked_scores_in_full_and_what_is_not_loses_its_share(name: str):
    subject = SUBJECT[name]
    pictures = np.zeros((20, 64, 64, 3), dtype=np.uint8)
    right = said(subject, Omniscient(answers(subject)), pictures)  # pyright: ignore[reportArgumentType]
    assert (right.itself, right.rest) == (1.0, 1.0)
    assert list(right.situations.values()) == [1.0] * 5
    wrong = {"style": "neon"} if subject.kind == "style" else {"shape": "arrow"}
    less = said(subject, Omniscient(answers(subject, **wrong)), pictures)  # pyright: ignore[reportArgumentType]
    own = 1 if subject.kind == "style" else 4 if subject.thing.pattern != "plain" else 3
    assert less.itself == pytest.approx(1 - 1 / own)
    assert less.rest == 1.0
    at_another_size = [{**one, "size": "large"} for one in answers(subject)[:8]] + answers(subject)[8:]
    unsaid = said(subject, Omniscient(at_another_size), pictures)  # pyright: ignore[reportArgumentType]
    assert unsaid.rest == 1.0
    elsewhere = said(subject, Omniscient(answers(subject, background="sky")), pictures)  # pyright: ignore[reportArgumentType]
    assert elsewhere.itself == 1.0
    assert elsewhere.rest < 1


def scored(name: str, itself: float, similarity: float) -> WordScore:
    described = Said(0.8, 1.0) if SUBJECT[name].kind == "nameable" else None
    return WordScore(SUBJECT[name], Said(itself, 0.9), described, similarity, "thing", 0.5)


def test_goals_of_words_compare_with_their_own_words_and_with_every_single_one():
    scores = [scored("ladybird", 0.8, 0.1), scored("cottage", 0.4, 0.1)]
    scores += [scored(n, 0.5, 0.6) for n in ("goldfish", "fir", "badge")] + [scored("old-key", 0.5, 0.4)]
    named, wordless = goals_of_words(scores)
    assert named.value == pytest.approx(75)
    assert not named.reached
    assert (wordless.value, wordless.unit) == (3, "of 4")
    assert scores[0].line == (
        "ladybird: itself 80%, its words 80%, the rest 90%, similarity 0.10, best single word 'thing' 0.50"
    )


def test_a_goal_is_reached_from_its_own_side():
    assert Goal("psnr", 27, 27, "dB").reached
    assert not Goal("seconds", 11, 10, "s", most=True).reached


def test_a_word_is_measured_on_a_base(trained: Path):
    family = load_base(BaseModel(str(trained / "base")))
    judge = load(trained / "oracle.safetensors")
    rows = {e: v.initial_rows("thing", 1)[0] for e, v in family.vocabularies.items()}
    subject = SUBJECT["gold-ring"]
    own = own_embedding(subject, judge)
    assert np.linalg.norm(own) == pytest.approx(1)
    made = judge.embed(as_array(suite.pictures(subject)))
    score = word_score(family, Concept("<word>", rows), subject, judge, {"far": -made, "near": made})
    assert score.best_word == "near"
    assert score.described is not None
    assert set(score.learned.situations) == {prompt.situation for prompt in suite.prompts(subject)}


# The commands


def test_score_asks_for_what_it_needs_before_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["toybox", "score", "--count", "0"]) == 1
    assert "--count must be at least 1, but is 0." in capsys.readouterr().err
    assert cli.main(["toybox", "score", "--output", str(tmp_path / "none" / "score.json")]) == 1
    assert "none' to write the score to; make it first." in capsys.readouterr().err


def test_score_leaves_out_what_no_picture_has(tmp_path: Path):
    plain = [drawing for drawing in held_out(30)[0] if drawing.things[0].pattern == "plain"][:2]
    assert plain
    from pseudoword.toybox import score as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "held_out", lambda count: (plain, None))
        goals = module.base_agreement(module.pipeline_of(BASES["toybox"]), load(), 2)
    assert len(goals) == 5
    assert not any("second colour" in goal.what for goal in goals)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--oracle", "garbage"], "The oracle 'garbage' cannot be read ("),
        (["--base", "empty"], "'empty' cannot be read ("),
        (["--base", "garbage"], "'garbage' cannot be read ("),
        (["--output", "empty"], "--output must be a file, but 'empty' is a folder."),
    ],
)
def test_score_refuses_what_it_cannot_read(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage").write_text("garbage")
    (tmp_path / "empty").mkdir()
    assert cli.main(["toybox", "score", "--count", "1", *words]) == 1
    assert told in capsys.readouterr().err


def test_render_draws_the_pictures_it_tells_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["toybox", "render", "--output", str(tmp_path / "many"), "--count", "3", "--seed", "5"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in told] == ["5", "6", "7"]
    from pseudoword.toybox.world import training_drawing

    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "many" / "6.png")), render(training_drawing(6), 6))
    assert cli.main(["toybox", "render", "--output", str(tmp_path / "sheet.png"), "--count", "13", "--held-out"]) == 0
    assert Image.open(tmp_path / "sheet.png").size == (12 * 130 + 2, 2 * 130 + 2)


def test_render_writes_the_pictures_of_a_concept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["toybox", "render", "--concept", "goldfish", "--output", str(tmp_path / "fish")]) == 0
    assert "0\ta photo of a large thing on the sand" in capsys.readouterr().out
    for i, picture in enumerate(suite.pictures(SUBJECT["goldfish"])):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "fish" / f"{i}.png")), np.asarray(picture))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--concept", "dog"], "The toybox has no concept 'dog'; its concepts are zebra-star, ladybird"),
        (["--output", "world.jpg"], "--output must be a .png or a folder, not 'world.jpg'."),
        (["--count", "0"], "--count must be at least 1, but is 0."),
        (["--seed", "99999999999999999999"], "--seed must be between 0 and 2^63 - 1, not 99999999999999999999."),
        (["--output", "/none/world.png"], "There is no folder '/none' to draw into; make it first."),
        (["--output", "/dev/null/world"], "Cannot write to the folder '/dev/null/world': Not a directory."),
        (
            ["--concept", "fir", "--held-out"],
            "A concept has its own five pictures, always the same; leave out what draws others.",
        ),
    ],
)
def test_render_refuses_what_it_cannot_draw(words: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["toybox", "render", *words]) == 1
    assert told in capsys.readouterr().err


def test_words_prints_every_word(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["toybox", "words"]) == 0
    assert capsys.readouterr().out.split() == words.words()


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["toybox", "paint"]) == 2
    assert "there is no toybox command 'paint'; they are render, words, train-vae" in capsys.readouterr().err
    assert cli.main(["toybox", "--help"]) == 0
    assert "  train-oracle" in capsys.readouterr().out


def test_score_measures_a_base_and_writes_its_table(trained: Path, tmp_path: Path, capsys):
    output = tmp_path / "score.json"
    words = ["--base", str(trained / "base"), "--oracle", str(trained / "oracle.safetensors"), "--output", str(output)]
    assert cli.main(["toybox", "score", *words, "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(output.read_text())
    assert len(lines) == len(told["goals"]) == 11
    assert {"date", "machine", "cores", "torch"} <= set(told)
    assert any("PSNR" in line and "missed" in line for line in lines)
