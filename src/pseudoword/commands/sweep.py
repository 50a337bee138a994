"""`pseudoword sweep`: one recipe and ranges of settings to many runs, compared in a table and a plane."""

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
from pseudoword.settings import at_least

if TYPE_CHECKING:
    from pseudoword.recipe import Recipe
    from pseudoword.trials import Trial

EXAMPLE = "pseudoword sweep --recipe cat-run/recipe.toml --vary learning_rate=0.001,0.005 --vary num_vectors=1,2"

BY_SUITE = ("concepts.0.initializer", "concepts.0.property")
"""What each of a suite's concepts has of its own."""


@dataclass(frozen=True)
class Options(Measuring):
    """Train one recipe with several settings, and compare the words that come of them."""

    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting and its values, such as learning_rate=0.001,0.005; given again, every combination is trained."""
    recipe: Optional[Path] = None
    """The recipe (TOML), such as recipe.toml in a run's folder. With --suite it may leave out anything; of its concept
    the token and the settings count, the rest is the suite's."""
    suite: Optional[Literal["toybox"]] = None
    """Train the concepts of this suite instead of the recipe's own."""
    half: Optional[Literal["tuning", "reporting", "all"]] = None
    """With --suite: the concepts that settings are chosen on ('tuning', the default), those that results are told of,
    or all."""
    seeds: int = 1
    """Train every word from this many seeds, 0 and on."""
    output: Path = field(default_factory=lambda: Path("sweep"))
    """Folder for runs and report; the same command goes on with what is in it."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print report.json instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Train and evaluate, print a table, and say where the report is."""
    check_flags([Options], arguments)
    options = tyro.cli(
        Options,
        args=list(arguments),
        prog="pseudoword sweep",
        description=f"Train one recipe with several settings, and compare the words that come of them.\n\n{EXAMPLE}",
        config=(tyro.conf.HelptextFromCommentsOff,),
    )
    _check(options)
    from pseudoword import disk, ranges, trials, watch

    watch.show_messages()
    from pseudoword.evaluate import measuring, report, tables
    from pseudoword.evaluate.machine import machine

    report.check_installed()
    recipes = ranges.varied(_recipe(options), options.vary, BY_SUITE if options.suite else ())
    output = options.output.expanduser()
    with disk.writing(output):
        output.mkdir(parents=True, exist_ok=True)
    if options.suite is None and any(recipe.base.model != "toybox" for recipe in recipes.values()):
        measuring.check_models(options)  # before hours of training
    found, failed = trials.words(
        [t for name, recipe in recipes.items() for t in _trials(options, recipe, name, output)]
    )
    evaluated = measuring.evaluate(options, found, output)
    command = shlex.join(["pseudoword", "sweep", *arguments])
    path = report.write(evaluated, output, {"command": command, **machine(), **options.facts}, failed)
    tables.tell(evaluated, path, list(failed), as_json=options.json, words=False, pooled=True)
    return 1 if failed else 0


def _check(options: Options) -> None:
    if not options.vary:
        raise RecipeError("--vary says which settings to compare, such as --vary learning_rate=0.001,0.005.")
    if options.recipe is None and options.suite is None:
        raise RecipeError("Name the recipe to vary with --recipe, such as recipe.toml in a run's folder.")
    if options.half is not None and options.suite is None:
        raise RecipeError("--half chooses concepts of a suite; add --suite toybox, or leave it out.")
    options.check()
    at_least(1, **{"--seeds": options.seeds})
    if options.output.suffix or options.output.is_file():
        raise RecipeError(f"--output must be a folder, not {options.output.name!r}.")


def _recipe(options: Options) -> Recipe:
    """Return the recipe whose settings are varied."""
    from pseudoword import recipe, trials

    if options.recipe is None:
        return trials.plain_recipe()
    read = trials.read(options.recipe) if options.suite else recipe.Recipe.read(options.recipe)
    if len(read.concepts) > 1:
        raise RecipeError(
            f"{options.recipe} has {len(read.concepts)} concepts, but a sweep trains words one by one; leave one in it."
        )
    return read


def _trials(options: Options, recipe: Recipe, name: str, output: Path) -> list[Trial]:
    from pseudoword import trials
    from pseudoword.toybox import suite

    if options.suite is None:
        return trials.of_seeds(recipe, options.seeds, output, name)
    return trials.of_suite(recipe, suite.of_half(options.half or "tuning"), options.seeds, output, name)
