"""Reading and writing embedding files, and the table of formats."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from pseudoword import disk
from pseudoword.concept import Concept, Property
from pseudoword.contracts import Format
from pseudoword.errors import FormatError, TokenError
from pseudoword.formats import diffusers, kohya, tensors
from pseudoword.formats.fetching import fetched, name_of_encoder

__all__ = [
    "FORMATS",
    "IN_FOLDER",
    "SECOND_IN_FOLDER",
    "SUFFIXES",
    "TOLD_IN_FOLDER",
    "FormatError",
    "exports_in",
    "fetched",
    "files_in",
    "find",
    "identify",
    "metadata_of",
    "parts_of",
    "read",
    "stem_of",
    "tensors",
    "write",
    "write_each",
    "write_file",
    "write_folder",
]

FORMATS: dict[str, Format] = {"kohya": kohya, "diffusers": diffusers}
"""In the order of trying: `emb_params` would also pass as a diffusers file with an odd token."""
SUFFIXES = (".safetensors", ".bin", ".pt")
TOLD_IN_FOLDER = ("token_identifier.txt", "type_of_concept.txt")
IN_FOLDER = ("learned_embeds.safetensors", "learned_embeds.bin")
SECOND_IN_FOLDER = ("learned_embeds_2.safetensors", "learned_embeds_2.bin")
"""What Stable Diffusion XL's second text encoder has beside the first's, as the guide's script calls it."""
GUIDES = re.compile(r"learned_embeds(_2)?(-.+)?\.(safetensors|bin)")
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


def files_in(folder: Path) -> list[str]:
    """Return the names of the word's files for diffusers that a folder holds."""
    return [name for name in (*IN_FOLDER, *SECOND_IN_FOLDER) if (folder / name).is_file()]


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
    named, rows, metadata = _read_file(path)
    if len(rows) == 1:
        for second in parts_of(path)[1:]:
            rows = {**rows, **_rows_of_second(path, named, metadata, second)}
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


def _read_file(path: Path) -> tuple[str, dict[str, np.ndarray], dict[str, str]]:
    """Return one file's token, its rows by text encoder, and its metadata."""
    content, metadata = tensors.read(path)
    named, rows = FORMATS[identify(content, path)].read(content, path.stem)
    told = [encoder.partition(":")[0] for encoder in metadata.get("encoders", "").split(",")]
    match = GUIDES.fullmatch(path.name)
    place = 1 if match and match[1] else 0
    if len(rows) == 1 and place < len(told) and told[place] in kohya.ENCODERS:  # widths do not tell small ones apart
        rows = dict(zip([told[place]], rows.values(), strict=True))
    return named, rows, metadata


def _rows_of_second(path: Path, named: str, metadata: Mapping[str, str], second: Path) -> dict[str, np.ndarray]:
    """Return a word's rows for the second text encoder; none if the file is another word's, which was left there."""
    name, rows, told = _read_file(second)
    if name != named or ("encoders" in metadata and "," not in metadata["encoders"]):
        return {}
    differing = [key for key in ("steps", "base", "recipe") if metadata.get(key) != told.get(key)]
    if differing:
        raise FormatError(
            f"{path.name} and {second.name} in {str(path.parent)!r} are not of one word: their {', '.join(differing)} "
            "differ, as after a run that was killed while it wrote them. Resume it, or name its file in exports."
        )
    return dict(zip(["clip_g"], rows.values(), strict=True))


def parts_of(path: Path) -> list[Path]:
    """Return a word's file and, beside one of the guide's, that of its rows for a second text encoder."""
    match = GUIDES.fullmatch(path.name)
    if match is None or match[1]:
        return [path]
    second = path.with_name(name_of_encoder(path.name, 2))
    return [path, second] if second.is_file() else [path]


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def write(concept: Concept, path: str | Path) -> Path:
    """Write a concept for diffusers: one file if `path` ends as an embedding file does, else the guide's folder.

    One file of a word for several text encoders is in kohya's format, which diffusers itself reads one by one only.
    """
    path = Path(path).expanduser()
    if path.suffix in SUFFIXES and not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_file(concept, path, "diffusers" if len(concept.rows) == 1 else "kohya")
    return write_folder(concept, path)


def write_folder(concept: Concept, folder: Path, *, safetensors: bool = True) -> Path:
    """Write the guide's files into a folder; without `safetensors` it gets only the .bin of each two."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        path
        for name in IN_FOLDER
        if safetensors or name.endswith(".bin")
        for path in write_each(concept, folder / name)
    ]
    for name in files_in(folder):  # of another choice, or of a word for other encoders; readers would take it for newer
        if folder / name not in written:
            (folder / name).unlink()
    for name, line in zip(TOLD_IN_FOLDER, (concept.token, concept.property), strict=True):
        disk.write(folder / name, line)
    return folder


def write_each(concept: Concept, path: Path) -> list[Path]:
    """Write one of the guide's files for each text encoder and return where: `path`, and `learned_embeds_2…`.

    Each says of which encoders there are files, so that one of another word beside it is not taken for a part.
    """
    written = []
    for i, (encoder, rows) in enumerate(concept.rows.items()):
        name = name_of_encoder(path.name, i + 1) if i else path.name
        part = dataclasses.replace(concept, rows={encoder: rows})
        written.append(write_file(part, path.with_name(name), whole=concept))
    return written


def write_file(concept: Concept, path: Path, format_: str = "diffusers", whole: Concept | None = None) -> Path:
    """Write one file; `.safetensors` carries the metadata, `.bin` and `.pt` cannot.

    The metadata are those of the `whole` word, where the file holds but a part of it.
    """
    arrays = FORMATS[format_].write(concept)
    if path.suffix == ".safetensors":
        return disk.write(path, tensors.to_safetensors(arrays, metadata_of(whole or concept)))
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
