"""`pseudoword evaluate`: whether words are the concept, and whether the rest of a prompt still holds."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import tyro

from pseudoword.commands.mistyped import check_flags
from pseudoword.errors import RecipeError
from pseudoword.evaluate.measuring import Measuring
from pseudoword.recipe import BaseModel
from pseudoword.settings import at_least

if TYPE_CHECKING:
    from pseudoword.evaluate.words import Word

EXAMPLE = "pseudoword evaluate cat-run other-cat-run --output evaluation"
SUITE_EXAMPLE = "pseudoword evaluate --suite toybox --seeds 3 --output suite"


@dataclass(frozen=True)
class Options(Measuring):
    """Measure how good words are, and write a report with pictures."""

    word: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Folders of runs, which know their base, pictures and initializer, or embedding files."""
    model: Optional[str] = None
    """Base model; by default what each run was trained on."""
    pictures: Optional[Path] = None
    """Folder of what the words were learned from; by default each run's own."""
    class_word: Optional[str] = None
    """A plain word for the concept, which replaces the word where text is compared; by default the initializer."""
    steps: Optional[tuple[int, ...]] = None
    """Evaluate the words that runs left at these steps instead of their last; without numbers, all that they left."""
    suite: Optional[Literal["toybox"]] = None
    """Train a word for every concept of this suite and evaluate those; what is trained already is not trained again."""
    recipe: Optional[Path] = None
    """With --suite: the recipe to train them by (TOML), which may leave out anything; of its concept the token and the
    settings count, the rest is the suite's."""
    seeds: int = 1
    """With --suite: train each word from this many seeds, 0 and on."""
    half: Literal["tuning", "reporting", "all"] = "all"
    """With --suite: the concepts that settings are chosen on, those that results are told of, or all."""
    output: Path = field(default_factory=lambda: Path("evaluation"))
    """Folder for the report. Pictures that are in it already are not sampled again."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print report.json instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Evaluate, print a table, and say where the report is."""
    check_flags([Options], arguments)
    options = tyro.cli(
        Options,
        args=list(arguments),
        prog="pseudoword evaluate",
        description=f"Measure how good words are, and write a report with pictures.\n\n{EXAMPLE}\n{SUITE_EXAMPLE}",
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
    _check(options)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.evaluate import measuring, report, tables
    from pseudoword.evaluate.machine import machine

    report.check_installed()
    output = options.output.expanduser()
    found, failed = (_trained if options.suite else _named)(options, output)
    evaluated = measuring.evaluate(options, found, output)
    command = shlex.join(["pseudoword", "evaluate", *arguments])
    path = report.write(evaluated, output, {"command": command, **machine(), **options.facts}, failed)
    tables.tell(evaluated, path, list(failed), as_json=options.json, pooled=options.suite is not None)
    return 1 if failed else 0


def _check(options: Options) -> None:
    if options.suite:
        given = {"--model": options.model, "--pictures": options.pictures, "--class-word": options.class_word}
        named = [*(["a word"] if options.word else []), *(name for name, value in given.items() if value is not None)]
        if named:
            raise RecipeError(f"--suite brings words, base and pictures of its own; leave out {', '.join(named)}.")
    elif not options.word:
        raise RecipeError("Name at least one run's folder or embedding file to evaluate.")
    elif options.recipe or options.seeds != 1 or options.half != "all":
        raise RecipeError("--recipe, --seeds and --half train a suite; add --suite toybox, or leave them out.")
    options.check()
    at_least(1, **{"--seeds": options.seeds})
    if options.output.suffix or options.output.is_file():
        raise RecipeError(f"--output must be a folder, not {options.output.name!r}.")


def _named(options: Options, output: Path) -> tuple[list[Word], dict[str, str]]:
    """Return the words of the command line, each once."""
    from pseudoword.evaluate import words

    _make(output)
    asked = words.Asked(BaseModel(options.model) if options.model else None, options.pictures, options.class_word)
    found = [word for path in options.word for word in words.words_of(path, asked, options.steps)]
    return list({(word.place, word.step): word for word in found}.values()), {}


def _trained(options: Options, output: Path) -> tuple[list[Word], dict[str, str]]:
    """Train the suite, and return its words, and why by name for those that training had to give up."""
    from pseudoword import trials
    from pseudoword.toybox import suite

    recipe = trials.read(options.recipe) if options.recipe else trials.plain_recipe()
    recipe = trials.leaving(recipe, options.steps)
    _make(output)
    return trials.words(trials.of_suite(recipe, suite.of_half(options.half), options.seeds, output), options.steps)


def _make(output: Path) -> None:
    from pseudoword import disk

    with disk.writing(output):
        output.mkdir(parents=True, exist_ok=True)
