"""The `pseudoword` command: train, inspect, demo, and how a run shows itself."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import pseudoword
from pseudoword import Concept, Progress, cli, demo, watch
from pseudoword.commands import demo as demo_command
from pseudoword.commands import train as train_command
from pseudoword.toybox import suite
from tests.miniatures import TOKEN


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name}" in told for name in cli.COMMANDS)
    assert cli.main([]) == 2
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.endswith("pseudoword 0.1.0\n")


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["learn"]) == 2
    told = f"there is no command 'learn'; the commands are {', '.join(cli.COMMANDS)}."
    assert "sweep" in told
    assert told in capsys.readouterr().err


# train


def words_of(base: Path, pictures: Path, folder: Path, *more: str) -> list[str]:
    own = ["--model", str(base), "--token", TOKEN, "--pictures", str(pictures), "--initializer", "toy"]
    return ["train", *own, "--steps", "3", "--folder", str(folder), *more]


def test_train_learns_a_word_and_says_where_it_is(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words_of(base, pictures, tmp_path / "run")) == 0
    said = capsys.readouterr()
    first, heading, *following = said.out.splitlines()
    assert first == f"The word {TOKEN} is in {tmp_path / 'run'}."
    assert heading == "Try next:"
    assert [shlex.split(line)[:2] for line in following] == [
        ["pseudoword", c] for c in ("generate", "evaluate", "convert")
    ]
    assert shlex.split(following[0])[2:] == ["--embeds", str(tmp_path / "run"), "--prompt", f"a photo of {TOKEN}"]
    assert "starts from 'toy'" in said.err or "start from 'toy'" in said.err
    assert "step 3/3" in said.err
    assert Concept.load(tmp_path / "run").steps == 3


def test_json_is_a_line_a_step_and_nothing_else(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words_of(base, pictures, tmp_path / "run", "--json")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert set(lines[0]["loss"]) == {TOKEN}
    assert str(tmp_path / "run" / "checkpoint-3") in lines[-1]["saved"]
    assert [bool(line["fixed_draw_loss"]) for line in lines] == [False, False, True]


def test_a_runs_recipe_repeats_it_and_flags_come_before_it(base: Path, pictures: Path, tmp_path: Path) -> None:
    assert cli.main(words_of(base, pictures, tmp_path / "a", "--seed", "5", "--num-vectors", "2")) == 0
    again = ["train", "--recipe", str(tmp_path / "a" / "recipe.toml"), "--folder", str(tmp_path / "b")]
    assert cli.main(again) == 0
    a, b = Concept.load(tmp_path / "a"), Concept.load(tmp_path / "b")
    assert a.rows["clip_l"].tobytes() == b.rows["clip_l"].tobytes()
    assert b.num_vectors == 2


def test_every_setting_of_a_recipe_is_a_flag(base: Path, pictures: Path) -> None:
    words = words_of(base, pictures, Path("run"), "--lr-scheduler", "linear", "--adam-beta1", "0.8", "--no-scale-lr")
    recipe = train_command.recipe_of(train_command.parse([*words[1:], "--clip-skip", "1", "--property", "style"]))
    assert (recipe.schedule.lr_scheduler, recipe.schedule.scale_lr, recipe.base.clip_skip) == ("linear", False, 1)
    assert recipe.method.adam_beta1 == 0.8  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.concepts[0].property == "style"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--steps", "many"], "steps must be a positive number of steps or epochs"),
        (["--initializer", "nothing.pt"], "There is no file 'nothing.pt'"),
        (["--recipe", "nothing.toml"], "Cannot read the recipe nothing.toml"),
        (["--resume", "checkpoint-9"], "There is no checkpoint 'checkpoint-9'"),
        (["--num-vectors", "0"], "num_vectors must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_exit_code_1(
    base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert cli.main(words_of(base, pictures, tmp_path / "run", *more)) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: {sentence}")


def test_an_interruption_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "follow", interrupted)
    assert cli.main(words_of(base, pictures, tmp_path / "run")) == 130
    assert "--resume latest" in capsys.readouterr().err


# inspect


def test_inspect_tells_what_a_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Concept(TOKEN, {"clip_l": np.ones((2, 768))}, steps=5, base="owner/base").save(tmp_path / "w.safetensors")
    assert cli.main(["inspect", str(file), "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert told["token"] == TOKEN
    assert told["vectors"] == 2
    assert told["widths"] == {"clip_l": 768}
    assert told["norms"] == {"clip_l": [27.7128, 27.7128]}
    assert (told["format"], told["steps"], told["base"]) == ("diffusers", 5, "owner/base")
    assert cli.main(["inspect", str(file)]) == 0
    table = capsys.readouterr().out
    assert TOKEN in table
    assert "width 768, norm 27.71, 27.71" in table


def test_inspect_beside_a_base_names_the_nearest_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pseudoword import toybox
    from pseudoword.families.sd import words
    from pseudoword.recipe import BaseModel

    [vocabulary] = words.vocabularies(BaseModel(str(toybox.BASES["toybox"]))).values()
    rows, _ = vocabulary.initial_rows("star", 1)
    file = Concept("<s>", {"clip_l": rows * 2}).save(tmp_path / "s.pt")
    assert cli.main(["inspect", str(file), "--base", "toybox", "--json"]) == 0
    [told] = json.loads(capsys.readouterr().out)
    beside = told["vocabulary"]["clip_l"]
    assert beside["nearest"][0][0] == ["star", 1.0]
    assert beside["norm_ratio"][0] == pytest.approx(2 * np.linalg.norm(rows) / beside["mean_norm"], rel=1e-3)
    assert cli.main(["inspect", str(file), "--base", "toybox"]) == 0
    assert "star 1.00" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.html").write_text("<html>")
    assert cli.main(["inspect", str(tmp_path / "page.html")]) == 1
    assert "is no safetensors or PyTorch file, nor a picture" in capsys.readouterr().err


# How a run shows itself


def steps(count: int) -> Iterator[Progress]:
    for i in range(1, count + 1):
        saved = (Path("run/checkpoint-9"),) if i == count else ()
        yield Progress(i, count, {"<t>": 1.0 / i}, 1e-3, 0.01, saved)


def test_plain_lines_are_few_and_end_with_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    last = watch.follow(steps(200))
    assert last is not None
    assert last.step == 200
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == watch.LINES
    assert lines[-1].startswith("step 200/200  loss ")
    assert lines[-1].endswith("kept checkpoint-9")


def test_plain_lines_name_everything_that_was_kept(capsys: pytest.CaptureFixture[str]) -> None:
    def keeping() -> Iterator[Progress]:
        for p in steps(39):
            yield dataclasses.replace(p, saved=(Path(f"checkpoint-{p.step}"),)) if p.step in (3, 17) else p

    watch.follow(keeping())
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("  kept ")[2] for line in lines if "kept" in line] == [
        "checkpoint-3",
        "checkpoint-17",
        "checkpoint-9",
    ]
    assert len(lines) == 22, "every second of 39 steps, and those that kept something"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    watch.follow(steps(5))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())  # without colours
    assert "learning" in shown
    assert "5/5" in shown
    assert "kept checkpoint-9" in shown


def test_the_best_word_is_not_told_at_every_look_and_times_are_clock_times(capsys: pytest.CaptureFixture[str]) -> None:
    slow = (
        dataclasses.replace(p, seconds=400.0, saved=(Path("run/learned_embeds-best.safetensors"),)) for p in steps(20)
    )
    watch.follow(slow)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "best" in line] == lines[-1:], "the last step alone, if it is the best"
    assert "  2:06:40 left" in lines[0], "400 s for each of 19 steps"


def test_messages_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def warning() -> Iterator[Progress]:
        for p in steps(5):
            logging.getLogger("pseudoword").warning("a line at step %d", p.step)
            yield p

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    watch.show_messages()
    watch.follow(warning())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    for step in range(2, 6):
        [line] = [line for line in re.split(r"[\r\n]+", shown) if f"a line at step {step}" in line]
        assert line.strip() == f"a line at step {step}", "and nothing of the bar on it"


def test_dir_shows_the_public_names() -> None:
    assert set(dir(pseudoword)) == set(pseudoword.__all__)
    assert all(hasattr(pseudoword, name) for name in dir(pseudoword))


def test_quiet_says_nothing_and_an_empty_run_has_no_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert watch.follow(steps(3), quiet=True) is not None
    assert watch.follow(iter(()), quiet=False) is None
    assert capsys.readouterr() == ("", "")


# demo


def test_the_demo_ends_in_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--steps", "3", "--output", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert "The fixed-draw loss went from" in said
    assert str(tmp_path / "demo" / "contact-sheet.png") in said
    assert "pseudoword train --model stable-diffusion-v1-5/stable-diffusion-v1-5" in said
    with Image.open(tmp_path / "demo" / "contact-sheet.png") as sheet:
        assert sheet.size == (5 * 136 + 8, 5 * 166 + 2 * 22 + 8)
        colours = sheet.getcolors(10**6)
        assert colours is not None
        assert len(colours) > 1000


def test_the_demo_offers_the_whole_suite() -> None:
    assert get_args(demo_command.Concept) == tuple(suite.NAMED)


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["goldfish", "comic"])
def test_the_demo_lowers_the_fixed_draw_loss(concept: str, tmp_path: Path) -> None:
    list(demo.learn(concept, tmp_path / "demo"))
    before, after = demo.losses(concept, tmp_path / "demo")
    assert after < before


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pseudoword.cli", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "pseudoword 0.1.0\n")
