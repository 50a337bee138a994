"""`pseudoword check`: what training would make of pictures and captions, without training."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from pseudoword.commands.train import M, RecipeOptions, options_of, recipe_of

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
    if options.json:
        print(json.dumps(found if len(found) > 1 else found[0], indent=1))
    else:
        for told in found:
            _print(told, last=told is found[-1])
    return 0 if all(told["starts"] for told in found) else 1


def _print(told: dict[str, Any], *, last: bool) -> None:
    from rich.console import Console

    from pseudoword.progress import clock

    console = Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False)
    console.print(f"{told['token']}:")
    for table in (_pictures(told["pictures"]), _captions(told["captions"])):
        if table.row_count:
            console.print(table)
            console.print()
    for difference in told["diffusers"]:
        console.print(f"diffusers' own loader reads differently: {difference}.")
    if last and (memory := told.get("memory")):
        parts = " + ".join(f"{name} {_size(size)}" for name, size in memory["weights"].items())
        step = f"a step {_size(memory['kept_for_gradient'])}"
        console.print(f"Memory: about {_size(memory['total'])} ({parts} + {step}); {memory['basis']}.")
    if time := told.get("time"):
        whole = clock(time["seconds"])
        console.print(f"Time: {time['seconds_per_step']:.2f} s a step, {whole} for {time['steps']} steps.")
    elif told["starts"] and last:
        console.print("Time: not measured; --time loads the model and times a few steps.")
    if told["starts"]:
        console.print("Training would start.")
    if told["refused"] is not None:
        print(f"error: {told['refused']}", file=sys.stderr)


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
    """Return the table of captions as text encoders see them."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("caption", "tokens", "as the text encoder sees it"):
        table.add_column(heading, overflow="fold")
    for row in rows[:SHOWN]:
        cut = ", the rest is cut off" if row["cut"] else ""
        table.add_row(
            f"{row['text']} ({row['from']})", f"{row['count']} of {row['limit']}{cut}", " ".join(row["tokens"])
        )
    if len(rows) > SHOWN:
        table.add_row(f"… and {len(rows) - SHOWN} more; --json has all", "", "")
    return table
