"""Messages of a run of many concepts: a few of each kind, then how many more there were."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

log = logging.getLogger(__name__)

FEW = 5
"""Concepts that are spoken of one by one."""
SHOWN = 3
"""Of more concepts, messages of a kind that are shown."""


@contextmanager
def summed_up(concepts: int) -> Generator[None]:
    """Let what is logged of many concepts in this block be a few lines of each kind, and a count of the rest."""
    if concepts <= FEW:
        yield
        return
    kept = _FirstOfEachKind()
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("pseudoword.")]
    speaking = [logger for logger in loggers if logger is not log]
    for logger in speaking:
        logger.addFilter(kept)
    try:
        yield
    finally:
        for logger in speaking:
            logger.removeFilter(kept)
        for kind, count in kept.counts.items():
            if count == SHOWN + 1:
                log.log(kept.levels[kind], "%s", kept.last[kind])
            elif count > SHOWN:
                log.log(kept.levels[kind], "… and %d more like this: %s", count - SHOWN, kept.last[kind])


class _FirstOfEachKind(logging.Filter):
    """Lets the first messages of a kind through, and counts all; a kind is a message without its values."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.levels: dict[str, int] = {}
        self.last: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = str(record.msg)
        self.counts[kind] += 1
        self.levels[kind], self.last[kind] = record.levelno, record.getMessage()
        return self.counts[kind] <= SHOWN


def count_ready(done: int, concepts: int) -> None:
    """Say now and then how many of many concepts are encoded, which takes a while."""
    if concepts > FEW and done % (concepts // FEW) == 0:
        log.info("%d of %d concepts are ready", done, concepts)


def named(tokens: list[str]) -> str:
    """Return tokens one after the other, or how many there are."""
    return " ".join(tokens) if len(tokens) <= FEW else f"{len(tokens)} words"
