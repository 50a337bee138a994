"""`pseudoword toybox`: the drawn world of the small model inside this package, and the scripts that train the model."""

from __future__ import annotations

import functools
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional, TypeVar

import tyro

from pseudoword import disk, flags
from pseudoword.errors import RecipeError
from pseudoword.settings import at_least, check_seed
from pseudoword.spelling import did_you_mean

if TYPE_CHECKING:
    from pseudoword.evaluate.suite_score import WordScore
    from pseudoword.toybox.oracle import Judge

T = TypeVar("T")
TOKEN = "<word>"


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
    concept: Optional[str] = None
    """Draw the pictures of a concept of the suite instead, to learn a word from: goldfish, old-key, comic, …"""


def render(arguments: Sequence[str]) -> None:
    """Write the pictures, and print a line for each: its name, and what is on it."""
    options = _parse(Render, "render", arguments)
    one_file = disk.means_file(options.output, disk.IMAGE_ENDINGS)
    if one_file and options.output.suffix.lower() != ".png":
        disk.check_folder(options.output)  # of what is there already
        raise RecipeError(f"--output must be a .png or a folder, not {options.output.name!r}.")
    at_least(1, **{"--count": options.count})
    check_seed(**{"--seed": options.seed})
    if one_file and not options.output.parent.is_dir():
        raise RecipeError(f"There is no folder {str(options.output.parent)!r} to draw into; make it first.")
    if options.concept is not None and (options.held_out or options.seed):
        raise RecipeError("A concept has its own five pictures, always the same; leave out what draws others.")
    from PIL import Image

    from pseudoword.toybox import captions, suite, world
    from pseudoword.toybox.cache import HELD_OUT
    from pseudoword.toybox.render import render as draw
    from pseudoword.toybox.sheet import sheet

    if options.concept is None:
        first = options.seed + (HELD_OUT if options.held_out else 0)
        drawing_of = world.held_out_drawing if options.held_out else world.training_drawing
        drawings = {seed: drawing_of(seed) for seed in range(first, first + options.count)}
        pictures = {seed: Image.fromarray(draw(drawing, seed)) for seed, drawing in drawings.items()}
    elif options.concept in suite.NAMED:
        subject = suite.NAMED[options.concept]
        drawings, pictures = dict(enumerate(suite.drawings(subject))), dict(enumerate(suite.pictures(subject)))
    else:
        raise RecipeError(
            f"The toybox has no concept {options.concept!r}; its concepts are {', '.join(suite.NAMED)}."
            f"{did_you_mean(options.concept, suite.NAMED)}"
        )
    if one_file:
        whole = sheet(list(pictures.values()), 12)
        disk.patiently(options.output, lambda: whole.save(options.output))
    else:
        with disk.writing(options.output):
            options.output.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            path = options.output / f"{name}.png"
            disk.patiently(path, functools.partial(picture.save, path))
    for name, drawing in drawings.items():
        print(f"{name}\t{captions.full_caption(drawing)}")


def words(arguments: Sequence[str]) -> None:
    """Print the words that the model knows, each of them one token."""
    if arguments:
        print("usage: pseudoword toybox words\n\nPrint the words that the model knows, each of them one token.")
        return
    from pseudoword.toybox import words as known

    print("\n".join(known.words()))


STAGES = {
    "train-vae": "train the autoencoder",
    "train-decoder": "sharpen the autoencoder's decoder alone",
    "train-text": "teach the text encoder to read captions",
    "train-base": "train the UNet, and the text encoder with it",
    "train-oracle": "train the oracle, which reads a picture's attributes",
}
"""How the toybox is made; `train-base` is `train_base(BaseOptions())` of `toybox.train_base`."""


def train(stage: str, arguments: Sequence[str]) -> None:
    """Carry out one of the stages."""
    from pseudoword import watch
    from pseudoword.interruption import carry_out, until

    watch.show_messages()
    name = stage.replace("-", "_")
    module = importlib.import_module(f"pseudoword.toybox.{name}")
    options = getattr(module, f"{stage.removeprefix('train-').capitalize()}Options")
    asked = _parse(options, stage, arguments)
    carry_out(lambda stop: until(getattr(module, name)(asked), stop), "the same command")


