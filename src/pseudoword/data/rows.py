"""Pictures and captions of a dataset on the Hub, through the `datasets` library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pseudoword.data import folder
from pseudoword.data.captions import COLUMNS, Caption
from pseudoword.data.folder import Found, Unusable
from pseudoword.errors import PicturesError, first_line

DATASET_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def is_dataset(pictures: str) -> bool:
    """Whether `pictures` names a dataset: it looks like 'owner/name', and no folder here is called so."""
    return DATASET_ID.fullmatch(pictures) is not None and not Path(pictures).exists()


def look(name: str, split: str) -> Found:
    """Return the pictures of a dataset's split, and captions if it has a column of them; PicturesError if it cannot."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PicturesError(
            f"There is no folder {name!r}; if it is a dataset on the Hub, install what reads it: "
            "pip install 'pseudoword[datasets]'."
        ) from error
    try:
        table = datasets.load_dataset(name, split=split)
    except Exception as error:  # of a dozen kinds: not there, no such split, offline, a script
        raise PicturesError(
            f"There is no folder {name!r}, and as a dataset it cannot be loaded: {first_line(error)}"
        ) from error
    image, caption = _columns(table.features, name)
    undecoded = table.cast_column(image, datasets.Image(decode=False))
    found = Found(Path(name), [], [])
    for i, row in enumerate(undecoded):
        path = Path(name) / f"row-{i}"
        try:
            found.pictures.append(folder.decoded(path, _content(row[image]), keep=True))
        except (Unusable, OSError) as error:
            found.skipped.append((path, str(error)))
        if caption and isinstance(row[caption], str):
            found.given[path] = Caption(" ".join(row[caption].split()), f"the column {caption!r}")
    if not found.pictures:
        why = f": {found.skipped[0][0].name} ({found.skipped[0][1]})" if found.skipped else ""
        raise PicturesError(f"No picture in the column {image!r} of the dataset {name!r}, split {split!r}{why}.")
    return found


def _columns(features: Any, name: str) -> tuple[str, str | None]:
    """Return the columns of pictures and of captions, by their types; of several captions the usual name."""
    images = [column for column, kind in features.items() if type(kind).__name__ == "Image"]
    if not images:
        raise PicturesError(f"The dataset {name!r} has no column of pictures: it has {', '.join(features)}.")
    texts = [column for column, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]
    usual = [column for column in COLUMNS if column in texts]
    return images[0], next(iter(usual or (texts if len(texts) == 1 else ())), None)


def _content(cell: Any) -> bytes:
    """Return the bytes of a picture that was not decoded: kept in the table, or in a file that it names."""
    if not isinstance(cell, dict):
        return b""
    return cell["bytes"] if cell.get("bytes") else Path(cell["path"]).read_bytes() if cell.get("path") else b""
