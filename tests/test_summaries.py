"""A run of many concepts says little: a few messages of each kind, and how many more there were."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from pseudoword import cli, watch
from pseudoword.progress import Progress
from pseudoword.recipe import Recipe
from pseudoword.summaries import named, summed_up

log = logging.getLogger("pseudoword.data.folder")


def say(count: int) -> None:
    for i in range(count):
        log.info("%d pictures", i)


def test_of_many_concepts_a_few_messages_of_each_kind_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pseudoword")
    with summed_up(200):
        say(200)
        log.warning("%s is odd", "<a>")
    shown = ["0 pictures", "1 pictures", "2 pictures", "<a> is odd", "… and 197 more like this: 199 pictures"]
    assert caplog.messages == shown
    caplog.clear()
    say(4)
    assert len(caplog.messages) == 4, "as before, after the block"


def test_few_concepts_are_spoken_of_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pseudoword")
    with summed_up(5):
        say(9)
    assert len(caplog.messages) == 9
    assert (named(["<a>", "<b>"]), named(["<a>"] * 6)) == ("<a> <b>", "6 words")


def test_json_tells_a_failure_once(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> Iterator[Progress]:
        for step in range(1, 6):
            failed = {"<a>": "no pictures"} | ({"<b>": "not finite"} if step >= 3 else {})
            yield Progress(step, 5, {"<c>": 1.0}, 1e-3, 0.1, failed=failed)

    watch.follow(failing(), as_json=True)
    told = [json.loads(line)["failed"] for line in capsys.readouterr().out.splitlines()]
    assert told == [{"<a>": "no pictures"}, {}, {"<b>": "not finite"}, {}, {}]


def test_the_pace_of_another_part_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """After concepts that were added come the others, from the step that they had come to."""
    numbers = [1, 2, 3, 41, 42]
    watch.follow(Progress(step, 50 if step > 3 else 3, {"<c>": float(step)}, 1e-3, 0.0) for step in numbers)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("step 42/50  loss 41.5"), "the mean over this part alone"


def test_a_run_of_many_prints_a_few_dozen_lines(
    make_many: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_many(steps="1", batch_size=1)
    cat, gone = recipe.concepts[0], str(tmp_path / "gone")
    concepts = [dataclasses.replace(cat, token=f"<c{i}>", pictures=gone if i > 15 else cat.pictures) for i in range(40)]
    path = tmp_path / "many.toml"
    path.write_text(tomli_w.dumps(dataclasses.replace(recipe, concepts=tuple(concepts)).to_dict()))
    assert cli.main(["train", "--recipe", str(path)]) == 1
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "Loading weights" not in line]
    assert len(lines) < 48 + 5, "and five of how suspicious words are and what to type next"
    assert "Training 16 words: steps 1 to 1, 16 pictures a step" in lines
    assert f"16 words are in {tmp_path / 'run' / 'words'}." in lines
    assert sum("was not learned: There is no folder" in line for line in lines) == 20
    [rest] = [line for line in lines if "more were not learned" in line]
    assert rest == f"error: 4 more were not learned, {tmp_path / 'run' / 'not-learned.json'} says why: " + " ".join(
        f"<c{i}>" for i in range(36, 40)
    )
    assert len(json.loads((tmp_path / "run" / "not-learned.json").read_text())) == 24
