"""The bar at a terminal: one, at the bottom; whatever else is printed, logged or warned of goes above it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn


def has_room() -> bool:
    """Whether standard error is a terminal that can move its cursor up, which a bar needs."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextmanager
def bar(*columns: str | ProgressColumn, transient: bool = False) -> Iterator[Progress]:
    """Show a bar on standard error for the block; a transient one is gone afterwards."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr, markup=False, highlight=False, emoji=False)
    shown = Progress(
        *columns, console=console, transient=transient, expand=True, redirect_stdout=False, redirect_stderr=False
    )
    with shown, _printed_above(console):
        yield shown


@contextmanager
def _printed_above(console: Console) -> Iterator[None]:
    """Send what is written to the terminal in this block through the console, which draws its bar below.

    Log handlers hold on to the stream that they were made with, so theirs are exchanged too: rich's own redirection
    exchanges `sys.stderr` alone.
    """
    real = [stream for stream in (sys.stderr, sys.stdout) if stream.isatty()]
    above = [_Above(console, stream) for stream in real]
    stdout, stderr = sys.stdout, sys.stderr
    exchanged: list[tuple[logging.StreamHandler[Any], TextIO]] = []
    for stream, proxy in zip(real, above, strict=True):
        sys.stdout = proxy if stream is sys.stdout else sys.stdout
        sys.stderr = proxy if stream is sys.stderr else sys.stderr
        for handler in _handlers_on(stream):
            exchanged.append((handler, stream))
            handler.setStream(proxy)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        for handler, stream in exchanged:
            handler.setStream(stream)
        for proxy in above:
            proxy.end()


def _handlers_on(stream: TextIO) -> Iterator[logging.StreamHandler[Any]]:
    """Yield the log handlers, of any library, that write to this terminal."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    same = (stream, sys.__stderr__) if stream is sys.stderr else (stream, sys.__stdout__)
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # a logger that only has children is a placeholder
            if isinstance(handler, logging.StreamHandler) and any(handler.stream is one for one in same):
                yield handler


class _Above:
    """A stream that prints whole lines above the bar, and hands on what is written once the bar has ended.

    A line that rewrites itself (`\\r`), as other libraries' bars do, is printed once, when it is complete.
    """

    def __init__(self, console: Console, stream: TextIO) -> None:
        self._console: Console | None = console
        self._stream = stream
        self._line = ""

    def write(self, text: str) -> int:
        if self._console is None:
            return self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._print(line)
        self._line = self._line.rpartition("\r")[2] or self._line
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def end(self) -> None:
        """Print what was left without an end of line, and go on as the stream itself."""
        if self._line:
            self._print(self._line)
        self._console = None

    def _print(self, line: str) -> None:
        from rich.text import Text

        if self._console is not None:
            self._console.print(Text.from_ansi(line.rstrip("\r").rpartition("\r")[2]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
