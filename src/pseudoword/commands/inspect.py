"""`pseudoword inspect`: what an embedding file holds, and which tools load it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Optional

import tyro

from pseudoword import flags

EXAMPLES = (
    "pseudoword inspect downloaded.pt",
    "pseudoword inspect cat-run --model stable-diffusion-v1-5/stable-diffusion-v1-5",
)


@dataclass(frozen=True)
class Options:
    """Say what an embedding file is, for which base, and which tools load it, or why not."""

    file: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Embedding files, folders that hold a learned word, or ids on the Hub."""
    model: Optional[str] = None
    """A base model to compare with: norms beside the vocabulary's, and each row's nearest words."""
    config: Optional[str] = None
    """With a model that is a .safetensors or .ckpt file: folder in diffusers layout, or Hub id, of a base like it."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON array, an object a word, with the source of each tool's rules."""


def run(arguments: Sequence[str]) -> int:
    """Inspect, and print a table or JSON."""
    options = flags.parse(
        Options,
        arguments,
        "pseudoword inspect",
        "Say what an embedding file is, for which base, and which tools load it, or why not.",
        examples=EXAMPLES,
        earlier={"--base": "--model"},
    )
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.errors import PseudowordError, RecipeError
    from pseudoword.inspection import inspect
    from pseudoword.recipe import BaseModel

    if not options.file:
        raise RecipeError("Name at least one embedding file, or the folder of a run.")
    if options.config and not options.model:
        raise RecipeError("--config goes with --model FILE, but there is no --model.")
    base = BaseModel(options.model, config=options.config) if options.model else None
    told, refused = list[dict[str, Any]](), list[str]()
    for file in options.file:
        try:
            told += inspect(file, base)
        except PseudowordError as error:
            refused.append(str(error))
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        for one in told:
            _print(one)
    for sentence in refused:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if refused else 0


def _print(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("file", _shown(told["file"]))
    table.add_row("format", ", ".join([told["format"], told["container"], *told["numbers"]]))
    table.add_row("token", told["token"])
    counts = told["vectors_of"]
    each = ", ".join(f"{encoder} {count}" for encoder, count in counts.items())
    table.add_row("property", told["property"])
    table.add_row("vectors", each if len(set(counts.values())) > 1 else str(told["vectors"]))
    for name in ("for", "base", "steps"):
        if told[name] is not None:
            table.add_row(name, _shown(str(told[name])))
    for encoder, width in told["widths"].items():
        norms = ", ".join(f"{norm:.2f}" for norm in told["norms"][encoder])
        table.add_row(encoder, f"width {width}, norm {norms}")
    for encoder, beside in told.get("vocabulary", {}).items():
        low, high = beside["usual_norms"]
        usual = f"mean norm {beside['mean_norm']:.2f}, 98 of 100 between {low:.2f} and {high:.2f}"
        ratios = ", ".join(f"{ratio:.1f}" for ratio in beside["norm_ratio"])
        table.add_row(f"{told['against']}", f"{encoder}: {usual}; this word has {ratios} times the mean")
        for i, nearest in enumerate(beside["nearest"]):
            table.add_row(f"nearest to {i}", ", ".join(f"{word} {cosine:.2f}" for word, cosine in nearest))
    for name, value in told["metadata"].items():
        table.add_row(_shown(name), _shown(value))
    for tool in told["tools"].values():
        table.add_row(tool["title"], _shown(_verdict(tool)))
    Console(soft_wrap=not sys.stdout.isatty(), highlight=False, markup=False).print(table)


def _verdict(tool: dict[str, Any]) -> str:
    """Return in a line whether a tool loads the file, which of a run's files, and what has to be set for it."""
    if not tool["loads"]:
        return f"no: {tool['says']}"
    needs = f"; {tool['needs']}" if tool["needs"] else ""
    of_file = f"{tool['file']} " if "file" in tool else ""
    note = f", {tool['note']}" if tool["note"] else ""
    return f"yes, {of_file}as {tool['trigger']}{note} ({tool['says']}){needs}"


def _shown(text: str) -> str:
    """Return text without what would steer a terminal; files come from anywhere."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
