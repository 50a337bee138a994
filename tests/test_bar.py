"""The bar at a terminal: it stands once, at the bottom, and every other line above it, whole."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from pseudoword import bar, cli, watch
from pseudoword.progress import Progress, clock
from tests.screen import seen, terminal

STEPS = 30
LONG = "a library warns of [/a/path] at such length that it takes more than one line of a terminal of eighty columns"


@contextmanager
def library() -> Iterator[logging.Logger]:
    """Yield another library's logger, whose handler is made before there is a bar."""
    logger = logging.getLogger("another.library")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def run_of(*happenings: Callable[[], object], saved: Callable[[int], tuple[Path, ...]] = lambda _: ()) -> Iterator:
    """Yield steps, at every third of which something else is printed."""
    happens = iter(happenings)
    for step in range(1, STEPS + 1):
        if step % 3 == 0:
            next(happens, lambda: None)()
        fixed = {"<t>": 0.25} if step % 10 == 0 else {}
        yield Progress(step, STEPS, {"<t>": 1 / step}, 1e-3, 0.01, saved(step), fixed)


@pytest.mark.parametrize("width", [80, 120])
def test_whatever_else_is_written_stands_above_the_one_bar(width: int) -> None:
    own = logging.getLogger("pseudoword.some_module")

    def warn() -> None:
        warnings.warn("a Python warning", stacklevel=1)

    def another_bar() -> None:
        for i in range(5):
            sys.stderr.write(f"\rloading {i}/4")
            sys.stderr.flush()
        sys.stderr.write("\n")

    with terminal(width) as stream, library() as other, warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: sys.stderr.write(f"UserWarning: {message}\n")
        watch.show_messages()
        happenings = (
            lambda: other.warning(LONG),
            lambda: own.warning("ours warns of %s", "[/b]"),
            lambda: print("to standard output"),
            lambda: print("to standard error", file=sys.stderr),
            another_bar,
            warn,
            lambda: own.info("the run's last words"),
            lambda: sys.stderr.write("without an end"),
        )
        watch.follow(run_of(*happenings))
        other.warning("after the bar")
        own.info("ours after it")
    lines = seen(stream.getvalue(), width)
    [place] = [number for number, line in enumerate(lines) if "learning" in line]
    assert lines[place].startswith("learning ")
    assert lines[place].endswith(f"{STEPS}/{STEPS} loss 0.1332, fixed-draw 0.2500 0:00:00 left")
    assert lines[place + 1 :] == ["after the bar", "ours after it", ""]
    assert " ".join(lines[:2] if width == 80 else lines[:1]) == LONG
    assert lines[2 if width == 80 else 1 : place] == [
        "ours warns of [/b]",
        "to standard output",
        "to standard error",
        "loading 4/4",
        "UserWarning: a Python warning",
        "the run's last words",
        "without an end",
    ]
    assert all(len(line) <= width for line in lines)


def test_streams_and_handlers_are_given_back_even_by_a_run_that_fails() -> None:
    late: list[logging.StreamHandler] = []

    def fail() -> None:
        late.append(logging.StreamHandler())  # as a library makes one that is imported while there is a bar
        raise ValueError("the run's own error")

    with terminal() as stream, library() as other:
        with pytest.raises(ValueError, match="own error"):
            watch.follow(run_of(fail))
        assert sys.stderr is sys.stdout is stream
        assert [handler.stream for handler in other.handlers if isinstance(handler, logging.StreamHandler)] == [stream]
        late[0].emit(logging.makeLogRecord({"msg": "later"}))
    assert stream.getvalue().endswith("later\n")


def test_standard_output_that_is_no_terminal_is_left_alone() -> None:
    file = io.StringIO()
    with terminal() as stream, redirect_stdout(file):
        watch.follow(run_of(lambda: print("for a file")))
    assert file.getvalue() == "for a file\n"
    assert "for a file" not in stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_transient_bar_is_gone_at_its_end(width: int) -> None:
    with terminal(width) as stream:
        for number in (1, 2):
            print(f"Run {number} of 2")
            watch.follow(run_of(), transient=True)
    assert [line for line in seen(stream.getvalue(), width) if line] == ["Run 1 of 2", "Run 2 of 2"]
    assert "learning" in stream.getvalue()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    with terminal(kind="dumb") as stream:
        watch.follow(run_of())
        assert not bar.has_room()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith(f"step {STEPS}/{STEPS}  loss ")


BEST = (Path("run/learned_embeds-best.safetensors"), Path("run/learned_embeds-best.bin"))


@pytest.mark.parametrize("at_terminal", [True, False])
@pytest.mark.parametrize(("best_at", "times"), [(range(1, STEPS), 0), (range(1, STEPS + 1), 1)])
def test_the_best_word_is_named_at_the_last_step_alone(at_terminal: bool, best_at: range, times: int) -> None:
    with terminal(kind="xterm" if at_terminal else "dumb") as stream:
        watch.follow(run_of(saved=lambda step: BEST if step in best_at else ()))
    lines = seen(stream.getvalue(), 200)
    assert sum(line.count("kept learned_embeds-best") for line in lines) == times, lines
    assert at_terminal or len(lines) <= watch.LINES + 1, "a best word is no reason for a line of its own"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (59.6, "0:01:00"), (83, "0:01:23"), (3600, "1:00:00"), (100 * 3600 + 61, "100:01:01")],
)
def test_times_are_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_plain_lines_say_what_is_left_in_hours_minutes_and_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    watch.follow(iter([Progress(1, 4000, {"<t>": 1.0}, 1e-3, 1.0, (Path("checkpoint-1"),))]))
    assert " s a step  1:06:39 left" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 120])
def test_lines_break_between_words_at_a_terminal_and_nowhere_else(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = " ".join(f"word-{number}" for number in range(60)) + " /a/path" * 3
    with terminal(width) as stream:
        watch.show_messages()
        logging.getLogger("pseudoword.x").warning(sentence)
        cli.main(["inspect", "w.pt", "--config", "x"])
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert " ".join(lines).startswith(sentence)
    assert " ".join(lines).endswith(" error: --config goes with --model FILE, but there is no --model.")
    watch.show_messages()
    logging.getLogger("pseudoword.x").warning(sentence)
    assert capsys.readouterr().err.splitlines() == [sentence]
