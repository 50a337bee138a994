"""Files that are whole or not there: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pseudoword.errors import RecipeError

TEMPORARY = ".tmp-"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write to a folder in this block; RecipeError says why that cannot be."""
    if folder.is_file():
        raise RecipeError(f"{str(folder)!r} is a file, but a folder is to be written; name another.")
    try:
        yield
    except BrokenPipeError:  # of the output on the screen
        raise
    except OSError as error:
        raise RecipeError(f"Cannot write to the folder {str(folder)!r}: {error.strerror}.") from error


def write(path: Path, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old one or the whole new one, whenever the process dies."""
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that takes its place when this block ends; not at all if the block raises."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder and let `fill` write into it; the folder appears under its name when it is complete."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        sync_folder(temporary)
        if path.exists():  # a folder cannot replace a full one: the old is moved away first
            old = path.with_name(f"{TEMPORARY}old-{path.name}")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)
    return path


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder that nobody else writes to."""
    for left in list(folder.glob(f"{TEMPORARY}*")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
