"""Words into other tools' files: one or thousands, each written whole or not at all, and read again."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pseudoword import disk, formats
from pseudoword.concept import Concept
from pseudoword.contents import Contents
from pseudoword.errors import FormatError, PseudowordError, first_line
from pseudoword.formats.tools import TOOLS

TARGETS: dict[str, tuple[str, Sequence[tuple[str, str]]]] = {
    "diffusers": ("diffusers", [("diffusers", ".safetensors")]),
    "a1111": ("a1111", [("webui", ".pt"), ("kohya", ".safetensors")]),
    "a1111-picture": ("a1111", [("webui", ".png"), ("kohya", ".png")]),
    "forge": ("forge", [("webui", ".pt"), ("kohya", ".safetensors")]),
    "comfyui": ("comfyui", [("kohya", ".safetensors")]),
    "invokeai": ("invokeai", [("kohya", ".safetensors")]),
    "kohya": ("kohya", [("kohya", ".safetensors")]),
    "onetrainer": ("onetrainer", [("onetrainer", ".safetensors")]),
    "original": ("original", [("original", ".pt")]),
}
"""By what `--to` says: the tool that must load the file, and formats and endings, the first that can hold the word."""
DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True)
class Outcome:
    """What became of one word, or of a file that holds none."""

    source: Path
    target: str = ""
    written: tuple[Path, ...] = ()
    lost: tuple[str, ...] = ()
    """What the file that was written cannot say, or says less exactly."""
    trigger: str = ""
    """How the word is written in the tool's prompts."""
    error: str = ""
    was_there: bool = False
    """Whether the very file was there already, as after a conversion that was killed."""


def check(targets: Sequence[str], dtype: str) -> None:
    """Raise FormatError for a target or a type of numbers that there is not."""
    for target in targets:
        if target not in TARGETS:
            raise FormatError(f"There is no tool {target!r} to convert to; the tools are {', '.join(TARGETS)}.")
    if dtype not in DTYPES:
        raise FormatError(f"Numbers are stored as {', '.join(DTYPES)}, not as {dtype!r}.")


def sources(paths: Iterable[str | Path]) -> list[Path]:
    """Return the embedding files that paths mean, folders searched to the bottom; the guide's files of a word are one.

    What a folder has of a word several times, as run folders do, is taken once: `learned_embeds.safetensors`.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        path = path.expanduser()
        if not path.is_dir():
            found[formats.fetched(path)] = None
            continue
        inside = [Path(folder) / name for folder, folders, names in _walk(path) for name in sorted(names)]
        files = [file for file in inside if file.suffix.lower() in formats.ENDINGS and _stands_for_a_word(file)]
        files = [
            file for file in files if formats.container_of(file.suffix.lower()) != "picture" or _holds_a_word(file)
        ]
        if not files:
            raise FormatError(f"The folder {str(path)!r} holds no embedding file.")
        found |= dict.fromkeys(files)
    return list(found)


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield folders from the top, in order; links to folders are not followed, so nothing outside is read.

    What lies below a word's own folder is about that word: checkpoints, exports, samples.
    """
    for place, folders, names in os.walk(folder):
        holds_a_word = any(name in formats.IN_FOLDER for name in names)
        folders[:] = [] if holds_a_word else sorted(name for name in folders if not name.startswith("."))
        yield place, folders, [name for name in names if not name.startswith(".")]


def _stands_for_a_word(file: Path) -> bool:
    """Whether a file in a folder is a word by itself, not another's second part or an earlier step of it."""
    if file.name.startswith("learned_embeds_"):
        return False
    if file.name.startswith("learned_embeds-"):  # a step on the way, or the best
        return not any((file.parent / name).is_file() for name in formats.IN_FOLDER)
    return file.name != formats.IN_FOLDER[1] or not file.with_name(formats.IN_FOLDER[0]).is_file()


