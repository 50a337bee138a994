"""Reading a command line: its help, flags by the names that they had before, and the rest with tyro."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import tyro

from pseudoword.flags import help as help_page
from pseudoword.flags.mistyped import check_flags

T = TypeVar("T")

HELP = ("-h", "--help", "--help-all")

RUN_FOLDER = {"--output": "--folder"}
"""A run's folder is --folder everywhere; --output is where a command writes anything else."""


def parse(
    kind: type[T],
    arguments: Sequence[str],
    prog: str,
    description: str,
    *,
    examples: Sequence[str] = (),
    first: Sequence[str] = (),
    earlier: Mapping[str, str] | None = None,
    default: T | None = None,
) -> T:
    """Return the options of a command line; SystemExit once help was printed, or if they are not understood.

    RecipeError names the option that was probably meant by one that there is not.

    `first` names the options that `--help` shows; `earlier` has today's flags by other names that are taken as well.
    """
    words = current(arguments, earlier or {})
    if asked := set(HELP).intersection(words):
        whole = "--help-all" in asked
        print(help_page.page(kind, prog, description, examples, first, default=default, whole=whole))
        raise SystemExit(0)
    check_flags([get_origin(kind) or kind, *get_args(kind)], words)
    options: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        kind, args=words, prog=prog, config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff), **options
    )


def usage(prog: str, description: str, commands: Mapping[str, str]) -> str:
    """Return the help of a command that has commands of its own, each with what it does."""
    return help_page.table(prog, description, commands)


def current(arguments: Sequence[str], earlier: Mapping[str, str]) -> list[str]:
    """Return a command line with today's flags in place of earlier ones, written with hyphens or underscores."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        words.append(earlier.get(name.replace("_", "-"), name) + equals + value)
    return words
