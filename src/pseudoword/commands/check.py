"""`pseudoword check`: what training would make of pictures and captions, without training."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pseudoword.commands.train import M, RecipeOptions, options_of, recipe_of

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """Say what training would make of your pictures and captions, without training.

Takes the options of `pseudoword train` and reads no weights but the text encoder's table. Exit code 1 if training
would refuse, with the sentence that it would give."""
EXAMPLE = "pseudoword check --model MODEL --token '<cat-toy>' --pictures cat/ --initializer toy"
FIRST = (
    "model",
    "token",
    "pictures",
    "initializer",
    "num_vectors",
    "captions",
    "fit",
    "recipe",
    "time",
    "json",
)
SHOWN = 12
"""Captions that the table shows of many."""
NAMED = 5
"""Concepts that a warning names of many."""


@dataclass(frozen=True)
class Options(RecipeOptions[M]):
    """What training would make of pictures and captions."""

    time: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also load the model and time a few steps."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Check, and print tables or JSON."""
    options = options_of(Options, arguments, "pseudoword check", DESCRIPTION, (EXAMPLE,), FIRST)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.checking import check_each

    found = check_each(recipe_of(options), time=options.time)
    starts = all(told["starts"] for told in found)
    if options.json:
        print(json.dumps(found if len(found) > 1 else found[0], indent=1))
    else:
        from rich.console import Console

        console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)
        if len(found) == 1:
            _print_one(console, found[0])
        else:
            _print_each(console, found)
        _print_costs(console, found)
        _print_verdict(console, found)
    return 0 if starts else 1


def _print_one(console: Console, told: dict[str, Any]) -> None:
    console.print(f"{told['token']}:")
    for table in (_pictures(told["pictures"]), _captions(told["captions"])):
        if table.row_count:
            console.print(table)
            console.print()
    for difference in told["diffusers"]:
        console.print(f"diffusers' own loader reads differently: {difference}.")


def _print_each(console: Console, found: Sequence[dict[str, Any]]) -> None:
    """Print a line for each concept; --json has the rest."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("concept", "pictures", "skipped", "captions", "verdict"):
        table.add_column(heading, overflow="fold")
    for told in found:
        used = sum(row["verdict"] == "used" for row in told["pictures"])
        captions = len({(row["from"], row["text"]) for row in told["captions"]})
        verdict = "can be learned" if told["starts"] else "cannot be learned"
        if told["warnings"]:
            verdict += f", {_warnings(len(told['warnings']))}"
        table.add_row(told["token"], str(used), str(len(told["pictures"]) - used), str(captions), verdict)
    console.print(table)
    console.print("--json has each picture and caption.")


def _print_costs(console: Console, found: Sequence[dict[str, Any]]) -> None:
    """Print what training takes: memory as counted for the last concept, and the time, if it was measured."""
    from pseudoword.progress import clock

    counted = [told["memory"] for told in found if told.get("memory")]
    for memory in counted[-1:]:
        parts = " + ".join(f"{name} {_size(size)}" for name, size in memory["weights"].items())
        step = f"a step {_size(memory['kept_for_gradient'])}"
        console.print(f"Memory: about {_size(memory['total'])} ({parts} + {step}); {memory['basis']}.")
    timed = [told["time"] for told in found if told.get("time")]
    for time in timed:
        whole = clock(time["seconds"])
        console.print(f"Time: {time['seconds_per_step']:.2f} s a step, {whole} for {time['steps']} steps.")
    if not timed and any(told["starts"] for told in found):
        console.print("Time: not measured; --time loads the model and times a few steps.")


def _print_verdict(console: Console, found: Sequence[dict[str, Any]]) -> None:
    """Print warnings, each once, then what would be refused, and at last what training would do."""
    from pseudoword.judging.planned import by_sentence

    warnings = by_sentence({told["token"]: told["warnings"] for told in found})
    for sentence, tokens in warnings.items():
        of = f" ({_some(tokens)})" if len(found) > 1 else ""
        console.print(f"Warning{of}: {sentence}")
    learned = [told for told in found if told["starts"]]
    for told in found:
        if told["refused"] is not None:
            of = f"{told['token']}: " if len(found) > 1 else ""
            print(f"error: {of}{told['refused']}", file=sys.stderr)
    seen = f", with {_warnings(len(warnings))}" if warnings else ""
    if len(learned) == len(found):
        console.print(f"Training would start{seen}.")
    elif learned:
        console.print(f"{len(learned)} of {len(found)} concepts can be learned{seen}; the others would be left out.")
    else:
        console.print("Training would refuse.")


def _warnings(count: int) -> str:
    return "1 warning" if count == 1 else f"{count} warnings"


def _some(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - NAMED} more" if len(tokens) > NAMED else ""
    return ", ".join(tokens[:NAMED]) + more


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _pictures(rows: list[dict[str, Any]]) -> Any:
    """Return the table of files and what becomes of them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("picture", "size", "trained at", "verdict"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        trained = " x ".join(map(str, row.get("trained_at", ())))
        table.add_row(row["file"], " x ".join(map(str, row.get("size", ()))), trained, _verdict(row))
    return table


def _verdict(row: dict[str, Any]) -> str:
    """Return what becomes of a file in words."""
    if row["verdict"] == "skipped":
        return f"skipped: {row['reason']}"
    notes = ["used"]
    if row.get("enlarged"):
        notes.append("enlarged, which teaches blur")
    if row.get("frames", 1) > 1:
        notes.append(f"{row['frames']} crops of {1 - row['left_out']:.0%} each")
    elif row.get("left_out"):
        notes.append(f"{row['left_out']:.0%} cut off")
    if row.get("mask"):
        notes.append("masked")
    if row["same_as"]:
        notes.append(f"the same picture as {', '.join(row['same_as'])}")
    return ", ".join(notes)


def _captions(rows: list[dict[str, Any]]) -> Any:
    """Return the table of captions as text encoders see them; of templates, the longest for all."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("caption", "tokens", "as the text encoder sees it"):
        table.add_column(heading, overflow="fold")
    shown, folded = _folded(rows)
    for row in shown[:SHOWN]:
        cut = ", the rest is cut off" if row["cut"] else ""
        others = folded[row["from"], row["encoder"]]
        source = f"{row['from']}, the longest of {others + 1}" if others else row["from"]
        table.add_row(f"{row['text']} ({source})", f"{row['count']} of {row['limit']}{cut}", " ".join(row["tokens"]))
    if len(shown) > SHOWN:
        table.add_row(f"… and {len(shown) - SHOWN} more; --json has all", "", "")
    return table


def _folded(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Counter[tuple[str, str]]]:
    """Return the longest caption of each source for each encoder, and how many others each stands for."""
    longest: dict[tuple[str, str], dict[str, Any]] = {}
    others: Counter[tuple[str, str]] = Counter()
    for row in rows:
        key = (row["from"], row["encoder"])
        if key in longest:
            others[key] += 1
        if key not in longest or row["count"] > longest[key]["count"]:
            longest[key] = row
    return list(longest.values()), others
