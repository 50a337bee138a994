"""How a run shows itself: a bar at a terminal, plain lines elsewhere, JSON where a program reads."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
import textwrap
import time
from collections import Counter, deque
from collections.abc import Iterable

from pseudoword import bar
from pseudoword.progress import Progress, clock, mean

LINES = 20
"""Lines that a run prints where output is not a terminal, besides those that name what was kept."""
AVERAGED = 50
"""Steps over which the shown loss is averaged; a single step's loss is mostly the noise of its timesteps."""


def follow(
    run: Iterable[Progress], *, as_json: bool = False, quiet: bool = False, transient: bool = False
) -> Progress | None:
    """Iterate over a run to its end, showing it on the way, and return the last step (None if there was none).

    A transient run's bar is gone at its end: one of several runs.
    """
    if quiet:
        return _last(run)
    if as_json:
        return _last(_printed_as_json(run))
    return _bar(run, transient) if bar.has_room() else _lines(run)


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that a launcher has started."""
    return int(os.environ.get("RANK", "0")) == 0


def show_messages() -> None:
    """Show what pseudoword logs, one line each on standard error, on the main process.

    Sets the variables that keep transformers, diffusers and the Hub client to their errors, so it comes before them.
    """
    level = logging.INFO if is_main_process() else logging.CRITICAL
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if not (is_main_process() and sys.stderr.isatty()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = _Messages()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("pseudoword")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


class _Messages(logging.Handler):
    """Lines on what is standard error when they are said: while a bar stands there, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line."""
        try:
            print(wrapped(self.format(record)), file=sys.stderr, flush=True)
        except Exception:  # as every handler of logging: a line that cannot be shown ends nothing
            self.handleError(record)


def wrapped(text: str) -> str:
    """Return a text for standard error: at a terminal its lines break between words, elsewhere they are left whole."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n")]
    return "\n".join(lines)


def _last(run: Iterable[Progress]) -> Progress | None:
    last = None
    for progress in run:
        last = progress
    return last


def _printed_as_json(run: Iterable[Progress]) -> Iterable[Progress]:
    known: dict[str, str] = {}
    for p in run:
        failed = {token: reason for token, reason in p.failed.items() if known.get(token) != reason}
        known = dict(p.failed)
        saved = [str(path) for path in p.saved]
        line = {
            "step": p.step,
            "steps": p.steps,
            "loss": dict(p.loss),
            "lr": p.lr,
            "seconds": p.seconds,
            "saved": saved,
            "fixed_draw_loss": dict(p.fixed_draw_loss),
            "pictures": [str(path) for path in p.pictures],
            "failed": failed,  # each once, at the first step after it
        }
        if p.suspicious:
            line["suspicious"] = {token: list(sentences) for token, sentences in p.suspicious.items()}
        print(json.dumps(line), flush=True)
        yield p


def _lines(run: Iterable[Progress]) -> Progress | None:
    losses: deque[float] = deque(maxlen=AVERAGED)
    last, pace, before = None, None, -1
    for last in run:
        if pace is None or last.step != before + 1:  # the first, or that of another part of the run
            losses.clear()
            pace = _Pace(last)
        before = last.step
        losses.append(mean(last.loss))
        left = _left(last)
        if last.step % -(-last.steps // LINES) == 0 or left or last.step == last.steps:
            print(_sentence(last, losses, pace, left), file=sys.stderr, flush=True)
    return last


def _sentence(p: Progress, losses: deque[float], pace: _Pace, kept: list[str]) -> str:
    loss = sum(losses) / len(losses)
    fixed = f"  fixed-draw loss {mean(p.fixed_draw_loss):.4f}" if p.fixed_draw_loss else ""
    time_left = f"{pace.of(p):.2f} s a step  {clock(pace.left(p))} left"
    return "  ".join([f"step {p.step}/{p.steps}  loss {loss:.4f}  lr {p.lr:.2e}  {time_left}{fixed}", *kept])


def _left(p: Progress) -> list[str]:
    """Return what a step left on disk; files of one name, as several words leave them, are told once.

    The best word so far is written again and again, so only the last step names it. If an earlier step was the best,
    training itself says so at the end.
    """
    from pseudoword.run import BEST

    best = {path.parent for path in p.saved if path.name.startswith(BEST)}
    names = [f"kept {path.name}" for path in p.saved if not path.name.startswith(BEST)]
    names += [f"sampled {path.name}" for path in p.pictures]
    if p.step == p.steps:
        names += [f"kept {BEST}"] * len(best)
    told = Counter(names)
    return [name if count == 1 else f"{name} of {count} words" for name, count in told.items()]


def _bar(run: Iterable[Progress], transient: bool) -> Progress | None:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    columns = (
        "learning",
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}{task.fields[fixed]}"),
        TextColumn("{task.fields[left]} left"),
    )
    losses: deque[float] = deque(maxlen=AVERAGED)
    steps = iter(run)
    first = last = next(steps, None)  # loading comes before the first step, and prints lines of its own
    if first is None:
        return None
    pace, before = _Pace(first), first.step - 1
    with bar.bar(*columns, transient=transient) as shown:
        task = shown.add_task("", total=first.steps, loss=0.0, fixed="", left=clock(0))
        for last in itertools.chain([first], steps):
            if last.step != before + 1:  # the first of another part of the run
                losses.clear()
                pace = _Pace(last)
                shown.reset(task, total=last.steps, loss=0.0, fixed="", left=clock(0))
            before = last.step
            losses.append(mean(last.loss))
            shown.update(task, completed=last.step, loss=sum(losses) / len(losses), left=clock(pace.left(last)))
            if last.fixed_draw_loss:
                shown.update(task, fixed=f", fixed-draw {mean(last.fixed_draw_loss):.4f}")
            for told in _left(last):
                shown.console.print(told)
    return last


class _Pace:
    """Seconds that a step takes, without the loading before the first."""

    def __init__(self, first: Progress) -> None:
        self._began = time.perf_counter() - first.seconds
        self._before = first.step - 1

    def of(self, p: Progress) -> float:
        """Return the seconds of a step, on the average up to this one."""
        return (time.perf_counter() - self._began) / (p.step - self._before)

    def left(self, p: Progress) -> float:
        """Return the seconds that are left after this step."""
        return self.of(p) * (p.steps - p.step)
