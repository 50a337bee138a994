"""Settings: frozen dataclasses made from plain values, which refuse what they do not know or cannot take."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

from pseudoword.errors import RecipeError


class MethodOptions(Protocol):
    """A method's options: a frozen dataclass that carries the method's name in the table."""

    name: ClassVar[str]


def settle_types(section: Any) -> None:
    """Make a section's values what their annotations say (a list a tuple, 1 a 1.0), or raise RecipeError."""
    for name, hint in typing.get_type_hints(type(section)).items():
        if typing.get_origin(hint) is not ClassVar:
            object.__setattr__(section, name, _convert(hint, getattr(section, name), name))


def at_least(minimum: int, **values: float) -> None:
    """Raise RecipeError naming the first value below `minimum`, or not finite."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= minimum):
            raise RecipeError(f"{name} must be at least {minimum}, but is {value}.")


def finite(**values: float) -> None:
    """Raise RecipeError naming the first value that is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise RecipeError(f"{name} must be a number, not {value}.")


def check_seed(**values: int) -> None:
    """Raise RecipeError naming the first value that no random generator here takes."""
    for name, value in values.items():
        if not 0 <= value < 2**63:
            raise RecipeError(f"{name} must be between 0 and 2^63 - 1, not {value}.")


def plain(value: Any) -> Any:
    """Return a dataclass as plain values, fields that are `None` left out."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: plain(v) for name, v in fields.items() if v is not None}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, keys joined by dots and list items numbered."""
    if isinstance(values, Mapping):
        items = list(values.items())
    elif isinstance(values, list):
        items = [(str(i), v) for i, v in enumerate(values)]
    else:
        return {prefix: values}
    return {k: v for name, inner in items for k, v in flat(inner, f"{prefix}.{name}".lstrip(".")).items()}


def named_number(text: str, usual: Mapping[str, float | None], setting: str) -> tuple[str, float | None]:
    """Read 'NAME' or 'NAME=NUMBER', where `usual` has the names and their usual numbers, None for those without one."""
    name, equals, number = (part.strip() for part in text.partition("="))
    if name not in usual:
        near = difflib.get_close_matches(name, usual, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(usual)}."
        raise RecipeError(f"There is no {setting} {name!r}; {hint}")
    if not equals:
        return name, usual[name]
    if usual[name] is None:
        raise RecipeError(f"{name} takes no number; write {setting} {name!r}.")
    try:
        return name, float(number)
    except ValueError:
        raise RecipeError(f"{setting} must look like {name!r} or '{name}={usual[name]:g}', not {text!r}.") from None


def matches(name: str, known: Sequence[str]) -> list[str]:
    """Return which of the dotted names a setting's name may stand for, given whole or by its last part alone."""
    several = []
    for full in known:
        short = full.rpartition(".")[2]
        if name in (full, short, full.replace("concepts.0.", "concepts."), full.removesuffix(".name")):
            several.append(full)
    return several


def full_name(name: str, known: Sequence[str]) -> str | None:
    """Return the dotted name that a setting's name stands for, None for none; RecipeError if it may be several."""
    several = matches(name, known)
    if len(several) > 1:
        raise RecipeError(f"{name!r} may be {' or '.join(several)}; write which one.")
    return several[0] if several else None


def build(cls: type, values: Any, where: str) -> Any:
    """Make the dataclass `cls` from a table of plain values, refusing unknown keys and wrong types by name."""
    if not isinstance(values, Mapping):
        raise RecipeError(f"[{where}] must be a table of values, not {values!r}.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}."
            raise RecipeError(f"Unknown setting {name!r}{f' in [{where}]' if where else ''}; {hint}")
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f) and f.name not in values]
    if required:
        raise RecipeError(f"Missing {', '.join(required)}{f' in [{where}]' if where else ''}.")
    return cls(**{name: _convert(hints[name], v, f"{where}.{name}".lstrip(".")) for name, v in values.items()})


def _is_required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the annotated type, or say what was expected and what came."""
    if hint is MethodOptions:
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            raise RecipeError(f"{where} must be a method's options, such as ClassicOptions(), not {value!r}.")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        [inner, *_] = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            in_toml = f"[[{where}]]" if dataclasses.is_dataclass(inner) else f'{where} = ["…"]'
            raise RecipeError(f"{where} must be a list, {in_toml} in TOML, not {value!r}.")
        return tuple(_convert(inner, v, f"{where}.{i}") for i, v in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(hint) if a is not types.NoneType)
        return None if value is None else _convert(inner, value, where)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise RecipeError(f"{where} must be one of {', '.join(map(repr, typing.get_args(hint)))}, not {value!r}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and type(value) is int and where.endswith("steps"):  # a length with its unit left out
        return str(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where} must be of type {hint.__name__}, not {value!r}.")
    return value
