"""`pseudoword train`: learn a new word from a folder of pictures."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Optional

import tyro

from pseudoword.errors import RecipeError
from pseudoword.methods.classic import ClassicOptions
from pseudoword.recipe import BaseModel, ConceptRecipe, Data, EngineRecipe, Output, Recipe, Schedule, Training

EXAMPLE = "pseudoword train --model MODEL --token '<cat-toy>' --pictures cat/ --initializer toy --folder cat-run"


@dataclass(frozen=True)
class Options:
    """Learn a new word from a folder of pictures.

    Every option is also a setting of a recipe file, `--recipe FILE`; options on the command line come before it.
    """

    concept: ConceptRecipe
    base: BaseModel
    method: ClassicOptions = field(default_factory=ClassicOptions)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    schedule: Schedule = field(default_factory=Schedule)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    output: Output = field(default_factory=Output)
    recipe: Optional[Path] = None
    """A recipe file (TOML), such as the recipe.toml in a run's folder."""
    resume: Optional[str] = None
    """Go on from a checkpoint: 'latest', or a checkpoint's folder."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print each step as a line of JSON on standard output."""


def run(arguments: Sequence[str]) -> int:
    """Train, and say where the word is."""
    options = parse(arguments)
    from pseudoword import watch

    main_process = int(os.environ.get("RANK", "0")) == 0
    watch.messages()
    from pseudoword.training import train

    recipe = recipe_of(options)
    watch.follow(train(recipe, resume=options.resume), as_json=options.json, quiet=not main_process)
    if main_process and not options.json:
        [concept] = recipe.concepts
        print(f"The word {concept.token} is in {recipe.output.folder}.")
    return 0


def parse(arguments: Sequence[str]) -> Options:
    """Return the options of a command line, over those of its recipe file if it names one."""
    default = _from_recipe(arguments)
    return tyro.cli(  # pyright: ignore[reportReturnType] (without a default the type is still Options)
        Options,
        args=list(arguments),
        default=default,
        prog="pseudoword train",
        description=f"Learn a new word from a folder of pictures.\n\n{EXAMPLE}",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
    )


def recipe_of(options: Options) -> Recipe:
    """Return the recipe that the options make."""
    sections = {f.name: getattr(options, f.name) for f in dataclasses.fields(Recipe) if f.name != "concepts"}
    return Recipe(concepts=(options.concept,), **sections)


def _from_recipe(arguments: Sequence[str]) -> Options | None:
    """Return the options of the file after `--recipe`, if there is one."""
    for i, word in enumerate(arguments):
        name, _, value = word.partition("=")
        if name == "--recipe":
            if not value and i + 1 == len(arguments):
                raise RecipeError("--recipe needs the name of a file.")
            return _options(Path(value or arguments[i + 1]))
    return None


def _options(path: Path) -> Options:
    recipe = Recipe.read(path)
    sections = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe) if f.name != "concepts"}
    return Options(concept=recipe.concepts[0], **sections)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
