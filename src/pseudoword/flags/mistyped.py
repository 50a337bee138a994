"""Mistyped options: what was probably meant, where the parser of options does not say so itself."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence

from pseudoword.errors import RecipeError
from pseudoword.spelling import did_you_mean, nearest


def check_choice(flag: str, choices: Sequence[str], arguments: Sequence[str]) -> None:
    """Raise RecipeError if what is given for a flag is none of its choices but like one."""
    for i, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name != flag:
            continue
        value = value if equals else " ".join(arguments[i + 1 : i + 2])
        if value not in choices and nearest(value, choices):
            raise RecipeError(f"{flag} is none of {', '.join(choices)}, but {value!r}.{did_you_mean(value, choices)}")


def check_flags(kinds: Sequence[type], arguments: Sequence[str]) -> None:
    """Raise RecipeError if a flag is unknown but like one that there is, of options as dataclasses.

    The parser says so too, but not while options that it cannot do without are missing.
    """
    flags = [flag for kind in kinds for flag in _flags(kind)]
    for word in arguments:
        name = word.partition("=")[0]
        if not name.startswith("--") or _is_known(name, flags):
            continue
        hint = did_you_mean(name, flags)
        if hint:
            raise RecipeError(f"There is no option {name}.{hint}")


def _is_known(name: str, flags: Sequence[str]) -> bool:
    dashed = name.replace("_", "-")
    return name == "--" or name.startswith("--help") or dashed in flags or dashed.replace("--no-", "--", 1) in flags


def _flags(kind: type) -> Iterator[str]:
    """Yield the flags of a dataclass's fields, and of the fields of those that are dataclasses."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint))
        else:
            yield f"--{name.replace('_', '-')}"
