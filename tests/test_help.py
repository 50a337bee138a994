"""`--help` of every command, at a terminal of 80 and of 120 columns, and flags that are called the same everywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import tyro

from pseudoword import cli, flags
from pseudoword.commands import algebra, check, convert, demo, evaluate, generate, inspect, push, sweep, toybox
from pseudoword.commands import train as train_command
from pseudoword.flags import help as help_page
from pseudoword.methods import OPTIONS
from tests.screen import terminal

KINDS: dict[str, Any] = {
    "train": train_command.Options[OPTIONS["classic"]],  # pyright: ignore[reportInvalidTypeArguments]
    "check": check.Options[OPTIONS["classic"]],  # pyright: ignore[reportInvalidTypeArguments]
    "generate": generate.Options,
    "evaluate": evaluate.Options,
    "sweep": sweep.Options,
    "inspect": inspect.Options,
    "convert": convert.Options,
    "push": push.Options,
    "demo": demo.Options,
    **{f"algebra {name}": kind for name, kind in algebra.KINDS.items()},
    "toybox render": toybox.Render,
    "toybox score": toybox.Score,
}
PAGES = ["", "algebra", "toybox", *KINDS]


def page_of(command: str, *more: str, width: int = 80) -> str:
    """Return what a command prints for --help or another flag."""
    with terminal(width) as stream, contextlib.suppress(SystemExit):
        cli.main([*command.split(), *(more or ("--help",))])
    return re.sub(r"\x1b\[[0-9]*m", "", stream.getvalue())  # without bold


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", PAGES)
def test_pages_fit_their_terminal_and_say_nothing_of_the_code(command: str, width: int) -> None:
    pages = [page_of(command, width=width), page_of(command, "--help-all", width=width)]
    for page in pages:
        assert page.startswith(f"usage: pseudoword {command}".strip())
        assert [line for line in page.splitlines() if len(line) > width] == []
        for foreign in ("{None", ": None)", "STR", "INT", "FLOAT", "method-options", "(default: )"):
            assert foreign not in page, foreign


@pytest.mark.parametrize("command", KINDS)
def test_every_option_is_there_once_with_all_its_words_whole(command: str) -> None:
    page = page_of(command, "--help-all")
    words = " ".join(page.split())
    for flag in help_page.flags_of(KINDS[command]):
        assert flag.text, f"{flag.name} is explained"
        assert f"{flag.usage} {flag.text}" in words
        assert len(re.findall(rf"^  {re.escape(flag.usage)}(?: |$)", page, re.MULTILINE)) == 1


def names_that_tyro_takes(kind: Any) -> set[str]:
    """Return the flags of the parser itself, which help is not made from."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff))
    return set(re.findall(r"^(?:[│|] |  )(--\w[\w-]*)", re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()), re.MULTILINE))


@pytest.mark.parametrize("command", KINDS)
def test_help_has_the_flags_that_the_parser_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = {flag.usage.split()[0] for flag in help_page.flags_of(KINDS[command]) if not flag.positional}
    assert shown == names_that_tyro_takes(KINDS[command]) - {"--help"}


@pytest.mark.parametrize("command", [name for name in KINDS if " " not in name])
def test_at_most_ten_options_come_first_and_the_rest_is_said(command: str) -> None:
    flags_there = [flag.name for flag in help_page.flags_of(KINDS[command])]
    first = getattr(importlib.import_module(f"pseudoword.commands.{command}"), "FIRST", ())
    assert set(first) <= set(flags_there)
    assert len(first or flags_there) <= 10
    page = page_of(command)
    assert len(re.findall(r"^  (?:--|[A-Z]+\b)", page, re.MULTILINE)) == len(first or flags_there)
    rest = f"{len(flags_there) - len(first)} more options, by section: pseudoword {command} --help-all"
    assert (rest in page) == bool(first)


def test_examples_stand_apart_and_can_be_copied() -> None:
    lines = page_of("train").splitlines()
    start = lines.index("Examples:")
    assert lines[start + 1 : start + 4] == [
        "  pseudoword train --model MODEL --token '<cat-toy>' --pictures cat/ \\",
        "    --initializer toy --folder cat-run",
        "  pseudoword train --resume latest --folder cat-run",
    ]
    assert "Options that matter most:" in lines
    assert lines.count("Method: AdamW on the rows.") == 0
    assert "Method: AdamW on the rows." in page_of("train", "--help-all").splitlines()


