"""What a terminal shows of an evaluation: a table of words, and one of settings over all their concepts."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pseudoword.evaluate import report, statistics, verdict
from pseudoword.evaluate.groups import ALL, Evaluated, Pool, pools
from pseudoword.evaluate.reference_lines import ReferenceLine, label, reference_lines
from pseudoword.evaluate.statistics import Scores
from pseudoword.progress import clock

WIDTH = 160
"""Characters of a line where output is not a terminal."""


def tell(
    evaluated: Sequence[Evaluated],
    page: Path,
    failed: Sequence[str] = (),
    *,
    as_json: bool,
    words: bool = True,
    pooled: bool = False,
) -> None:
    """Print what was found, which runs had to stop, and where the report is, or the report's numbers for a program."""
    if as_json:
        print(page.with_name(report.JSON).read_text(encoding="utf-8"), end="")
        return
    measures = report.measures(evaluated)
    references = reference_lines(evaluated)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False)
    if words:
        console.print(of_words(evaluated, measures, [] if pooled else references))
    found = pools(evaluated)
    if pooled:
        several = len({pool.name for pool in found}) > 1  # kinds are in the report
        console.print(of_pools([pool for pool in found if not several or pool.kind == ALL], measures, references))
    if failed:
        print(f"Runs that had to stop, and are not in it: {', '.join(failed)}")
    console.print(verdict.verdict(evaluated, found, references))
    print(f"The report: {page.resolve()}")


def of_words(
    evaluated: Sequence[Evaluated], measures: Sequence[str], references: Sequence[ReferenceLine] = ()
) -> Table:
    """Return a line for each word, with the standard errors that its starting noises leave, and for each reference."""
    table = _table("word", "step", *measures)
    for one in evaluated:
        cells = (_score(one.done.scores.get(name)) for name in measures)
        table.add_row(one.name, str(one.word.step or "—"), *cells)
    for line in references:
        table.add_row(label(line), "—", *_means(line, measures))
    return table


def of_pools(pooled: Sequence[Pool], measures: Sequence[str], references: Sequence[ReferenceLine] = ()) -> Table:
    """Return a line for each setting, with 95% intervals over training seeds, and for each reference."""
    table = _table("setting", "step", "concepts", "seeds", *measures, "a word")
    for pool in pooled:
        spreads = [pool.spreads.get(name) for name in measures]
        cells = ["—" if spread is None else _number(spread.mean, spread.half) for spread in spreads]
        few = 1 < len(pool.seeds) < statistics.FEWEST
        seconds = clock(pool.seconds) if pool.seconds else "—"
        concepts = f"{pool.kind} {pool.concepts}" if pool.concepts == pool.of else f"{pool.concepts} of {pool.of}"
        seeds = f"{len(pool.seeds)}: too few for ±" if few else str(len(pool.seeds))
        table.add_row(pool.name or "—", str(pool.step or "—"), concepts, seeds, *cells, seconds)
    for line in references:
        table.add_row(label(line), "—", f"{ALL} {line.concepts}", "—", *_means(line, measures), "—")
    return table


def _means(line: ReferenceLine, measures: Sequence[str]) -> list[str]:
    return [_number(line.means[name], math.nan) if name in line.means else "—" for name in measures]


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, overflow="fold", justify="right")
    return table


def _score(scores: Scores | None) -> str:
    return "—" if scores is None else _number(statistics.mean(scores), statistics.sampling_error(scores))


def _number(mean: float, error: float) -> str:
    if math.isnan(mean):
        return "—"
    return f"{mean:.3f}" + ("" if math.isnan(error) else f" ± {error:.3f}")