def _is_picture(file: Path) -> bool:
    return formats.container_of(file.suffix.lower()) == "picture"


def _holds_a_word(picture: Path) -> bool:
    """Whether a picture holds a word, or something that is broken; other pictures are just beside the words."""
    try:
        formats.open_file(picture)
    except formats.NoWordInPicture:
        return False
    except FormatError:
        return True
    return True


def convert(
    files: Iterable[Path],
    targets: Sequence[str],
    folder: Path,
    *,
    token: str | None = None,
    dtype: str = "fp32",
    overwrite: bool = False,
) -> Iterator[Outcome]:
    """Write every word of the files for every target into `folder/TARGET/`, and yield what became of each.

    A file that cannot be read or written is an outcome with an error, and the others go on. What was written before,
    by the same conversion, is left; another file under the same name is not overwritten unless that is asked for.
    """
    check(targets, dtype)
    halves = [half for target in targets for half in (folder / target).glob(f"{disk.TEMPORARY}*")]
    waiting: deque[Future[Outcome] | Outcome] = deque()
    with ThreadPoolExecutor(THREADS) as pool:  # a thread that syncs a file leaves the processor to the other
        for job in _jobs(files, targets, folder, token):
            waiting.append(job if isinstance(job, Outcome) else pool.submit(_tried, *job, DTYPES[dtype], overwrite))
            while len(waiting) > 4 * THREADS:
                yield _done(waiting.popleft())
        while waiting:
            yield _done(waiting.popleft())
    for half in halves:  # of an earlier conversion that was killed
        half.unlink(missing_ok=True)


THREADS = 4


def _jobs(
    files: Iterable[Path], targets: Sequence[str], folder: Path, token: str | None
) -> Iterator[tuple[Path, Concept, str, Path] | Outcome]:
    """Yield each word with what it is to be converted for and where to; an outcome for a file that cannot be read."""
    taken: set[Path] = set()
    for file in files:
        try:
            concepts = formats.read_all(file)
            if token:
                concepts = [_renamed(concepts, token, file)]
        except (PseudowordError, OSError) as error:
            yield Outcome(file, error=first_line(error))
            continue
        for concept in concepts:
            stem = _free(folder, formats.stem_of(concept.token), taken)
            yield from ((file, concept, target, folder / target / stem) for target in targets)


def _done(job: Future[Outcome] | Outcome) -> Outcome:
    return job if isinstance(job, Outcome) else job.result()


def _tried(file: Path, concept: Concept, target: str, place: Path, dtype: str, overwrite: bool) -> Outcome:
    try:
        return _written(file, concept, target, place, dtype, overwrite)
    except (PseudowordError, OSError) as error:
        return Outcome(file, target, error=first_line(error))


def words(files: Iterable[Path], token: str | None = None) -> list[Concept]:
    """Return the words of all files, the one word renamed if there is a token; FormatError says what is wrong."""
    found = [(file, concept) for file in files for concept in formats.read_all(file)]
    if token is None:
        return [concept for _, concept in found]
    return [_renamed([concept for _, concept in found], token, found[0][0])]


def convert_one(files: Sequence[Path], targets: Sequence[str], path: Path, token: str | None, dtype: str) -> Outcome:
    """Write the one word of the files for the one target as this very file; FormatError if there are more."""
    check(targets, dtype)
    concepts = words(files, token)
    if len(concepts) != 1 or len(targets) != 1:
        raise FormatError(
            f"One file takes one word for one tool, but there are {len(concepts)} and {len(targets)}; "
            "let --output be a folder."
        )
    contents = contents_for(concepts[0], targets[0], path.with_suffix(""), DTYPES[dtype])
    if list(contents) != [path]:
        wanted = "a folder" if len(contents) > 1 else f"a {next(iter(contents)).suffix}"
        raise FormatError(f"For {targets[0]} {concepts[0].token!r} becomes {wanted}, not a {path.suffix}.")
    if path.exists() and path.resolve() == files[0].resolve():
        raise FormatError(f"{path} is the word's own file; write to another.")
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write(path, contents[path])
    return _outcome(files[0], concepts[0], targets[0], [path])


