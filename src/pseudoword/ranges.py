"""Ranges: settings that a sweep varies, and the recipes that their combinations make."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import itertools
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pseudoword.errors import RecipeError
from pseudoword.recipe import Recipe, parse_steps, setting_names
from pseudoword.settings import full_name

LISTS = ("data.augment",)
"""Settings that are lists, of which one member may be given alone."""


def varied(recipe: Recipe, ranges: Sequence[str], fixed: Collection[str] = ()) -> dict[str, Recipe]:
    """Return a recipe for each combination of values, by a name that a folder can have.

    A range is 'learning_rate=0.01,0.02' or, where values hold commas, 'NAME=["1:100,0.1", "1:200,0.1"]'.
    `fixed` are settings, by their dotted names, that cannot be varied here.
    Raises RecipeError, before anything is trained, for settings and values that no recipe takes.
    """
    asked = dict(_range(text) for text in ranges)
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


def _range(text: str) -> tuple[str, list[Any]]:
    """Read a setting's full name and its values."""
    name, equals, given = text.partition("=")
    if not equals or not given:
        raise RecipeError(f"--vary needs a setting and its values, such as learning_rate=0.01,0.02, not {text!r}.")
    full = _full_name(name.strip())
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


def _full_name(name: str) -> str:
    """Return a setting's dotted name, which may be given short if only one section has it."""
    known = _settings()
    full = full_name(name, known)
    if full is not None:
        return full
    if name.startswith("method."):
        return name  # building the recipe says what its method has instead
    near = difflib.get_close_matches(name, [*known, *(one.rpartition(".")[2] for one in known)], 1)
    hint = f"did you mean {near[0]!r}?" if near else f"those of a recipe are {', '.join(known)}."
    raise RecipeError(f"There is no setting {name!r} to vary; {hint}")


def _settings() -> list[str]:
    """Return the dotted names of everything that can be varied."""
    own = {"concepts.0.token", "concepts.0.pictures", "training.seed"}
    sections = ("concepts.", "base.", "method.", "data.", "training.", "schedule.")
    return [
        name
        for name in setting_names()
        if name == "engine.mixed_precision" or (name.startswith(sections) and name not in own)
    ]


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
        table[last] = [value] if name in LISTS and not isinstance(value, list) else value
    return Recipe.from_dict(values)


def _folder_name(chosen: Mapping[str, Any]) -> str:
    """Return a name for a choice of settings; one that a folder cannot have gets a hash."""
    told = ",".join(f"{name.rpartition('.')[2]}={value}" for name, value in chosen.items())
    safe = re.sub(r"[^\w.,=+-]", "_", told)[:100]
    return safe if safe == told else f"{safe}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"
