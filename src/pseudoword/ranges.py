"""Ranges: settings that a sweep varies, and the recipes that their combinations make."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import tomllib
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pseudoword.errors import RecipeError
from pseudoword.recipe import ConceptRecipe, Recipe, parse_steps
from pseudoword.spelling import did_you_mean


def varied(recipe: Recipe, ranges: Sequence[str], fixed: Collection[str] = ()) -> dict[str, Recipe]:
    """Return a recipe for each combination of values, by a name that a folder can have.

    A range is 'learning_rate=0.01,0.02' or, where values hold commas, 'NAME=["1:100,0.1", "1:200,0.1"]'.
    `fixed` are settings, by their dotted names, that cannot be varied here.
    Raises RecipeError, before anything is trained, for settings and values that no recipe takes.
    """
    asked = dict(_range(text, recipe) for text in ranges)
    if len(asked) < len(ranges):
        raise RecipeError("A setting is varied twice; give all of its values in one --vary.")
    for name in asked.keys() & set(fixed):
        raise RecipeError(f"{name} comes with each concept of the suite, so it cannot be varied with --suite.")
    found: dict[str, Recipe] = {}
    for values in itertools.product(*asked.values()):
        chosen = dict(zip(asked, values, strict=True))
        name, made = _folder_name(chosen), _with(recipe, chosen)
        for earlier, other in found.items():
            if earlier == name or _same(made, other):
                raise RecipeError(f"{earlier!r} and {name!r} are the same setting, given twice.")
        found[name] = made
    return found


def _same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes are equal, however their lengths are written."""
    lengths = {parse_steps(recipe.schedule.steps) for recipe in (one, other)}
    alike = dataclasses.replace(one, schedule=dataclasses.replace(one.schedule, steps=other.schedule.steps))
    return len(lengths) == 1 and alike == other


def _range(text: str, recipe: Recipe) -> tuple[str, list[Any]]:
    """Read a setting's full name and its values."""
    name, equals, given = text.partition("=")
    if not equals or not given:
        raise RecipeError(f"--vary needs a setting and its values, such as learning_rate=0.01,0.02, not {text!r}.")
    full = _full_name(name.strip(), recipe)
    if given.lstrip().startswith("["):
        values = _toml(given)
    else:
        values = [_value(part.strip()) for part in given.split(",")]
    if not isinstance(values, list) or not values:
        raise RecipeError(f"The values of {name} are none that TOML knows: {given!r}.")
    return full, values


def _value(text: str) -> Any:
    """Return one value: TOML's, a number that TOML would have otherwise, such as .001, or the text itself."""
    value = _toml(text)
    if value is not None:
        return value
    try:
        return float(text)
    except ValueError:
        return text


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return None


def _full_name(name: str, recipe: Recipe) -> str:
    """Return a setting's dotted name, which may be given short if only one section has it."""
    known = _settings(recipe)
    full = [one for one in known if name in (one, one.rpartition(".")[2], one.replace("concepts.0.", "concepts."))]
    if name.startswith("method.") and not full:
        return name  # each method has its own, and building the recipe refuses what it has not
    if len(full) > 1:
        raise RecipeError(f"Several sections have a setting {name!r}; say {' or '.join(full)}.")
    if not full:
        raise RecipeError(
            f"There is no setting {name!r} to vary; those of a recipe are {', '.join(known)}."
            f"{did_you_mean(name, {short for one in known for short in (one, one.rpartition('.')[2])})}"
        )
    return full[0]


def _settings(recipe: Recipe) -> list[str]:
    """Return the dotted names of everything that can be varied, the options of the recipe's method among them."""
    hints = typing.get_type_hints(Recipe)
    sections = {"concepts.0": ConceptRecipe, **{name: hints[name] for name in ("base", "data", "training", "schedule")}}
    own = {"concepts.0.token", "concepts.0.pictures", "training.seed"}
    names = [f"{name}.{field.name}" for name, kind in sections.items() for field in dataclasses.fields(kind)]
    names += [f"method.{field.name}" for field in dataclasses.fields(recipe.method)]  # pyright: ignore[reportArgumentType]
    return [name for name in names if name not in own] + ["engine.mixed_precision", "method.name"]


def _with(recipe: Recipe, chosen: Mapping[str, Any]) -> Recipe:
    """Return a recipe with some settings changed."""
    values = recipe.to_dict()
    if chosen.get("method.name", recipe.method.name) != recipe.method.name:
        values["method"] = {}  # another method has other options
    for name, value in chosen.items():
        *sections, last = name.split(".")
        table: Any = values
        for section in sections:
            table = table[int(section)] if section.isdigit() else table.setdefault(section, {})
        table[last] = value
    return Recipe.from_dict(values)


def _folder_name(chosen: Mapping[str, Any]) -> str:
    """Return a name for a choice of settings; one that a folder cannot have gets a hash."""
    told = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in chosen.items())
    safe = re.sub(r"[^\w.,=+-]", "_", told)[:100]
    return safe if safe == told else f"{safe}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"