def _renamed(concepts: Sequence[Concept], token: str, file: Path) -> Concept:
    if len(concepts) > 1:
        raise FormatError(f"{file} holds {len(concepts)} words, which cannot all be called {token!r}.")
    return replace(concepts[0], token=token)


def _free(folder: Path, stem: str, taken: set[Path]) -> str:
    """Return what a word's file is called; words of one name are numbered in their order."""
    name, number = stem, 1
    while folder / name.lower() in taken:  # some disks know no capital letters
        number += 1
        name = f"{stem}-{number}"
    taken.add(folder / name.lower())
    return name


def _written(file: Path, concept: Concept, target: str, place: Path, dtype: str, overwrite: bool) -> Outcome:
    """Write a word for a tool, if the tool's own rules take what would be written."""
    contents = contents_for(concept, target, place, dtype)
    was_there = all(path.is_file() and path.read_bytes() == content for path, content in contents.items())
    if not was_there:
        other = next((path for path in contents if path.exists()), None)
        if other and not overwrite:
            raise FormatError(f"{other} is there already, and holds something else; --overwrite replaces it.")
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.write(path, content)
    return replace(_outcome(file, concept, target, list(contents)), was_there=was_there)


def _outcome(file: Path, concept: Concept, target: str, written: Sequence[Path]) -> Outcome:
    """Say what was written, as it is when it is read again."""
    contents = formats.open_file(written[0])
    [after] = formats.concepts_of(contents, written[0])
    trigger = TOOLS[TARGETS[target][0]].verdict(contents, written[0].name).trigger
    return Outcome(file, target, tuple(written), tuple(differences(concept, after)), trigger)


def contents_for(concept: Concept, target: str, place: Path, dtype: str) -> dict[Path, bytes]:
    """Return the files of a word for a tool, by their paths; FormatError if no file that it loads can hold the word."""
    tool, choices = TOOLS[TARGETS[target][0]], TARGETS[target][1]
    if target == "diffusers" and len(concept.rows) > 1:
        return formats.contents_of_each(concept, place / "learned_embeds.safetensors", dtype)
    fitting = [(name, suffix) for name, suffix in choices if formats.FORMATS[name].refuses(concept) is None]
    if not fitting:
        raise FormatError(
            f"{tool.title} loads words for one text encoder, but {concept.token!r} has {', '.join(concept.rows)}."
        )
    name, suffix = fitting[0]
    path = place.with_name(f"{place.name}{suffix}")
    values = formats.FORMATS[name].write(concept, place.name)
    verdict = tool.verdict(Contents(formats.container_of(suffix), values), path.name)
    if not verdict.loads:
        raise FormatError(f"{tool.title} would not load {concept.token!r} in any file: it {verdict.says}.")
    return {path: formats.to_bytes(concept, path.name, name, dtype=dtype)}


def differences(before: Concept, after: Concept) -> list[str]:
    """Return what a word that was written and read again has not kept."""
    lost = [
        f"{name} ({str(getattr(before, name))[:40]})"
        for name in ("token", "property", "base", "steps")
        if getattr(before, name) != getattr(after, name)
    ]
    gone = [name for name, value in before.metadata.items() if after.metadata.get(name) != value]
    if gone:
        lost.append(f"metadata ({', '.join(sorted(gone)[:5])}{', …' if len(gone) > 5 else ''})")
    if before.rows.keys() != after.rows.keys():
        return [*lost, f"rows ({', '.join(before.rows)} became {', '.join(after.rows)})"]
    off = max(float(np.abs(rows - after.rows[encoder]).max()) for encoder, rows in before.rows.items())
    return [*lost, f"exactness (rows differ by up to {off:.1g})"] if off else lost