@dataclass(frozen=True)
class Score:
    """Measure how well a base keeps and draws the world, and learns words for it, against the goals."""

    model: str = "toybox"
    """Folder of the base, in diffusers layout, or 'toybox', the one inside this package."""
    oracle: Optional[Path] = None
    """The oracle's weights; those inside this package if not given."""
    count: int = 500
    """Held-out captions that are drawn."""
    half: Literal["none", "tuning", "reporting", "all"] = "none"
    """Subjects of the concept suite to learn words for: settings are chosen on one half, results told of the other."""
    steps: int = 500
    """Optimizer steps of each word."""
    learning_rate: float = 2e-2
    """Learning rate of each word."""
    words: Path = Path(".training/words")
    """Folder for the words' pictures and runs."""
    output: Path = Path("toybox-score.json")
    """Where the table is written for programs."""


def score(arguments: Sequence[str]) -> None:
    """Print the table of goals, and write it as JSON."""
    options = _parse(Score, "score", arguments)
    at_least(1, **{"--count": options.count, "--steps": options.steps})
    output = options.output.expanduser()
    if output.is_dir():
        raise RecipeError(f"--output must be a file, but {str(options.output)!r} is a folder.")
    if not output.parent.is_dir():
        raise RecipeError(f"There is no folder {str(options.output.parent)!r} to write the score to; make it first.")
    from pseudoword import disk, watch

    watch.show_messages()
    from pseudoword.evaluate.machine import machine
    from pseudoword.toybox import BASES, oracle
    from pseudoword.toybox.score import score_base
    from pseudoword.toybox.trainer import made_before

    base = made_before(BASES.get(options.model, Path(options.model)), "train-base")
    judge = oracle.load(made_before(options.oracle or oracle.FILE, "train-oracle"))
    goals = score_base(base, judge, options.count)
    scores = _learned(options, judge) if options.half != "none" else []
    if scores:
        from pseudoword.evaluate.suite_score import goals_of_words

        goals += goals_of_words(scores)
    width = max(len(goal.what) for goal in goals)
    for goal in goals:
        sign, verdict = "≤" if goal.most else "≥", "reached" if goal.reached else "missed"
        print(f"{goal.what:<{width}}  {goal.value:7.2f} {goal.unit:<8} goal {sign} {goal.goal:g}  {verdict}")
    rows = [{**asdict(goal), "reached": goal.reached} for goal in goals]
    command = shlex.join(["pseudoword", "toybox", "score", *arguments])
    told = {"command": command, **machine(), "goals": rows, "words": [asdict(score) for score in scores]}
    disk.write(output, json.dumps(told, indent=2) + "\n")


def _learned(options: Score, judge: Judge) -> list[WordScore]:
    """Learn a word for each subject of a half, and measure it."""
    from pseudoword import generate
    from pseudoword.concept import Concept
    from pseudoword.evaluate.suite_score import single_words, word_score
    from pseudoword.recipe import BaseModel
    from pseudoword.toybox import suite
    from pseudoword.training import train

    family = generate.load(BaseModel(options.model))
    singles = single_words(family, judge)
    scores: list[WordScore] = []
    for subject in suite.SUBJECTS:
        if options.half in ("all", subject.half):
            folder = options.words / subject.name
            settings = {"base": options.model, "steps": options.steps, "learning_rate": options.learning_rate}
            for _ in train(suite.recipe(subject, folder, TOKEN, **settings)):
                pass
            scores.append(word_score(family, Concept.load(folder), subject, judge, singles))
            print(scores[-1].line, flush=True)
    return scores


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "render": (render, "draw pictures of the world, and say what is on each"),
    "words": (words, "print the words that the model knows"),
    **{stage: (functools.partial(train, stage), what) for stage, what in STAGES.items()},
    "score": (score, "measure how well a base keeps and draws the world"),
}


def _parse(options: type[T], name: str, arguments: Sequence[str]) -> T:
    return flags.parse(
        options, arguments, f"pseudoword toybox {name}", options.__doc__ or "", earlier={"--base": "--model"}
    )


def run(arguments: Sequence[str]) -> int:
    """Carry out one of the toybox's commands."""
    name = arguments[0] if arguments else ""
    if name in COMMANDS:
        COMMANDS[name][0](arguments[1:])
        return 0
    if name in ("", *flags.HELP):
        description = "The drawn world of the small model inside this package, and the scripts that train the model."
        print(flags.usage("pseudoword toybox", description, {name: what for name, (_, what) in COMMANDS.items()}))
        return 0 if name else 2
    hint = did_you_mean(name, COMMANDS)
    print(f"error: there is no toybox command {name!r}; they are {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
    return 2
