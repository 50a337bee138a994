"""Reading and writing embedding files, and the table of formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pseudoword import disk
from pseudoword.concept import Concept, Property
from pseudoword.contracts import Format
from pseudoword.errors import FormatError, TokenError
from pseudoword.formats import diffusers, kohya, tensors

__all__ = [
    "FORMATS",
    "IN_FOLDER",
    "SUFFIXES",
    "TOLD_IN_FOLDER",
    "FormatError",
    "exports_in",
    "find",
    "identify",
    "metadata_of",
    "read",
    "stem_of",
    "tensors",
    "write",
    "write_file",
    "write_folder",
]

FORMATS: dict[str, Format] = {"kohya": kohya, "diffusers": diffusers}
"""In the order of trying: `emb_params` would also pass as a diffusers file with an odd token."""
SUFFIXES = (".safetensors", ".bin", ".pt")
TOLD_IN_FOLDER = ("token_identifier.txt", "type_of_concept.txt")
IN_FOLDER = ("learned_embeds.safetensors", "learned_embeds.bin")
KNOWN = ("token", "property", "base", "steps", "format", "version", "encoders")


def find(path: str | Path) -> Path:
    """Return the embedding file that a path means: itself, or the learned word of a run's or library folder."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
    raise FormatError(f"The folder {str(path)!r} holds no {' or '.join(IN_FOLDER)}; name the file itself.")


def exports_in(folder: Path) -> list[Path]:
    """Return a run's files for tools that name a word after its file."""
    return sorted(path for path in (folder / "exports").glob("*") if path.suffix in SUFFIXES and path.is_file())


def identify(content: Mapping[str, Any], path: Path) -> str:
    """Return the name of the format that a file's content is in."""
    for name, format_ in FORMATS.items():
        if format_.owns(content):
            return name
    keys = ", ".join(sorted(content)[:5]) or "nothing"
    raise FormatError(f"{path} is no embedding that can be read here: it holds {keys}.")


def read(path: str | Path, token: str | None = None) -> Concept:
    """Read a concept from a file of any known format, or from a folder that holds one. FormatError says why not."""
    path = find(path)
    content, metadata = tensors.read(path)
    named, rows = FORMATS[identify(content, path)].read(content, path.stem)
    kind = metadata.get("property") or _read_line(path.with_name("type_of_concept.txt"))
    steps = metadata.get("steps", "")
    try:
        return Concept(
            token=token or metadata.get("token") or named,
            rows=rows,
            property=cast(Property, kind) if kind in ("object", "style") else "object",
            base=metadata.get("base", ""),
            steps=int(steps) if steps.isascii() and steps.isdigit() else 0,
            metadata={k: v for k, v in metadata.items() if k not in KNOWN},
        )
    except TokenError as error:
        raise FormatError(f"{path}: {error}") from error


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def write(concept: Concept, path: str | Path) -> Path:
    """Write a concept for diffusers: one file if `path` ends as an embedding file does, else the guide's folder."""
    path = Path(path).expanduser()
    if path.suffix in SUFFIXES and not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_file(concept, path)
    return write_folder(concept, path)


def write_folder(concept: Concept, folder: Path, *, safetensors: bool = True) -> Path:
    """Write the guide's files into a folder; without `safetensors` it gets only the .bin of the two."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in IN_FOLDER if safetensors else IN_FOLDER[1:]:
        write_file(concept, folder / name)
    if not safetensors:
        (folder / IN_FOLDER[0]).unlink(missing_ok=True)  # readers would take it for the newer
    for name, line in zip(TOLD_IN_FOLDER, (concept.token, concept.property), strict=True):
        disk.write(folder / name, line)
    return folder


def write_file(concept: Concept, path: Path, format_: str = "diffusers") -> Path:
    """Write one file; `.safetensors` carries the metadata, `.bin` and `.pt` cannot."""
    arrays = FORMATS[format_].write(concept)
    if path.suffix == ".safetensors":
        return disk.write(path, tensors.to_safetensors(arrays, metadata_of(concept)))
    if path.suffix in SUFFIXES:
        return disk.write(path, tensors.to_bin(arrays))
    raise FormatError(f"An embedding is written as .safetensors, .bin or .pt, not as {path.suffix!r} ({path.name}).")


def metadata_of(concept: Concept) -> dict[str, str]:
    """Return what a safetensors file says about the word, besides its rows."""
    from pseudoword import __version__

    own = {
        "format": "pt",
        "token": concept.token,
        "property": concept.property,
        "base": concept.base,
        "encoders": ",".join(f"{name}:{rows.shape[1]}" for name, rows in concept.rows.items()),
        "steps": str(concept.steps) if concept.steps else "",
        "version": f"pseudoword {__version__}",
    }
    return {**concept.metadata, **{k: v for k, v in own.items() if v}}


def stem_of(token: str) -> str:
    """Return a file stem that every tool can trigger on: no brackets, spaces or slashes."""
    return re.sub(r"[^\w.-]+", "-", token).strip("-.") or "word"
