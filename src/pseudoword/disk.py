"""Files that are whole or not there: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from pseudoword.errors import RecipeError, RunError

TEMPORARY = ".tmp-"
PATIENCE = 5.0
"""Seconds in which a file that another program holds open is tried again."""
HOLDS = (5, 32, 33, 145)
"""Windows' errors while another program, such as a virus scanner or a synchronised folder, has a file open: access
denied, sharing violation, lock violation; and a folder not empty, as what was deleted in it is still open."""

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jxl")
"""How a name ends that a person means as an image."""
T = TypeVar("T")


class FileInUse(RunError, OSError):
    """A file that another program did not let go of, with what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.strerror = sentence

    def __str__(self) -> str:
        return str(self.args[0])


def patiently(path: Path, do: Callable[[], T]) -> T:
    """Return what `do` returns with a file, tried again for a few seconds while another program holds the file open.

    FileInUse if it never lets go. Any other error is raised at once, as it does not pass by waiting.
    """
    ends, wait = time.monotonic() + PATIENCE, 0.02
    while True:
        try:
            return do()
        except OSError as error:
            if getattr(error, "winerror", None) not in HOLDS:
                raise
            if time.monotonic() + wait > ends:
                raise FileInUse(
                    f"Another program holds {str(path)!r} open, such as a virus scanner or a synchronised folder "
                    f"({error.strerror}). Close it, or write to a folder that it leaves alone, and give the command "
                    "again; a run goes on with --resume latest."
                ) from error
        time.sleep(wait)
        wait = min(2 * wait, 0.5)


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
    try:
        yield
    except (BrokenPipeError, FileInUse):  # of the output on the screen; what is said already
        raise
    except OSError as error:
        if folder.is_file():
            raise RecipeError(f"{str(folder)!r} is a file, but a folder is to be written; name another.") from error
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
        with patiently(temporary, lambda: temporary.open("wb")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    finally:
        with suppress(OSError):  # what is left is swept away later; the first error is the one to say
            remove(temporary)
    sync_folder(path.parent)


def append(path: Path, text: str) -> None:
    """Add text at the end of a file."""
    with patiently(path, lambda: path.open("a", encoding="utf-8")) as file:
        file.write(text)


def move(source: Path, path: Path) -> Path:
    """Give a file or folder another name; a file takes the place of one that has the name."""
    return patiently(path, lambda: source.replace(path))


def remove(path: Path) -> None:
    """Delete a file, if it is there."""
    patiently(path, lambda: path.unlink(missing_ok=True))


def remove_folder(path: Path) -> None:
    """Delete a folder with all that is in it, if it is there."""

    def delete() -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

    patiently(path, delete)


def write_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder and let `fill` write into it; the folder appears under its name when it is complete."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    remove_folder(temporary)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        sync_folder(temporary)
        if path.exists():  # a folder cannot replace a full one: the old is moved away first
            _exchange(temporary, path)
        else:
            move(temporary, path)
    finally:
        with suppress(OSError):
            remove_folder(temporary)
    sync_folder(path.parent)
    return path


def _exchange(temporary: Path, path: Path) -> None:
    """Put a folder in the place of another; if it cannot be put there, the other is put back."""
    old = path.with_name(f"{TEMPORARY}old-{path.name}")
    remove_folder(old)
    move(path, old)
    try:
        move(temporary, path)
    except BaseException:
        move(old, path)
        raise
    with suppress(FileInUse):  # it is swept away later
        remove_folder(old)


def sweep(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder that nobody else writes to."""
    for left in list(folder.glob(f"{TEMPORARY}*")):
        remove_folder(left) if left.is_dir() else remove(left)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
