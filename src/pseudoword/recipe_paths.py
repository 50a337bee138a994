"""Paths in a recipe file: read from beside the file, written so that they hold from every directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

OF_A_CONCEPT = ("pictures", "initializer", "templates")
OF_THE_BASE = ("model", "config", "tokenizer", "vae")
NEVER_A_PATH = ("toybox",)
"""Models that are inside the package, whatever lies on the disk under their names."""


WRITTEN_IN = "written_in"
"""The folder in which a run wrote its recipe. Paths that are gone are looked for where they lie from there."""
NAME = "recipe.toml"
"""What a run calls its recipe."""
LOG = "log.jsonl"


def read_beside(values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return a recipe's plain values with paths found from the recipe's file.

    A relative path is one beside the file. Where nothing is there, but in the current directory, it means that: so
    recipes that were written for one directory still work there. An absolute path that a run wrote and that is gone has
    moved along with the run's folder, if it lies as it did from there. What is on the disk under none of these stays as
    it is: a word to start from, or an id on the Hub. The run's folder may be new, so it is beside the file unless it is
    there already; a run's own recipe calls it `.`, and a copy of that recipe elsewhere has none.
    """
    values = dict(values)
    written_in = values.pop(WRITTEN_IN, None)
    begun_in = _begun_in(values, file)

    def place(text: str) -> str:
        if not _may_be_a_path(text) or text.startswith("~"):
            return text
        if Path(text).is_absolute():
            moved = None if _exists(Path(text)) else _from_there(text, written_in)
            return str(file.parent / moved) if moved and _exists(file.parent / moved) else text
        for folder in (file.parent, begun_in):
            if folder is not None and _exists(folder / text):
                return str(folder / text)
        return text

    found = _replaced(values, place)
    folder = _folder(values)
    if folder == "." and written_in is not None and not _is_a_runs_own(file):
        found["output"] = {name: choice for name, choice in values["output"].items() if name != "folder"}
    elif folder is not None and not Path(folder).expanduser().is_absolute():
        found["output"] = {**values["output"], "folder": _run_folder(folder, file)}
    return found


def written(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a recipe's plain values as a run writes them into its folder.

    They mean the same from any directory, and wherever the folder is moved, alone or together with the pictures.
    """
    return {WRITTEN_IN: str(folder.absolute()), **absolute(values)}


def absolute(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's plain values with every path that is on the disk made absolute, and the run's folder as `.`."""

    def place(text: str) -> str:
        path = Path(text).expanduser()
        if not _may_be_a_path(text) or not _exists(path):
            return text
        return str(path.resolve() if ".." in path.parts else path.absolute())

    found = _replaced(values, place)
    found["output"] = {**found.get("output", {}), "folder": "."}
    return found


def _from_there(text: str, written_in: object) -> str | None:
    """Return the way to a path from the folder in which its recipe was written."""
    if not isinstance(written_in, str):
        return None
    try:
        return os.path.relpath(text, written_in)
    except ValueError:  # on another drive
        return None


def _begun_in(values: Mapping[str, Any], file: Path) -> Path | None:
    """Return the directory in which a run was begun whose recipe has relative paths, as runs wrote them before."""
    folder, here = _folder(values), file.parent.absolute()
    parts = Path(folder).parts if folder and not Path(folder).is_absolute() else ()
    if file.name != NAME or not parts or ".." in parts or here.parts[-len(parts) :] != parts:
        return None
    return Path(*here.parts[: -len(parts)])


def _is_a_runs_own(file: Path) -> bool:
    """Whether a recipe lies in the folder of a run, or of one of a run's words, and is no copy of that."""
    here = file.parent.absolute()
    return file.name == NAME and any(_exists(folder / LOG) for folder in (here, here.parent.parent))


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
    if file.parent.absolute().name == Path(folder).name:  # a run's own recipe, as runs wrote them before
        return str(file.parent)
    return folder if _exists(Path(folder)) else str(beside)