def test_defaults_are_those_of_the_recipe_that_is_named(tmp_path: Any) -> None:
    (tmp_path / "r.toml").write_text(
        '[base]\nmodel = "toybox"\n[[concepts]]\ntoken = "<a>"\npictures = "p"\ninitializer = "toy"\n'
        "[schedule]\nlearning_rate = 0.25\n"
    )
    words = " ".join(page_of("train", "--recipe", str(tmp_path / "r.toml"), "--help").split())
    assert "(default: 0.25)" in words
    assert "(default: <a>)" in words
    assert "(required)" not in words


def test_help_is_bold_at_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "sweep", "toybox render"])
def test_help_of_everything_loads_no_torch(command: str) -> None:
    code = f"""
import sys
from pseudoword.cli import main
try:
    main({command.split()!r} + ["--help-all"])
except SystemExit:
    pass
print(sorted({{"torch", "diffusers", "transformers", "rich.progress"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# One name for one thing


def parsed(command: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the options that a command reads from a command line, and carry nothing out."""
    read: list[Any] = []
    parse = tyro.cli

    def stop(*positional: Any, **options: Any) -> Any:
        read.append(parse(*positional, **options))
        raise SystemExit(0)

    with monkeypatch.context() as patch:
        patch.setattr(flags.tyro, "cli", stop)
        with pytest.raises(SystemExit) as end:
            cli.main([*command.split(), *arguments])
    assert end.value.code == 0
    return read[0]


TRAIN = ["--model", "m", "--token", "<a>", "--pictures", "p", "--initializer", "toy"]


@pytest.mark.parametrize(
    ("command", "others", "earlier", "today"),
    [
        ("push", ["run"], ["--private"], ["--hub-private"]),
        ("push", ["run"], ["--branch", "b"], ["--hub-branch", "b"]),
        ("train", TRAIN, ["--private"], ["--hub-private"]),
        ("train", TRAIN, ["--branch=b"], ["--hub-branch=b"]),
        ("train", TRAIN, ["--output", "run"], ["--folder", "run"]),
        ("check", TRAIN, ["--output", "run"], ["--folder", "run"]),
        ("demo", [], ["--output", "run"], ["--folder", "run"]),
        ("inspect", ["w.pt"], ["--base", "toybox"], ["--model", "toybox"]),
        ("algebra scale", ["w.pt", "--output", "o.pt"], ["--base", "toybox"], ["--model", "toybox"]),
        ("algebra prune", ["w.pt", "--output", "o.pt"], ["--vectors", "2"], ["--num-vectors", "2"]),
        ("toybox score", [], ["--base", "b"], ["--model", "b"]),
    ],
)
def test_flags_by_their_earlier_names_mean_the_same(
    command: str, others: list[str], earlier: list[str], today: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    then, now = (parsed(command, [*others, *more], monkeypatch) for more in (earlier, today))
    assert dataclasses.asdict(then) == dataclasses.asdict(now)
    page = page_of(command, "--help-all")
    assert re.search(rf"^  --{today[0].partition('=')[0][2:]}\b", page, re.MULTILINE)
    assert f"{earlier[0].partition('=')[0]} " not in page


def test_what_looks_like_an_earlier_flag_in_a_value_stays() -> None:
    words = ["--token=--base", "a --base b", "--base", "--base=x=y", "--BASE"]
    assert flags.current(words, {"--base": "--model"}) == [
        "--token=--base",
        "a --base b",
        "--model",
        "--model=x=y",
        "--BASE",
    ]
    assert flags.current(["--hub_branch"], {"--hub-branch": "--b"}) == ["--b"]


def test_an_unknown_operation_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["algebra", "add"]) == 2
    sentence = "error: there is no operation 'add'; they are merge, concatenate, difference, scale, prune."
    assert sentence in capsys.readouterr().err
    assert cli.main(["algebra"]) == 2
    assert cli.main(["algebra", "--help"]) == 0
