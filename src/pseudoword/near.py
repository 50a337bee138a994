"""Names that a person may have meant by one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CLOSE = 0.75
"""How alike two names are, from 0 to 1, that differ by a slip of the finger: one letter in four at most."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'name'?" if a known name is near, whatever its case, and nothing otherwise."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1, CLOSE)
    return f" Did you mean {by_lower[near[0]]!r}?" if near else ""
