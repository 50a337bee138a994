"""A folder of pictures: which files are pictures, and why the others are not."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pseudoword.data import images
from pseudoword.errors import PicturesError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """A picture file that decodes, with the hash of its bytes."""

    path: Path
    sha256: str


def scan(folder: str | Path) -> list[Picture]:
    """Return the pictures of a folder by name; hidden files and subfolders are passed over, others named once.

    Raises PicturesError if the folder is missing or holds no picture.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise PicturesError(f"There is no folder {str(folder)!r}; give the folder that holds your pictures.")
    files = sorted(p for p in folder.iterdir() if not p.is_dir() and not p.name.startswith("."))
    pictures, skipped = [], []
    for path in files:
        reason = unreadable(path)
        if reason is None:
            pictures.append(Picture(path, hashlib.sha256(path.read_bytes()).hexdigest()))
        else:
            skipped.append(f"{path.name} ({reason})")
    if not pictures:
        seen = f"only {', '.join(skipped)}" if skipped else "no files"
        raise PicturesError(f"No picture in {str(folder)!r}: {seen}. Put three to six pictures of the concept there.")
    if skipped:
        log.warning("Not used from %s: %s", folder, ", ".join(skipped))
    return pictures


def unreadable(path: Path) -> str | None:
    """Return why a file cannot be used as a picture, or None if it decodes to the last pixel."""
    try:
        if not path.exists():
            return "broken link"
        if not path.is_file():
            return "not a file"
        if path.stat().st_size == 0:
            return "zero bytes"
        images.read_rgb(path)
    except Image.UnidentifiedImageError:
        return "not a picture"
    except Image.DecompressionBombError:
        return "too many pixels to be safe"
    except Exception as error:  # Pillow's decoders raise whatever their format makes of a broken file
        return str(error) or type(error).__name__
    return None
