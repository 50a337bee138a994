"""Reading and writing embedding files, and the table of formats."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from pseudoword import disk
from pseudoword.concept import Concept, Property
from pseudoword.contents import Contents, Word
from pseudoword.contracts import Format
from pseudoword.encoders import BY_KEY
from pseudoword.errors import FormatError, TokenError
from pseudoword.formats import bundle, checkpoint, diffusers, files, kohya, onetrainer, original, tensors, webui
from pseudoword.formats.fetching import fetched, name_of_encoder
from pseudoword.formats.files import open_file
from pseudoword.formats.names import PICTURES, container_of, metadata_of, stem_of
from pseudoword.formats.tensors import BUNDLED
from pseudoword.formats.triggers import plain_name, safe_stem
from pseudoword.spelling import did_you_mean

__all__ = [
    "ENDINGS",
    "FORMATS",
    "FURTHER_IN_FOLDER",
    "IN_FOLDER",
    "SUFFIXES",
    "TOLD_IN_FOLDER",
    "FormatError",
    "bundle_into",
    "concepts_of",
    "container_of",
    "contents_of_each",
    "exports_in",
    "fetched",
    "files_in",
    "find",
    "identify",
    "is_checkpoint",
    "metadata_of",
    "open_file",
    "parts_of",
    "plain_name",
    "read",
    "read_all",
    "safe_stem",
    "stem_of",
    "to_bytes",
    "unfinished",
    "write",
    "write_each",
    "write_exports",
    "write_file",
    "write_folder",
]

log = logging.getLogger(__name__)

FORMATS: dict[str, Format] = {
    "webui": webui,
    "original": original,
    "bundle": bundle,
    "kohya": kohya,
    "onetrainer": onetrainer,
    "diffusers": diffusers,
}
"""In the order of trying: `emb_params` would also pass as a diffusers file with an odd token."""
SUFFIXES = (".safetensors", ".bin", ".pt")
"""How most embedding files end, and ours."""
ENDINGS = (*SUFFIXES, ".pth", ".ckpt", ".pti", *PICTURES)
"""How files that hold a word may end; what they are is in them."""
TOLD_IN_FOLDER = ("token_identifier.txt", "type_of_concept.txt")
IN_FOLDER = ("learned_embeds.safetensors", "learned_embeds.bin")
FURTHER_IN_FOLDER = tuple(f"learned_embeds_{i}{ending}" for i in (2, 3) for ending in (".safetensors", ".bin"))
"""What a second text encoder (Stable Diffusion XL's) has beside the first's, called as in the guide; and a third."""
GUIDES = re.compile(r"learned_embeds(?:_([23]))?(-.+)?\.(safetensors|bin)")
AT_A_STEP = re.compile(r"learned_embeds-steps-(\d+)\.\w+|checkpoint-(\d+)")
KNOWN = ("token", "property", "base", "steps", "format", "version", "encoders")


def find(path: str | Path) -> Path:
    """Return the file that a path means: itself, or in a folder a run's or library's word, or a checkpoint's rows."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    if is_checkpoint(path):
        return path / checkpoint.STATE
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
    latest = unfinished(path)
    if latest is not None:
        log.warning("There is no finished word in %s itself; %s is taken.", path, latest.name)
        return find(latest)
    raise FormatError(f"The folder {str(path)!r} holds no {' or '.join(IN_FOLDER)}; name the file itself.")


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a run."""
    return checkpoint.is_checkpoint(folder / checkpoint.STATE)


def unfinished(folder: Path) -> Path | None:
    """Return what stands for the word of a run that has not written it: the best, or the last word or checkpoint."""
    best = sorted(folder.glob("learned_embeds-best.*"), reverse=True)
    if best:
        return best[0]
    steps = {}
    for path in sorted(folder.iterdir()):
        match = AT_A_STEP.fullmatch(path.name)
        if match and (path.is_file() or is_checkpoint(path)):
            steps[int(match[1] or match[2])] = path
    return steps[max(steps)] if steps else None


def files_in(folder: Path) -> list[str]:
    """Return the names of the word's files for diffusers that a folder holds."""
    return [name for name in (*IN_FOLDER, *FURTHER_IN_FOLDER) if (folder / name).is_file()]


def exports_in(folder: Path) -> list[Path]:
    """Return a run's files for tools that name a word after its file."""
    return sorted(path for path in (folder / "exports").glob("*") if path.suffix in SUFFIXES and path.is_file())


def write_exports(concept: Concept, folder: Path, suffix: str) -> list[Path]:
    """Write a word's file for tools that name a word after its file, under a name that all of them read in prompts.

    A file that an earlier version wrote under another name goes on being the word.
    """
    exports = folder / "exports"
    exports.mkdir(parents=True, exist_ok=True)
    earlier = [path.stem for path in exports_in(folder) if path.stem == stem_of(concept.token)]
    written = []
    for stem in dict.fromkeys([safe_stem(concept.token), *earlier]):
        for other in SUFFIXES:
            if other != suffix:  # of another choice of safe_serialization
                disk.remove(exports / f"{stem}{other}")
        written.append(write_file(concept, exports / f"{stem}{suffix}", "kohya"))
    return written


def identify(contents: Contents, path: Path) -> str:
    """Return the name of the format that a file's content is in."""
    for name, format_ in FORMATS.items():
        if format_.owns(contents):
            return name
    keys = ", ".join(name[:40] for name in sorted(contents.values)[:5]) or "nothing"
    raise FormatError(f"{path} is no embedding that can be read here: it holds {keys}.")


def read(path: str | Path, token: str | None = None) -> Concept:
    """Read a concept from a file of any known format, or from a folder that holds one. FormatError says why not.

    `token` renames the word of a file that holds one, and says which is meant of a file that holds several.
    """
    path = find(path)
    concepts = read_all(path)
    if len(concepts) == 1:
        return concepts[0] if token is None else dataclasses.replace(concepts[0], token=token)
    for concept in concepts:
        if concept.token == token:
            return concept
    names = ", ".join(concept.token for concept in concepts[:10])
    hint = did_you_mean(token, [concept.token for concept in concepts]) if token else ""
    raise FormatError(
        f"{path} holds several words ({names}); say which, or make a file of each with pseudoword convert.{hint}"
    )


def read_all(path: str | Path) -> list[Concept]:
    """Read every word of a file of any known format, or of a folder that holds one. FormatError says why not."""
    path = find(path)
    return concepts_of(files.open_file(path), path)


def concepts_of(contents: Contents, path: Path) -> list[Concept]:
    """Return the words of a file that is open already."""
    words = _words_of(contents, path)
    if len(words) == 1 and len(words[0].rows) == 1:
        rows = dict(words[0].rows)
        for part in parts_of(path)[1:]:
            rows |= _rows_of_part(path, words[0], contents.metadata, part)
        words = [dataclasses.replace(words[0], rows=rows)]
    about_others = len(words) > 1 or FORMATS["bundle"].owns(contents)  # the metadata are one word's, or the LoRA's
    told = {} if about_others else contents.metadata
    return [_concept(path, word, {**told, **word.metadata}) for word in words]


def _concept(path: Path, word: Word, metadata: Mapping[str, str]) -> Concept:
    kind = metadata.get("property") or _read_line(path.with_name("type_of_concept.txt"))
    steps = metadata.get("steps", "")
    if word.left:
        log.warning(
            "%s: %s act on what text encoders give out, which a word here has no place for; they are left.",
            path,
            ", ".join(word.left),
        )
    for key, encoder in word.corrected.items():
        log.warning(
            "%s calls rows of width %d %s, but they are %s's. They are read so; pseudoword convert repairs the file.",
            path,
            word.rows[encoder].shape[1],
            key,
            encoder,
        )
    try:
        return Concept(
            token=metadata.get("token") or word.token,
            rows=word.rows,
            property=cast(Property, kind) if kind in ("object", "style") else "object",
            base=metadata.get("base", ""),
            steps=int(steps) if steps.isascii() and steps.isdigit() and len(steps) < 12 else 0,
            metadata={k: v for k, v in metadata.items() if k not in KNOWN},
        )
    except TokenError as error:
        raise FormatError(f"{path}: {error}") from error


def _words_of(contents: Contents, path: Path) -> list[Word]:
    """Return the words of one file, for the text encoder whose part it is."""
    if checkpoint.is_checkpoint(path):
        return checkpoint.words(contents, path)
    format_ = FORMATS[identify(contents, path)]
    try:
        words = format_.read(contents, path.stem)
    except (TokenError, FormatError) as error:
        raise FormatError(f"{path}: {error}") from error
    if len(words) == 1 and len(words[0].rows) == 1:
        told = [encoder.partition(":")[0] for encoder in contents.metadata.get("encoders", "").split(",")]
        match = GUIDES.fullmatch(path.name)
        place = int(match[1]) - 1 if match and match[1] else 0
        [(encoder, rows)] = words[0].rows.items()
        if place < len(told) and told[place] in BY_KEY:  # widths do not tell small ones apart
            encoder = told[place]
        elif place and encoder == "clip_l":
            encoder = "clip_g"
        words = [dataclasses.replace(words[0], rows={encoder: rows})]
    return words


def _rows_of_part(path: Path, word: Word, metadata: Mapping[str, str], part: Path) -> Mapping[str, np.ndarray]:
    """Return a word's rows for a further text encoder; none if the file is another word's, which was left there."""
    contents = files.open_file(part)
    other, *more = _words_of(contents, part)
    if more or other.token != word.token or ("encoders" in metadata and "," not in metadata["encoders"]):
        return {}
    differing = [key for key in ("steps", "base", "recipe") if metadata.get(key) != contents.metadata.get(key)]
    if differing:
        raise FormatError(
            f"{path.name} and {part.name} in {str(path.parent)!r} are not of one word: their {', '.join(differing)} "
            "differ, as after a run that was killed while it wrote them. Resume it, or name its file in exports."
        )
    return other.rows


def parts_of(path: Path) -> list[Path]:
    """Return a word's file and, beside one of the guide's, those of its rows for further text encoders."""
    match = GUIDES.fullmatch(path.name)
    if match is None or match[1]:
        return [path]
    further = [path.with_name(name_of_encoder(path.name, number)) for number in (2, 3)]
    return [path, *(part for part in further if part.is_file())]


def _read_line(path: Path) -> str:
    """Return what a small text file beside a word says; nothing if it is no file, or not one of these."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return file.read(1000).decode().strip()
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
    names = [name for name in IN_FOLDER if safetensors or name.endswith(".bin")]
    written = [path for name in names for path in write_each(concept, folder / name)]
    for name in files_in(folder):  # of another choice, or of a word for other encoders; readers would take it for newer
        if folder / name not in written:
            disk.remove(folder / name)
    for name, line in zip(TOLD_IN_FOLDER, (concept.token, concept.property), strict=True):
        disk.write(folder / name, line)
    return folder


def write_each(concept: Concept, path: Path) -> list[Path]:
    """Write one of the guide's files for each text encoder and return where: `path`, and `learned_embeds_2…`.

    Each says of which encoders there are files, so that one of another word beside it is not taken for a part.
    """
    return [disk.write(place, content) for place, content in contents_of_each(concept, path).items()]


def contents_of_each(concept: Concept, path: Path, dtype: str = "F32") -> dict[Path, bytes]:
    """Return the content of one of the guide's files for each text encoder, by their paths."""
    contents = {}
    for i, (encoder, rows) in enumerate(concept.rows.items()):
        name = name_of_encoder(path.name, i + 1) if i else path.name
        part = dataclasses.replace(concept, rows={encoder: rows})
        contents[path.with_name(name)] = to_bytes(part, name, dtype=dtype, whole=concept)
    return contents


def write_file(concept: Concept, path: Path, format_: str = "diffusers", whole: Concept | None = None) -> Path:
    """Write one file; `.safetensors` carries the metadata, `.bin` and `.pt` cannot, but in A1111's format.

    The metadata are those of the `whole` word, where the file holds but a part of it.
    """
    return disk.write(path, to_bytes(concept, path.name, format_, whole=whole))


def to_bytes(
    concept: Concept, name: str, format_: str = "diffusers", *, dtype: str = "F32", whole: Concept | None = None
) -> bytes:
    """Return a file's content, of a kind that its name says; FormatError if the format has no such file or no place."""
    made, path = FORMATS[format_], Path(name)
    refused, suffix = made.refuses(concept), path.suffix
    if refused:
        raise FormatError(
            f"The format {format_!r} {refused}, but {concept.token!r} is for {', '.join(concept.rows)}; "
            "write it in the format 'kohya'."
        )
    if suffix not in made.SUFFIXES:
        raise FormatError(
            f"The format {format_!r} is written as {' or '.join(made.SUFFIXES)}, not as {suffix!r} ({path.name})."
        )
    _refuse_what_does_not_fit(concept, dtype)
    container = container_of(suffix)
    called = path.stem if container == "picture" else concept.token  # A1111 triggers on the name in a picture
    values = made.write(concept, called)
    return files.to_bytes(values, container, metadata_of(whole or concept), dtype, title=concept.token)


def _refuse_what_does_not_fit(concept: Concept, dtype: str) -> None:
    largest = max(float(np.abs(rows).max()) for rows in concept.rows.values())
    if dtype == "F16" and largest > 65504:
        raise FormatError(f"{concept.token!r} has a number of {largest:g}, which fp16 cannot hold; use bf16 or fp32.")


def bundle_into(lora: Path, concepts: Sequence[Concept], path: Path) -> Path:
    """Write a LoRA's file once more with words in it, in place of any that it has under their names."""
    header = tensors.header_of(lora)[0] if lora.is_file() and lora.suffix == ".safetensors" else {}
    if not tensors.is_lora(header):
        raise FormatError(f"Words are put into a LoRA's .safetensors file, but {str(lora)!r} is none.")
    added, told = dict[str, np.ndarray](), dict[str, str]()
    for concept in concepts:
        earlier = stem_of(concept.token).replace(".", "-")  # as earlier versions called it: it is replaced there
        has_earlier = any(key.startswith(f"{BUNDLED}{earlier}.") for key in header)
        name = earlier if has_earlier else safe_stem(concept.token)
        if f"{BUNDLED}{name}" in told:
            raise FormatError(f"Two words would be called {name!r} in {path}; rename one with --token.")
        added |= bundle.write(concept, name)
        told[f"{BUNDLED}{name}"] = json.dumps(metadata_of(concept), sort_keys=True)
        if bundle.a1111_drops(concept):
            log.warning(
                "A1111 leaves out the whole LoRA %s, as %s has rows for %s; for A1111, keep this word in its own file.",
                path,
                concept.token,
                ", ".join(concept.rows),
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk.whole(path) as out:
        tensors.copy_with(lora, out, added, told)
    words = [key for key in tensors.header_of(path)[0] if key.startswith(BUNDLED)]
    if len(words) > bundle.MOST_UNMATCHED:
        log.warning(
            "Forge leaves out the whole LoRA %s, as its words are %d tensors and it forgives %d that are no LoRA's.",
            path,
            len(words),
            bundle.MOST_UNMATCHED,
        )
    return path
