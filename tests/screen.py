"""A terminal as far as our output needs one: what a person sees after all that was written to it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest import mock

PIECES = re.compile(r"\x1b\[(?P<numbers>[0-9;?]*)(?P<letter>[A-Za-z])|(?P<character>[\s\S])")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal(width: int = 80, kind: str = "xterm") -> Iterator[Terminal]:
    """Let a terminal be this process' standard output and standard error."""
    stream = Terminal()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": str(width), "TERM": kind}),
        redirect_stdout(stream),
        redirect_stderr(stream),
    ):
        yield stream


def seen(written: str, width: int) -> list[str]:
    """Return the lines of a screen of this width and any height. An unknown control sequence is an error."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for piece in PIECES.finditer(written):
        numbers, letter, character = piece["numbers"], piece["letter"], piece["character"]
        if letter == "A":
            row -= int(numbers or 1)
        elif letter == "K":
            assert numbers == "2", "the whole line is cleared"
            rows[row] = []
        elif letter is not None:
            assert letter in ("m", "h", "l"), f"{piece[0]!r} is not emulated"  # colours; the cursor shown and hidden
        elif character == "\n":
            row, column = row + 1, 0
        elif character == "\r":
            column = 0
        else:
            if column == width:
                row, column = row + 1, 0
            while len(rows) <= row:
                rows.append([])
            rows[row] += [" "] * (column + 1 - len(rows[row]))
            rows[row][column] = character
            column += 1
        while len(rows) <= row:
            rows.append([])
    return ["".join(line).rstrip() for line in rows]
