"""`pseudoword train`: learn a new word from a folder of pictures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Optional, TypeVar

import tyro

from pseudoword.errors import RecipeError
from pseudoword.layout import NOT_LEARNED, WORDS
from pseudoword.methods import OPTIONS
from pseudoword.recipe import (
    BaseModel,
    ConceptRecipe,
    Data,
    EngineRecipe,
    Output,
    Recipe,
    Schedule,
    Training,
    Validation,
)

EXAMPLE = "pseudoword train --model MODEL --token '<cat-toy>' --pictures cat/ --initializer toy --folder cat-run"
NAMED = 20
"""Concepts that failed, of which a line each says why."""


M = TypeVar("M")


@dataclass(frozen=True)
class RecipeOptions(Generic[M]):
    """A recipe, as flags.

    Every option is also a setting of a recipe file, `--recipe FILE`; options on the command line take precedence.
    """

    concept: ConceptRecipe
    base: BaseModel
    method_options: M
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    schedule: Schedule = field(default_factory=Schedule)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    validation: Validation = field(default_factory=Validation)
    output: Output = field(default_factory=Output)
    method: str = "classic"
    """How the word's rows are parametrised and updated; decides which options it has."""
    recipe: Optional[Path] = None
    """A recipe file (TOML), such as the recipe.toml in a run's folder. It may have several [[concepts]]."""
    further: Annotated[tuple[ConceptRecipe, ...], tyro.conf.Suppress] = ()
    """The other concepts of such a file."""


@dataclass(frozen=True)
class Options(RecipeOptions[M]):
    """Learn a new word from a folder of pictures.

    Every option is also a setting of a recipe file, `--recipe FILE`; options on the command line take precedence.
    """

    resume: Optional[str] = None
    """Go on from a checkpoint: 'latest', or a checkpoint's folder."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print each step as a line of JSON on standard output."""


Kind = TypeVar("Kind", bound=RecipeOptions)


def run(arguments: Sequence[str]) -> int:
    """Train, and say where the word is."""
    options = parse(arguments)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword.interruption import carry_out
    from pseudoword.run import Run
    from pseudoword.training import train

    recipe = recipe_of(options)
    carry_out(lambda stop: train(recipe, resume=options.resume, stop=stop), "--resume latest", as_json=options.json)
    failed = Run(recipe.output.folder, hold=False).failed()
    if watch.is_main_process() and not options.json:
        learned = [concept.token for concept in recipe.concepts if concept.token not in failed]
        folder = recipe.output.folder if len(recipe.concepts) == 1 else str(Path(recipe.output.folder) / WORDS)
        print(
            f"The word {learned[0]} is in {folder}." if len(learned) == 1 else f"{len(learned)} words are in {folder}."
        )
    if watch.is_main_process():
        for token, reason in list(failed.items())[:NAMED]:
            print(f"error: {token} was not learned: {reason}", file=sys.stderr)
        if more := list(failed)[NAMED:]:
            file = Path(recipe.output.folder) / NOT_LEARNED
            print(f"error: {len(more)} more were not learned, {file} says why: {' '.join(more)}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: Sequence[str]) -> Options[Any]:
    """Return the options of a command line."""
    description = f"Learn a new word from a folder of pictures.\n\n{EXAMPLE}"
    return options_of(Options, arguments, "pseudoword train", description)


def options_of(kind: type[Kind], arguments: Sequence[str], prog: str, description: str) -> Kind:
    """Return a command line's options of some kind, over those of its recipe file if it names one."""
    file = _value_of("--recipe", arguments)
    default = _options(Path(file), kind) if file else None
    method = _value_of("--method", arguments) or (default.method if default else "classic")
    if method not in OPTIONS:
        raise RecipeError(f"There is no method {method!r}; the methods are {', '.join(sorted(OPTIONS))}.")
    if default and method != default.method:
        default = dataclasses.replace(default, method=method, method_options=OPTIONS[method]())
    return tyro.cli(  # pyright: ignore[reportReturnType] (with a default or without, it is Options)
        kind[OPTIONS[method]],  # pyright: ignore[reportInvalidTypeArguments]
        args=list(arguments),
        default=default,
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
    )


def recipe_of(options: RecipeOptions[Any]) -> Recipe:
    """Return the recipe that the options make."""
    sections = {name: getattr(options, name) for name in SECTIONS}
    concepts = (options.concept, *options.further)
    if options.further and options.concept != Recipe.read(options.recipe or "").concepts[0]:
        raise RecipeError(
            f"{options.recipe} has {len(concepts)} concepts, so options of one, such as --token, cannot say which is "
            "meant; change them in the file."
        )
    return Recipe(concepts=concepts, method=options.method_options, **sections)


SECTIONS = ("base", "data", "training", "schedule", "engine", "validation", "output")


def _value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """Return what follows a flag that decides which other flags there are."""
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == flag:
            if not equals and i + 1 == len(arguments):
                raise RecipeError(f"{flag} needs a value.")
            return value if equals else arguments[i + 1]
    return None


def _options(path: Path, kind: type[Kind]) -> Kind:
    recipe = Recipe.read(path)
    sections = {name: getattr(recipe, name) for name in SECTIONS}
    first, *further = recipe.concepts
    return kind(
        concept=first,
        further=tuple(further),
        method_options=recipe.method,
        method=recipe.method.name,
        recipe=path,
        **sections,
    )
