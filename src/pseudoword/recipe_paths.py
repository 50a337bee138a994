"""Paths in a recipe file: read from beside the file, written so that they hold from every directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

OF_A_CONCEPT = ("pictures", "initializer", "templates")
OF_THE_BASE = ("model", "config", "tokenizer", "vae")
NEVER_A_PATH = ("toybox",)
"""Models that are inside the package, whatever lies on the disk under their names."""


def read_beside(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return a recipe's plain values with relative paths found from the recipe's file.

    A relative path is one beside the file. Where nothing is there, but in the current directory, it means that: so
    recipes that were written for one directory still work there. What is on the disk under neither stays as it is: a
    word to start from, or an id on the Hub. The run's folder may be new, so it is beside the file unless it is there
    already; a run's own recipe calls it `.`.
    """

    def place(text: str) -> str:
        if Path(text).expanduser().is_absolute() or not _may_be_a_path(text):
            return text
        beside = file.parent / text
        return str(beside) if _exists(beside) else text

    found = _replaced(values, place)
    folder = _folder(values)
    if folder is not None and not Path(folder).expanduser().is_absolute():
        found["output"] = {**values["output"], "folder": _run_folder(folder, file)}
    return found


def absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain values with every path that is on the disk made absolute, and the run's folder as `.`.

    So the file in a run's folder means the same from any directory, and wherever the run is moved.
    """

    def place(text: str) -> str:
        path = Path(text).expanduser()
        return str(path.absolute()) if _may_be_a_path(text) and _exists(path) else text

    found = _replaced(values, place)
    found["output"] = {**found.get("output", {}), "folder": "."}
    return found


def _replaced(values: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """Return the values with `place` of each that may be a path; what has another shape is refused elsewhere."""
    replaced = dict(values)
    if isinstance(values.get("base"), Mapping):
        replaced["base"] = _of_table(values["base"], OF_THE_BASE, place)
    if isinstance(values.get("concepts"), list):
        replaced["concepts"] = [
            _of_table(concept, OF_A_CONCEPT, place) if isinstance(concept, Mapping) else concept
            for concept in values["concepts"]
        ]
    return replaced


def _of_table(table: Mapping[str, Any], names: tuple[str, ...], place: Callable[[str], str]) -> dict[str, Any]:
    replaced = dict(table)
    for name in _texts(table, names):
        if name != "initializer" or _is_no_plain_word(table[name]):
            replaced[name] = place(table[name])
    return replaced


def _texts(table: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if isinstance(table.get(name), str))


def _is_no_plain_word(text: str) -> bool:
    """Whether what a word starts from names a file: `cat` beside a folder `cat` is the word."""
    return text != Path(text).name or "." in text


def _may_be_a_path(text: str) -> bool:
    return bool(text.strip()) and text not in NEVER_A_PATH


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no disk can have
        return False


def _folder(values: Mapping[str, Any]) -> str | None:
    output = values.get("output")
    folder = output.get("folder") if isinstance(output, Mapping) else None
    return folder if isinstance(folder, str) and folder else None


def _run_folder(folder: str, file: Path) -> str:
    """Return the run's folder that a recipe beside it, or inside of it, means."""
    beside = file.parent / folder
    if _exists(beside):
        return str(beside)
    if file.parent.absolute().name == Path(folder).name:  # a run's own recipe, as it was written before 0.2
        return str(file.parent)
    return folder if _exists(Path(folder)) else str(beside)
