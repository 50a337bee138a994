"""Captions that pictures bring with them: NAME.txt beside NAME.png, or a Hugging Face image folder's metadata.jsonl."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from pseudoword.data.captions import COLUMNS, Caption, read_text, with_word
from pseudoword.data.folder import METADATA, Found, Picture
from pseudoword.errors import CaptionError

log = logging.getLogger(__name__)


def of_pictures(found: Found) -> list[Caption]:
    """Return each picture's caption; CaptionError names the first that has none. NAME.txt comes before metadata.jsonl.

    Lines of a caption are joined by spaces.
    """
    listed = dict(entry for metadata in found.metadata for entry in _listed(metadata, found.folder))
    return [_caption(picture.path, found, listed) for picture in found.pictures]


def placed(caption: Caption, picture: Picture, token: str) -> str:
    """Return a caption with the word in its place; CaptionError if it has none."""
    text = with_word(caption.text, token)
    if token not in text:
        raise CaptionError(
            f"The caption of {picture.path.name} in {caption.source} does not hold {token!r}: {text!r}. "
            "Write {} where the word goes."
        )
    return text


def _caption(picture: Path, found: Found, listed: dict[Path, Caption]) -> Caption:
    caption = found.given.get(picture) or listed.get(picture.resolve())
    if text := found.texts.get(picture):
        caption = Caption(" ".join(read_text(text).split()), text.relative_to(found.folder).as_posix())
    if caption is None:
        raise CaptionError(
            f"There is no caption for {picture.name}; write it into {picture.stem}.txt beside it or into {METADATA}, "
            "or use captions 'templates'."
        )
    if not caption.text:
        raise CaptionError(f"The caption of {picture.name} in {caption.source} is empty; write {{}} at least.")
    return caption


def _listed(metadata: Path, folder: Path) -> Iterator[tuple[Path, Caption]]:
    """Yield the pictures that a metadata.jsonl names, and their captions; CaptionError names a line that is wrong."""
    missing, name = [], metadata.relative_to(folder).as_posix()
    for number, line in enumerate(read_text(metadata).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{metadata}, line {number},"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise CaptionError(f"{where} is not JSON: {error}.") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise CaptionError(f'{where} names no picture; expected {{"file_name": "a.png", "text": "a {{}}"}}.')
        text = next((entry[column] for column in COLUMNS if column in entry), None)
        if not isinstance(text, str):
            have = ", ".join(entry)
            raise CaptionError(f"{where} has no caption: of {', '.join(COLUMNS)} one must be text, and it has {have}.")
        path = metadata.parent / entry["file_name"]
        if path.is_file():
            yield (
                path.resolve(),
                Caption(" ".join(text.split()), f"{name} line {number}"),
            )
        else:
            missing.append(entry["file_name"])
    if missing:
        log.warning("%s names pictures that are not there: %s", metadata, ", ".join(missing))
