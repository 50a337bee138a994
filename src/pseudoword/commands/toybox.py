"""`pseudoword toybox`: the drawn world of the small model inside this package, and the scripts that train the model."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")


@dataclass(frozen=True)
class Render:
    """Draw pictures of the world, and say what is on each."""

    output: Path = Path("toybox.png")
    """A .png for one sheet of pictures, or a folder for one file each."""
    count: int = 48
    """How many pictures."""
    seed: int = 0
    """Seed of the first; the next has the seed after."""
    held_out: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw pairings that training never shows."""


def render(arguments: Sequence[str]) -> None:
    """Write the pictures, and print a line for each: seed, caption."""
    options = _parse(Render, "render", arguments)
    from PIL import Image

    from pseudoword.toybox import captions, world
    from pseudoword.toybox.cache import HELD_OUT
    from pseudoword.toybox.render import render as draw
    from pseudoword.toybox.sheet import sheet

    first = options.seed + (HELD_OUT if options.held_out else 0)
    drawing_of = world.held_out_drawing if options.held_out else world.training_drawing
    pictures: list[Image.Image] = []
    for seed in range(first, first + options.count):
        drawing = drawing_of(seed)
        pictures.append(Image.fromarray(draw(drawing, seed)))
        print(f"{seed}\t{captions.full_caption(drawing)}")
    if options.output.suffix:
        sheet(pictures, 12).save(options.output)
    else:
        options.output.mkdir(parents=True, exist_ok=True)
        for seed, picture in enumerate(pictures, first):
            picture.save(options.output / f"{seed}.png")


def words(arguments: Sequence[str]) -> None:
    """Print the words that the model knows, each of them one token."""
    if arguments:
        print("usage: pseudoword toybox words\n\nPrint the words that the model knows, each of them one token.")
        return
    from pseudoword.toybox import words as known

    print("\n".join(known.words()))


def train_vae(arguments: Sequence[str]) -> None:
    """Train the autoencoder."""
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.toybox.train_vae import VaeOptions
    from pseudoword.toybox.train_vae import train_vae as train

    watch.follow(train(_parse(VaeOptions, "train-vae", arguments)))


def train_base(arguments: Sequence[str]) -> None:
    """Train the text encoder and the UNet."""
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.toybox.train_base import BaseOptions
    from pseudoword.toybox.train_base import train_base as train

    watch.follow(train(_parse(BaseOptions, "train-base", arguments)))


def train_oracle(arguments: Sequence[str]) -> None:
    """Train the oracle."""
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.toybox.train_oracle import OracleOptions
    from pseudoword.toybox.train_oracle import train_oracle as train

    watch.follow(train(_parse(OracleOptions, "train-oracle", arguments)))


@dataclass(frozen=True)
class Score:
    """Measure how well a base keeps and draws the world, against the goals."""

    base: Path = Path(".training/base")
    """Folder of the base, in diffusers layout."""
    oracle: Path = Path(".training/oracle.safetensors")
    """The oracle's weights."""
    count: int = 500
    """Held-out captions that are drawn."""
    output: Path = Path("toybox-score.json")
    """Where the table is written for programs."""


def score(arguments: Sequence[str]) -> None:
    """Print the table of goals, and write it as JSON."""
    options = _parse(Score, "score", arguments)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.toybox import oracle
    from pseudoword.toybox.score import score_base

    goals = score_base(options.base, oracle.load(options.oracle), options.count)
    width = max(len(goal.what) for goal in goals)
    for goal in goals:
        sign, verdict = "≤" if goal.most else "≥", "reached" if goal.reached else "missed"
        print(f"{goal.what:<{width}}  {goal.value:7.2f} {goal.unit:<6}  goal {sign} {goal.goal:g}  {verdict}")
    rows = [{**asdict(goal), "reached": goal.reached} for goal in goals]
    options.output.write_text(json.dumps({**machine(), "goals": rows}, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int]:
    """Return what measured numbers depend on."""
    import diffusers
    import torch
    import transformers

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "cores": os.cpu_count() or 0,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "render": (render, "draw pictures of the world, and say what is on each"),
    "words": (words, "print the words that the model knows"),
    "train-vae": (train_vae, "train the autoencoder"),
    "train-base": (train_base, "train the text encoder and the UNet"),
    "train-oracle": (train_oracle, "train the oracle, which reads a picture's attributes"),
    "score": (score, "measure how well a base keeps and draws the world"),
}


def _parse(options: type[T], name: str, arguments: Sequence[str]) -> T:
    return tyro.cli(
        options,
        args=list(arguments),
        prog=f"pseudoword toybox {name}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
    )


def run(arguments: Sequence[str]) -> int:
    """Carry out one of the toybox's commands."""
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        COMMANDS[name][0](arguments[1:])
        return 0
    usage = [
        "usage: pseudoword toybox COMMAND [OPTIONS]",
        "",
        "The drawn world of the small model inside this package, and the scripts that train the model.",
        "",
        *(f"  {command:<13}{what}" for command, (_, what) in COMMANDS.items()),
    ]
    if name in ("", "-h", "--help"):
        print("\n".join(usage))
        return 0 if name else 2
    print(f"error: there is no toybox command {name!r}; they are {', '.join(COMMANDS)}.", file=sys.stderr)
    return 2
