"""Files that are whole or not there: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from pseudoword.errors import RecipeError

T = TypeVar("T")
HELD = "another program holds it, such as a virus scanner or one that synchronises the folder"
"""What is said after `Cannot write to …:` in place of the system's own words."""
TEMPORARY = ".tmp-"
BUSY = (5, 32, 33)
"""Windows' errors while another program holds a file: access denied, sharing violation, lock violation."""
DELAYS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between tries. A virus scanner or a program that synchronises a folder lets go of a file within them."""
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl")
"""How a name ends that a person means as an image."""


def means_file(path: Path, endings: Collection[str]) -> bool:
    """Whether an output that may be a file or a folder is a file: the disk decides, and only then a known ending.

    `results-0.3` is a folder, whatever stands after its dot; so is a folder that is called `results.png`.
    """
    if path.exists():
        return not path.is_dir()
    return path.suffix.lower() in endings


def check_folder(path: Path) -> None:
    """Refuse a file where only a folder is possible; any name that is not on the disk yet can become a folder."""
    if path.exists() and not path.is_dir():
        raise RecipeError(f"--output must be a folder, but {str(path)!r} is a file; name another.")


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


def patiently(action: Callable[[], T], path: Path) -> T:
    """Carry out an action on a file or folder, and again for some seconds while another program holds it (Windows).

    PermissionError says so and names the path if it still does. Other errors are raised at once.
    """
    delays = iter(DELAYS)
    while True:
        try:
            return action()
        except PermissionError as error:
            delay = next(delays, None)
            if getattr(error, "winerror", None) not in BUSY:
                raise
            if delay is None:
                raise PermissionError(error.errno, HELD, str(path)) from error
            time.sleep(delay)


def rename(path: Path, to: Path) -> None:
    """Give a file or folder another name; a file that has it already is replaced."""
    patiently(lambda: path.replace(to), path)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; nothing happens if it is gone already."""
    if path.is_dir() and not path.is_symlink():
        patiently(lambda: shutil.rmtree(path), path)
    else:
        patiently(lambda: path.unlink(missing_ok=True), path)


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
        with patiently(lambda: temporary.open("wb"), temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    finally:
        remove(temporary)
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
            rename(path, old)
            rename(temporary, path)
            remove(old)
        else:
            rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)
    return path


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder that nobody else writes to."""
    for left in list(folder.glob(f"{TEMPORARY}*")):
        remove(left)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
