"""Ctrl-C and SIGTERM as a wish to stop after the step, with a checkpoint; a second Ctrl-C quits at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from pseudoword import watch
from pseudoword.errors import Interrupted
from pseudoword.progress import Progress


def carry_out(
    start: Callable[[Callable[[], bool]], Iterable[Progress]],
    to_go_on: str,
    *,
    as_json: bool = False,
) -> Progress | None:
    """Show the run that `start(stop)` begins, to its end, and return its last step, if there was one left to do.

    Interrupted says how to go on if a signal ended it before.
    """
    with Interruption() as interruption:
        last = watch.follow(start(interruption.wanted), as_json=as_json, quiet=not watch.is_main_process())
    if last and last.step < last.steps:
        raise Interrupted(f"Stopped after step {last.step}; {to_go_on} goes on.", interruption.exit_code)
    return last


def until(run: Generator[Progress], stop: Callable[[], bool]) -> Iterator[Progress]:
    """Iterate over a run that closes itself in order, and close it after the step at which `stop` says so."""
    for progress in run:
        yield progress
        if stop() and progress.step < progress.steps:
            run.close()
            return


class Interruption:
    """Holds the handlers of SIGINT and SIGTERM for the block; made for the main thread of a command.

    Before the first step there is nothing to keep, so a signal ends the process at once: SIGINT as KeyboardInterrupt,
    SIGTERM as SystemExit(143).
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came while training, if any."""
        self._training = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a command ended by this signal."""
        return 128 + (self.signal or 0)

    def wanted(self) -> bool:
        """Whether training should stop; asked after every step."""
        self._training = True
        return self.signal is not None

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        del frame
        again = self.signal is not None
        if not self._training or (again and number == signal.SIGINT):
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if not again:
            self.signal = signal.Signals(number)
            if watch.is_main_process():
                print("Stopping after this step; Ctrl-C again quits at once.", file=sys.stderr, flush=True)
