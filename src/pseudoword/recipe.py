"""The recipe: every choice of a run, frozen and typed, read from TOML or flags, checked before any weight is loaded."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pseudoword import recipe_paths
from pseudoword.errors import RecipeError
from pseudoword.sections import (
    BaseModel,
    ConceptRecipe,
    Data,
    EngineRecipe,
    Fit,
    LrScheduler,
    Output,
    Precision,
    Sampler,
    Schedule,
    Tracker,
    Training,
    Validation,
    check_sampler,
    parse_steps,
)
from pseudoword.settings import MethodOptions, build, flat, full_name, plain, settle_types
from pseudoword.spelling import did_you_mean

__all__ = [
    "BaseModel",
    "ConceptRecipe",
    "Data",
    "EngineRecipe",
    "Fit",
    "LrScheduler",
    "Output",
    "Precision",
    "Recipe",
    "Sampler",
    "Schedule",
    "Tracker",
    "Training",
    "Validation",
    "check_sampler",
    "parse_steps",
]

OF_THE_WORD = ("concepts", "base", "method", "data", "training", "schedule", "dataset")
"""Sections that the word depends on; of the engine it depends on the precision alone, but for the last bits."""


@dataclass(frozen=True)
class Recipe:
    """Every choice of a run. Refuses unknown or contradictory values on construction."""

    concepts: tuple[ConceptRecipe, ...]
    base: BaseModel
    method: MethodOptions
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    schedule: Schedule = field(default_factory=Schedule)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    validation: Validation = field(default_factory=Validation)
    output: Output = field(default_factory=Output)
    dataset: str | None = None
    """The class of the dataset that `train(recipe, dataset=…)` was given. Such a run cannot be repeated without it."""

    def __post_init__(self) -> None:
        settle_types(self)
        if not self.concepts:
            raise RecipeError("A recipe needs at least one concept: a token, its pictures and an initializer.")
        if len(self.concepts) > 1:
            self._check_several()
        if self.engine.memory == "lowest" and self.output.full_pipeline:
            raise RecipeError(
                "memory is 'lowest', which holds the model in fewer bits, so full_pipeline cannot write it; "
                "choose 'low', or leave full_pipeline out."
            )
        if self.engine.engine != "torch" and self.output.full_pipeline:
            raise RecipeError(
                f"full_pipeline writes a pipeline of diffusers', which is the torch engine's, but engine is "
                f"{self.engine.engine!r}; leave full_pipeline out."
            )
        check_sampler(self.engine.engine, self.validation.validation_sampler)
        for concept in self.concepts:
            if concept.templates is not None and self.data.captions == "files":
                raise RecipeError(f"captions is 'files', but templates is {concept.templates!r}; use one of the two.")

    def _check_several(self) -> None:
        """Refuse what a run of several concepts cannot do."""
        tokens = [concept.token for concept in self.concepts]
        twice = sorted({token for token in tokens if tokens.count(token) > 1})
        if twice:
            raise RecipeError(f"The token {twice[0]!r} is that of several concepts; give each its own.")
        for name, length in (("steps", self.schedule.steps), ("validation_steps", self.validation.validation_steps)):
            if parse_steps(length, name)[1] == "epochs":
                raise RecipeError(
                    f"{name} is {length!r}, but {len(tokens)} concepts may have epochs of several lengths; give steps."
                )
        if self.output.push_to_hub:
            raise RecipeError(
                f"push_to_hub is for a run of one concept, but there are {len(tokens)}; "
                "push each word's folder with 'pseudoword push' when the run is done."
            )

    def alone(self, concept: ConceptRecipe) -> Recipe:
        """Return the recipe of one of the concepts by itself."""
        return dataclasses.replace(self, concepts=(concept,))

    def of_the_word(self) -> dict[str, Any]:
        """Return the choices that the word depends on, as plain values by dotted name."""
        values = {name: value for name, value in self.to_dict().items() if name in OF_THE_WORD}
        eight_bits = {"memory": "lowest"} if self.engine.memory == "lowest" else {}
        return flat({**values, "engine": {"mixed_precision": self.engine.precision, **eight_bits}})

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, `None` left out, ready for TOML."""
        values = plain(self)
        values["method"] = {"name": self.method.name, **values["method"]}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values; `method` is a table with the method's name and its options."""
        from pseudoword.methods import OPTIONS  # a door upwards, as in `Concept.load`: recipes are made by name

        values = {name: choice for name, choice in values.items() if name != recipe_paths.WRITTEN_IN}
        values = _spelled_out(values)
        method = values.pop("method", {})
        if not isinstance(method, Mapping):
            raise RecipeError(f"[method] must be a table of values, not {method!r}.")
        method = dict(method)
        name = method.pop("name", "classic")
        if name not in list(OPTIONS):
            hint = did_you_mean(name, OPTIONS) if isinstance(name, str) else ""
            raise RecipeError(f"There is no method {name!r}; the methods are {', '.join(sorted(OPTIONS))}.{hint}")
        values["method"] = build(OPTIONS[name], method, "method")
        return build(cls, values, "")

    @classmethod
    def read(cls, path: str | Path, defaults: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe from a TOML file or a run's folder; `defaults` are plain values for what it leaves out.

        Relative paths in it are relative to the file; see `recipe_paths.read_beside`.
        """
        path = Path(path).expanduser()
        path = path / recipe_paths.NAME if path.is_dir() else path
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"Cannot read the recipe {path}: {error}.") from error
        try:
            return cls.from_dict(_over(defaults or {}, recipe_paths.read_beside(_spelled_out(values), path)))
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error


def setting_names() -> list[str]:
    """Return the dotted names of all settings of a recipe: those of one concept, and of every method."""
    from pseudoword.methods import OPTIONS  # a door upwards, as in `Recipe.from_dict`

    hints = typing.get_type_hints(Recipe)
    sections = {
        name: hints[name] for name in ("base", "data", "training", "schedule", "engine", "validation", "output")
    }
    kinds = [("concepts.0", ConceptRecipe), *sections.items(), *(("method", options) for options in OPTIONS.values())]
    names = ["method.name"]
    for section, kind in kinds:
        names += [f"{section}.{field.name}" for field in dataclasses.fields(kind)]
    return list(dict.fromkeys(names))


def _spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with settings that stand outside of all sections in the one that has them.

    RecipeError if there are several such settings, or if the section has it too.
    """
    sections = [field.name for field in dataclasses.fields(Recipe)]
    spelled = {name: value for name, value in values.items() if name in sections}
    for name in [name for name in values if name not in sections]:
        full = full_name(name, setting_names())
        if full is None:
            spelled[name] = values[name]  # refused below, with what is known
            continue
        section, _, short = full.rpartition(".")
        if section == "concepts.0":
            concepts = spelled.get("concepts", [{}])
            if not isinstance(concepts, list | tuple) or len(concepts) != 1 or not isinstance(concepts[0], Mapping):
                raise RecipeError(f"{name} is a setting of a concept; write it into the [[concepts]] that it is for.")
            table = dict(concepts[0])
            spelled["concepts"] = [table]
        else:
            given = spelled.get(section, {})
            if not isinstance(given, Mapping):
                raise RecipeError(f"[{section}] must be a table of values, not {given!r}.")
            table = spelled[section] = dict(given)
        if short in table:
            raise RecipeError(f"{name} is set twice: outside of all sections, and in [{section}].")
        table[short] = values[name]
    return spelled


def _over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values over defaults, tables and lists of one table key by key."""
    merged = {**defaults, **values}
    for name in defaults.keys() & values.keys():
        match defaults[name], values[name]:
            case (Mapping() as below, Mapping() as above):
                merged[name] = {**below, **above}
            case ([Mapping() as below], [Mapping() as above]):
                merged[name] = [{**below, **above}]
    return merged
