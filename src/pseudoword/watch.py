"""How a run shows itself: a bar at a terminal, plain lines elsewhere, JSON where a program reads."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable

from pseudoword.progress import Progress, mean

LINES = 20
"""Lines that a run prints where output is not a terminal, besides those that name what was kept."""
AVERAGED = 50
"""Steps over which the shown loss is averaged; a single step's loss is mostly the noise of its timesteps."""


def follow(run: Iterable[Progress], *, as_json: bool = False, quiet: bool = False) -> Progress | None:
    """Iterate over a run to its end, showing it on the way, and return the last step (None if there was none)."""
    if quiet:
        return _last(run)
    if as_json:
        return _last(_printed_as_json(run))
    return _bar(run) if sys.stderr.isatty() else _lines(run)


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
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("pseudoword")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


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
        print(json.dumps(line), flush=True)
        yield p


def _lines(run: Iterable[Progress]) -> Progress | None:
    losses: deque[float] = deque(maxlen=AVERAGED)
    last, began, first, before = None, 0.0, 0, -1
    for last in run:
        if last.step != before + 1:  # the first, or that of another part: for the pace steps count, not the loading
            losses.clear()
            began, first = time.perf_counter() - last.seconds, last.step - 1
        before = last.step
        losses.append(mean(last.loss))
        if last.step % -(-last.steps // LINES) == 0 or last.saved or last.pictures or last.step == last.steps:
            pace = (time.perf_counter() - began) / (last.step - first)
            print(_sentence(last, losses, pace), file=sys.stderr, flush=True)
    return last


def _sentence(p: Progress, losses: deque[float], pace: float) -> str:
    left = round(pace * (p.steps - p.step))
    loss = sum(losses) / len(losses)
    kept = "".join(f"  {told}" for told in _left(p))
    fixed = f"  fixed-draw loss {mean(p.fixed_draw_loss):.4f}" if p.fixed_draw_loss else ""
    return f"step {p.step}/{p.steps}  loss {loss:.4f}  lr {p.lr:.2e}  {pace:.2f} s a step  {left} s left{fixed}{kept}"


def _left(p: Progress) -> list[str]:
    """Return what a step left on disk; files of one name, as several words leave them, are told once."""
    told = Counter([f"kept {path.name}" for path in p.saved] + [f"sampled {path.name}" for path in p.pictures])
    return [name if count == 1 else f"{name} of {count} words" for name, count in told.items()]


def _bar(run: Iterable[Progress]) -> Progress | None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("learning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}{task.fields[fixed]}"),
        TimeRemainingColumn(),
    )
    losses: deque[float] = deque(maxlen=AVERAGED)
    last: Progress | None = None
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = None
        for last in run:
            if task is None or last.step != bar.tasks[-1].completed + 1:  # the first, or that of another part
                losses.clear()
                task = bar.add_task("", total=last.steps, completed=last.step - 1, loss=0.0, fixed="")
            losses.append(mean(last.loss))
            bar.update(task, completed=last.step, loss=sum(losses) / len(losses))
            if last.fixed_draw_loss:
                bar.update(task, fixed=f"  fixed-draw loss {mean(last.fixed_draw_loss):.4f}")
            for told in _left(last):
                bar.console.print(told)
    return last
