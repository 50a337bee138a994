"""`pseudoword train`: learn a new word from a folder of pictures."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Optional, TypeVar

import tyro

from pseudoword import flags, layout
from pseudoword.errors import RecipeError
from pseudoword.formats.checkpoint import STATE, is_checkpoint
from pseudoword.formats.names import stem_of
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
from pseudoword.spelling import did_you_mean

EXAMPLES = (
    "pseudoword train --model MODEL --token '<cat-toy>' --pictures cat/ --initializer toy --folder cat-run",
    "pseudoword train --resume latest --folder cat-run",
)
FIRST = (
    "model",
    "token",
    "pictures",
    "initializer",
    "property",
    "num_vectors",
    "steps",
    "learning_rate",
    "folder",
    "resume",
)
EARLIER = {**flags.RUN_FOLDER, "--private": "--hub-private", "--branch": "--hub-branch"}
"""By other commands' names, or those that they once had, the same flags."""
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
    dataset: Annotated[Optional[str], tyro.conf.Suppress] = None
    """The dataset of one's own that such a file's run had."""


@dataclass(frozen=True)
class Options(RecipeOptions[M]):
    """Learn a new word from a folder of pictures.

    Every option is also a setting of a recipe file, `--recipe FILE`; options on the command line take precedence.
    """

    resume: Optional[str] = None
    """Go on from a checkpoint: 'latest', or a checkpoint's folder. The run's own recipe says all that you leave out."""
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
    carry_out(
        lambda stop: train(recipe, resume=options.resume, stop=stop),
        _command("train", "--resume", "latest", "--folder", recipe.output.folder),
        as_json=options.json,
    )
    failed = Run(recipe.output.folder, hold=False).failed()
    if watch.is_main_process() and not options.json:
        learned = [concept.token for concept in recipe.concepts if concept.token not in failed]
        folder = recipe.output.folder if len(recipe.concepts) == 1 else str(Path(recipe.output.folder) / WORDS)
        print(
            f"The word {learned[0]} is in {folder}." if len(learned) == 1 else f"{len(learned)} words are in {folder}."
        )
    if watch.is_main_process():
        if not options.json and len(failed) < len(recipe.concepts):
            print(_next_commands(recipe, failed))
        for token, reason in list(failed.items())[:NAMED]:
            print(f"error: {token} was not learned: {reason}", file=sys.stderr)
        if more := list(failed)[NAMED:]:
            file = Path(recipe.output.folder) / NOT_LEARNED
            print(f"error: {len(more)} more were not learned, {file} says why: {' '.join(more)}", file=sys.stderr)
    return 1 if failed else 0


def _next_commands(recipe: Recipe, failed: Mapping[str, str]) -> str:
    """Return what to type next: make a picture, see how good the word is, and take it to another tool."""
    folder = Path(recipe.output.folder)
    tokens = [concept.token for concept in recipe.concepts]
    places = dict(zip(tokens, layout.places(folder, [stem_of(token) for token in tokens]), strict=True))
    concept = next(concept for concept in recipe.concepts if concept.token not in failed)
    word = str(places[concept.token])
    manner = "a painting in the style of" if concept.property == "style" else "a photo of"
    lines = [_command("generate", "--embeds", word, "--prompt", f"{manner} {concept.token}")]
    lines.append(_command("evaluate", word))
    if recipe.base.model != "toybox":  # which no other tool draws with
        lines.append(_command("convert", word, "--to", "comfyui,a1111"))
    return "\n".join(["Try next:", *(f"  {line}" for line in lines)])


def _command(*words: str) -> str:
    """Return a command that can be copied into the shell of this system."""
    words = ("pseudoword", *words)
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def parse(arguments: Sequence[str]) -> Options[Any]:
    """Return the options of a command line."""
    return options_of(Options, arguments, "pseudoword train", Options.__doc__ or "", EXAMPLES, FIRST)


def options_of(
    kind: type[Kind],
    arguments: Sequence[str],
    prog: str,
    description: str,
    examples: Sequence[str],
    first: Sequence[str],
) -> Kind:
    """Return a command line's options of some kind, over those of its recipe file if it names one."""
    arguments = flags.current(arguments, EARLIER)
    file = _value_of("--recipe", arguments) or _recipe_to_resume(arguments)
    default = _options(Path(file), kind) if file else None
    method = _value_of("--method", arguments) or (default.method if default else "classic")
    if method not in OPTIONS:
        hint = did_you_mean(method, OPTIONS)
        raise RecipeError(f"There is no method {method!r}; the methods are {', '.join(sorted(OPTIONS))}.{hint}")
    if default and method != default.method:
        default = dataclasses.replace(default, method=method, method_options=OPTIONS[method]())
    return flags.parse(
        kind[OPTIONS[method]],  # pyright: ignore[reportInvalidTypeArguments]
        arguments,
        prog,
        description,
        examples=examples,
        first=first,
        default=default,
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
    return Recipe(concepts=concepts, method=options.method_options, dataset=options.dataset, **sections)


SECTIONS = ("base", "data", "training", "schedule", "engine", "validation", "output")


def _recipe_to_resume(arguments: Sequence[str]) -> str | None:
    """Return the recipe of the run that is resumed, which options on the command line change; None if there is none."""
    resume = _value_of("--resume", arguments)
    if not resume:
        return None
    folder = _value_of("--folder", arguments) or Output().folder
    places = [Path(folder).expanduser()]
    checkpoint = Path(resume).expanduser()
    if is_checkpoint(checkpoint / STATE):
        places.append(checkpoint.absolute().parent)
    for place in places:
        home = place.absolute().parent.parent
        is_of_several = place.absolute().parent.name == WORDS and (home / "recipe.toml").is_file()
        if is_of_several and not any(place.glob("checkpoint-*")):
            raise RecipeError(
                f"{str(place)!r} is the folder of one word of a run of several; go on with all of them: "
                f"--folder {shlex.quote(str(home))}."
            )
        if (place / "recipe.toml").is_file():
            return str(place / "recipe.toml")
    if not any(_value_of(flag, arguments) for flag in ("--token", "--model")) and not {"-h", "--help"} & {*arguments}:
        raise RecipeError(
            f"There is no run to go on with in {folder!r}: it has no recipe.toml. Name the folder of a run with "
            "--folder, or give all options of a new one."
        )
    return None


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
        dataset=recipe.dataset,
        **sections,
    )
