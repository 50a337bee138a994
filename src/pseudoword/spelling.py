"""Spelling: which of some names was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that one is most alike to, whatever their case; None if it is like none of them."""
    by_folded: dict[str, str] = {}
    for known in names:
        by_folded.setdefault(known.casefold(), known)
    close = difflib.get_close_matches(name.casefold(), by_folded, 1)
    return by_folded[close[0]] if close else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the question that follows a name that nothing has, with a space before it; nothing if none is like it."""
    near = nearest(name, names)
    return f" Did you mean {near!r}?" if near else ""
