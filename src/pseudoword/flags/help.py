"""What `--help` prints of a command's options: the few that matter, or with `--help-all` every one, by section."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

COLUMN = 30
"""Where the text beside an option begins."""
LONGEST_CHOICE = 24
"""Characters of choices that stand beside the option's name; more stand in its text."""
KINDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "Path": "PATH"}


@dataclass(frozen=True)
class Flag:
    """An option or a positional argument, as help shows it."""

    name: str
    """The setting's name, with underscores."""
    usage: str
    """How it is written: '--learning-rate NUMBER'."""
    text: str
    section: str
    """Title of the settings that it is one of; empty for the command's own."""
    positional: bool = False


def page(
    kind: Any,
    prog: str,
    description: str,
    examples: Sequence[str] = (),
    first: Sequence[str] = (),
    *,
    default: Any = None,
    whole: bool = False,
) -> str:
    """Return the help of a command whose options are the dataclass `kind`, with `default`'s values as its defaults.

    `first` names the options that matter most; without any, all are shown. A `whole` page has the others below.
    """
    width = _width()
    flags = list(flags_of(kind, default))
    top = [flag for name in first for flag in flags if flag.name == name] or flags
    rest = [flag for flag in flags if flag not in top]
    places = " ".join(flag.usage for flag in flags if flag.positional)
    lines = [f"usage: {prog} {places} [OPTIONS]" if places else f"usage: {prog} [OPTIONS]"]
    for paragraph in description.strip().split("\n\n"):
        lines += ["", *_wrapped(" ".join(paragraph.split()), width)]
    if examples:
        lines += ["", _bold("Examples:" if len(examples) > 1 else "Example:")]
        for example in examples:
            lines += _command(example, width)
    lines += ["", _bold("Options that matter most:" if rest else "Options:")]
    for flag in top:
        lines += _row(flag, width)
    if rest and whole:
        for section in dict.fromkeys(flag.section for flag in rest):
            lines += ["", *map(_bold, _wrapped(section or "Other options:", width))]
            for flag in rest:
                if flag.section == section:
                    lines += _row(flag, width)
    elif rest:
        lines += ["", *_wrapped(f"{len(rest)} more options, by section: {prog} --help-all", width)]
    return "\n".join(lines)


def table(prog: str, description: str, commands: Mapping[str, str]) -> str:
    """Return the help of a command that has commands of its own, each with what it does."""
    width, column = _width(), max(map(len, commands)) + 4
    lines = [f"usage: {prog} COMMAND [OPTIONS]", "", *_wrapped(description, width), ""]
    for name, what in commands.items():
        first, *more = _wrapped(" ".join(what.split()), width - column)
        lines += [f"  {name}".ljust(column) + first, *(" " * column + line for line in more)]
    lines += ["", *_wrapped(f"{prog} COMMAND --help tells a command's options.", width)]
    return "\n".join(lines)


def flags_of(kind: Any, default: Any = None, section: str = "") -> Iterator[Flag]:
    """Yield the options of a dataclass, and of those that are its fields, in their order."""
    plain = typing.get_origin(kind) or kind
    arguments = dict(zip(getattr(plain, "__parameters__", ()), typing.get_args(kind), strict=False))
    hints, texts, homes = typing.get_type_hints(plain, include_extras=True), _texts(plain), _homes(plain)
    for own in dataclasses.fields(plain):
        hint = arguments.get(hints[own.name], hints[own.name])
        marks = getattr(hint, "__metadata__", ())
        hint = getattr(hint, "__origin__", hint) if marks else hint
        if tyro.conf.Suppress in marks:
            continue
        value = _default(own) if default is None else getattr(default, own.name)
        if dataclasses.is_dataclass(hint):
            title = f"{own.name.removesuffix('_options').capitalize()}: {_summary(hint)}"
            yield from flags_of(hint, None if value is dataclasses.MISSING else value, title)
        else:
            home = homes[own.name]
            inherited = f"{home.__name__}: {_summary(home)}" if home is not plain and not section else section
            yield _flag(own.name, hint, marks, value, texts.get(own.name, ""), inherited)


