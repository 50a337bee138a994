"""A folder of pictures: which files are pictures, and why the others are not."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pseudoword.data import images
from pseudoword.data.captions import Caption
from pseudoword.errors import PicturesError

log = logging.getLogger(__name__)

SMALLEST = 16
"""Pixels of a side below which nothing can be learned."""
METADATA = "metadata.jsonl"
"""Where a Hugging Face image folder keeps captions."""
MASK = "-mask"
"""How the name of a picture's mask ends."""
PLUGINS = {
    ".heic": ("pillow-heif", "pillow_heif"),
    ".heif": ("pillow-heif", "pillow_heif"),
    ".jxl": ("pillow-jxl-plugin", "pillow_jxl"),
}
"""Kinds of pictures that Pillow reads with a plugin only: what to install, and the module that brings it."""


@dataclass(frozen=True)
class Picture:
    """A picture file that decodes."""

    path: Path
    sha256: str
    """Hash of the file's bytes."""
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    pixels: str
    """Hash of the pixels: equal for copies saved under other names or in another format without loss."""
    content: bytes | None = field(default=None, repr=False)
    """The bytes of a picture that is no file, but a row of a dataset."""

    @property
    def source(self) -> Path | io.BytesIO:
        """What to read it from."""
        return self.path if self.content is None else io.BytesIO(self.content)

    @property
    def fact(self) -> str:
        """What a resumed run must find again: the name, and enough of the hash."""
        return f"{self.path.name} {self.sha256[:16]}"


class Unusable(Exception):
    """Why a file cannot be used as a picture."""


@dataclass(frozen=True)
class Found:
    """What a folder, or a dataset, holds."""

    folder: Path
    pictures: list[Picture]
    skipped: list[tuple[Path, str]]
    """What cannot be used as a picture, and why."""
    texts: dict[Path, Path] = field(default_factory=dict)
    """Pictures that have a NAME.txt beside them, and that."""
    metadata: list[Path] = field(default_factory=list)
    """Files named metadata.jsonl."""
    masks: dict[Path, Path] = field(default_factory=dict)
    """Pictures that have a NAME-mask beside them, and that."""
    given: dict[Path, Caption] = field(default_factory=dict)
    """Captions that pictures of a dataset bring with them."""

    def tell(self) -> None:
        """Name what is not used, once, and pictures that are the same, pixel by pixel."""
        if self.skipped:
            log.warning("Not used from %s: %s", self.folder, _reasons(self.folder, self.skipped))
        for same in duplicates(self.pictures):
            log.warning("The same picture: %s", ", ".join(str(p.path.relative_to(self.folder)) for p in same))


def scan(folder: str | Path, *, recursive: bool = False) -> list[Picture]:
    """Return the pictures of a folder by name and say what else is there; PicturesError if there are none."""
    found = look(folder, recursive=recursive)
    found.tell()
    return found.pictures


def look(folder: str | Path, *, recursive: bool = False, masks: bool = False) -> Found:
    """Return what is in a folder, pictures by name.

    Hidden files and folders are passed over, and folders in it unless `recursive`. NAME-mask beside NAME is a mask,
    not a picture; with `masks` also where there is no NAME. Raises PicturesError if the folder is missing or holds no
    picture.
    """
    folder = Path(folder).expanduser()
    if folder.is_file():
        raise PicturesError(
            f"{str(folder)!r} is a file, not a folder; give the folder that holds it, such as {str(folder.parent)!r}."
        )
    if not folder.is_dir():
        raise PicturesError(f"There is no folder {str(folder)!r}; give the folder that holds your pictures.")
    files = sorted(_files(folder, recursive))
    metadata = [path for path in files if path.name == METADATA]
    pictures, skipped, masked = [], [], _masked(files)
    for path in files:
        try:
            if path in masked and not masks:
                raise Unusable("a mask")
            if path not in masked and masks and path.stem.endswith(MASK):
                raise Unusable("a mask without its picture; rename it if it is none")
            if path not in masked:
                pictures.append(read(path))
        except Unusable as error:
            skipped.append((path, str(error)))
    texts = {p.path: text for p in pictures if (text := p.path.with_suffix(".txt")).is_file() and text != p.path}
    skipped = [(path, why) for path, why in skipped if path not in {*texts.values(), *metadata}]
    if not pictures:
        seen = f"only {_reasons(folder, skipped)}" if skipped else "no files"
        raise PicturesError(f"No picture in {str(folder)!r}: {seen}. Put three to six pictures of the concept there.")
    of = {(path.parent, path.stem): mask for mask, path in masked.items() if masks}
    own = {p.path: of[p.path.parent, p.path.stem] for p in pictures if (p.path.parent, p.path.stem) in of}
    return Found(folder, pictures, skipped, texts, metadata, own)


def _masked(files: Sequence[Path]) -> dict[Path, Path]:
    """Return the masks among files, and what each is a mask of."""
    others = {(path.parent, path.stem): path for path in files if path.suffix not in (".txt", ".jsonl")}
    named = {path: (path.parent, path.stem.removesuffix(MASK)) for path in others.values() if path.stem.endswith(MASK)}
    return {path: others[name] for path, name in named.items() if name in others}


def _reasons(folder: Path, skipped: Sequence[tuple[Path, str]]) -> str:
    return ", ".join(f"{path.relative_to(folder)} ({why})" for path, why in skipped)


def _files(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield what is in a folder and not hidden."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif recursive and not path.is_symlink():  # a link may lead round in a circle
            yield from _files(path, recursive)


def read(path: Path) -> Picture:
    """Decode a file to the last pixel; Unusable says why it is no picture."""
    if not path.is_file():
        raise Unusable("not a file" if path.exists() else "broken link")
    try:
        return decoded(path, path.read_bytes())
    except OSError as error:
        raise Unusable(str(error)) from error


def decoded(path: Path, content: bytes, *, keep: bool = False) -> Picture:
    """Decode a file's bytes, and `keep` them in the picture if there is no such file; Unusable says why it cannot."""
    if not content:
        raise Unusable("zero bytes")
    try:
        if path.suffix.lower() in PLUGINS:
            _plug_in(PLUGINS[path.suffix.lower()][1])
        image = images.read_rgb(io.BytesIO(content))
    except Image.UnidentifiedImageError as error:
        package, module = PLUGINS.get(path.suffix.lower(), ("", ""))
        missing = package and sys.modules.get(module) is None
        raise Unusable(f"needs pip install {package}" if missing else "not a picture") from error
    except Image.DecompressionBombError as error:
        raise Unusable("too many pixels to be safe") from error
    except Exception as error:  # Pillow's decoders raise whatever their format makes of a broken file
        raise Unusable(str(error) or type(error).__name__) from error
    if min(image.size) < SMALLEST:
        raise Unusable(f"{image.width} x {image.height} pixels, under {SMALLEST}")
    pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    return Picture(path, hashlib.sha256(content).hexdigest(), image.size, pixels, content if keep else None)


def _plug_in(module: str) -> None:
    """Let Pillow read another kind of picture, if what it takes is installed."""
    with contextlib.suppress(ImportError):
        plugin = importlib.import_module(module)
        if hasattr(plugin, "register_heif_opener"):  # the others register themselves when imported
            plugin.register_heif_opener()


def duplicates(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Return the groups of pictures that are the same, pixel by pixel."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.pixels, []).append(picture)
    return [group for group in groups.values() if len(group) > 1]