def _flag(name: str, hint: Any, marks: Sequence[Any], value: Any, text: str, section: str) -> Flag:
    optional = type(None) in typing.get_args(hint) and not _is_tuple(hint)
    if optional:
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)] or [str]
    several = _is_tuple(hint)
    one = typing.get_args(hint)[0] if several else hint
    choices = typing.get_args(one) if typing.get_origin(one) is Literal else ()
    positional, flag = tyro.conf.Positional in marks, "--" + name.replace("_", "-")
    beside = "{" + ",".join(map(str, choices)) + "}" if choices else KINDS.get(getattr(one, "__name__", ""), "TEXT")
    notes = [" ".join(text.split())]
    if choices and len(beside) > LONGEST_CHOICE:
        beside = "NAME"
        notes.append(f"{'Some' if several else 'One'} of {', '.join(map(str, choices))}.")
    if one is bool:
        usage = flag
        if tyro.conf.FlagCreatePairsOff not in marks:
            notes.append(f"(default: {flag})" if value is True else f"(default: {flag.replace('--', '--no-', 1)})")
    elif positional:
        usage = name.upper() + (" ..." if several else "")
    elif tyro.conf.UseAppendAction in marks:
        usage = f"{flag} {beside}"
    else:
        usage = f"{flag} {beside}" + (" ..." if several else "")
    if value is dataclasses.MISSING:
        notes += [] if positional else ["(required)"]
    elif one is not bool and value not in (None, "", ()):
        notes.append(f"(default: {_shown(value)})")
    return Flag(name, usage, " ".join(note for note in notes if note), section, positional)


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default(own: dataclasses.Field[Any]) -> Any:
    """Return a field's default; MISSING if it has none."""
    return own.default if own.default_factory is dataclasses.MISSING else own.default_factory()


def _summary(kind: Any) -> str:
    """Return the first sentence or paragraph of a class's docstring, in one line."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _homes(kind: type) -> dict[str, type]:
    """Return by name of a field the class that declares it."""
    homes: dict[str, type] = {}
    for parent in reversed(kind.__mro__):
        homes |= dict.fromkeys(inspect.get_annotations(parent), parent)
    return homes


def _texts(kind: type) -> dict[str, str]:
    """Return by name of a field the sentences below it, its own class's and those that it inherits."""
    texts: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            texts |= _texts_in(parent.__module__).get(parent.__name__, {})
    return texts


@functools.cache
def _texts_in(module: str) -> dict[str, dict[str, str]]:
    """Return by class of a module, and name of a field, the string below the field; Python itself drops it."""
    texts: dict[str, dict[str, str]] = {}
    for statement in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(statement, ast.ClassDef):
            own = texts.setdefault(statement.name, {})
            for line, below in zip(statement.body, statement.body[1:], strict=False):
                if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
                    continue
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    own[line.target.id] = str(below.value.value)
    return texts


def _row(flag: Flag, width: int) -> list[str]:
    """Return an option's lines: how it is written, and beside or below that its text."""
    usage, text = f"  {flag.usage}", _wrapped(flag.text, width - COLUMN)
    indented = [" " * COLUMN + line for line in text]
    if len(usage) + 2 > COLUMN or not text:
        return [usage, *indented]
    return [usage.ljust(COLUMN) + text[0], *indented[1:]]


def _command(example: str, width: int) -> list[str]:
    """Return a command on as few lines as fit, to be copied as they are: cut before flags, each with its values."""
    first, *pieces = re.split(r" (?=--)", example)
    lines = [f"  {first}"]
    for piece in pieces:
        if len(lines[-1]) + len(piece) + 3 <= width:
            lines[-1] += f" {piece}"
        else:
            lines[-1] += " \\"
            lines.append(f"    {piece}")
    return lines


def _width() -> int:
    return max(60, min(120, shutil.get_terminal_size().columns))


def _wrapped(text: str, width: int) -> list[str]:
    whole = text.replace("(default: ", "(default:\N{NO-BREAK SPACE}")
    lines = textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _bold(line: str) -> str:
    return f"\x1b[1m{line}\x1b[0m" if sys.stdout.isatty() else line
