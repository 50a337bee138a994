"""Words into other tools' files: one or thousands, each written whole or not at all, and read again."""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pseudoword import disk, formats
from pseudoword.concept import Concept
from pseudoword.errors import FormatError, NoWord, PseudowordError, first_line
from pseudoword.formats.tools import TOOLS


@dataclass(frozen=True)
class Target:
    """What `--to` can say: the tool that must load the file, and what it can be."""

    tool: str
    choices: tuple[tuple[str, str], ...]
    """Formats and endings, the first that can hold the word."""


TARGETS = {
    "diffusers": Target("diffusers", (("diffusers", ".safetensors"),)),
    "a1111": Target("a1111", (("webui", ".pt"), ("kohya", ".safetensors"))),
    "a1111-picture": Target("a1111", (("webui", ".png"), ("kohya", ".png"))),
    "forge": Target("forge", (("webui", ".pt"), ("kohya", ".safetensors"))),
    "comfyui": Target("comfyui", (("kohya", ".safetensors"),)),
    "invokeai": Target("invokeai", (("kohya", ".safetensors"),)),
    "kohya": Target("kohya", (("kohya", ".safetensors"),)),
    "onetrainer": Target("onetrainer", (("onetrainer", ".safetensors"),)),
    "original": Target("original", (("original", ".pt"),)),
}
THREADS = 4
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
    needs: str = ""
    """What has to be set in the tool first."""
    note: str = ""
    """How the trigger is written, where that is not plain."""
    renamed: str = ""
    """What the word is called now, where that is not its token without brackets."""
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


def sources(paths: Iterable[str | Path], besides: Path | None = None) -> list[Path]:
    """Return the embedding files that paths mean, or ids on the Hub; folders are searched to the bottom.

    The guide's files of a word are one, and of a run that is not finished the best or last is taken. Pictures and LoRAs
    without a word are left out of folders, and so is what lies in the folder `besides`, where the output goes.
    """
    found: dict[Path, None] = {}
    for path in map(formats.fetched, paths):
        if not path.is_dir():
            found[path] = None
            continue
        files = [file for file in _below(path, besides) if not _holds_no_word(file)]
        if not files and formats.unfinished(path) is not None:
            files = [formats.find(path)]
        if not files:
            raise FormatError(f"The folder {str(path)!r} holds no embedding file.")
        found |= dict.fromkeys(files)
    return list(found)


def _below(folder: Path, besides: Path | None) -> Iterator[Path]:
    """Yield files that may be words, from the top, in order; links to folders are not followed.

    What lies below a word's own folder is about that word: checkpoints, exports, samples.
    """
    for place, folders, names in os.walk(folder):
        here = Path(place)
        holds_a_word = any(name in formats.IN_FOLDER for name in names)
        folders[:] = [] if holds_a_word else sorted(folders)
        folders[:] = [name for name in folders if not name.startswith(".") and not _same(here / name, besides)]
        folders[:] = [name for name in folders if not formats.is_checkpoint(here / name)]  # named, they are read
        yield from (here / name for name in _words_among(names))


def _same(folder: Path, other: Path | None) -> bool:
    return other is not None and folder.resolve() == other.resolve()


def _words_among(names: Iterable[str]) -> list[str]:
    """Return those of a folder's names that stand for words: of the guide's files one, in the order of its choice."""
    own = sorted(name for name in names if Path(name).suffix.lower() in formats.ENDINGS and not name.startswith("."))
    guides = [name for name in own if name.startswith("learned_embeds")]
    steps = {int(match[1]): name for name in guides if (match := re.search(r"^learned_embeds-steps-(\d+)\.", name))}
    best = [name for name in guides if name.startswith("learned_embeds-best.")]
    final = [name for name in formats.IN_FOLDER if name in guides]
    chosen = [*final, *best, *(steps[step] for step in sorted(steps, reverse=True))][:1]
    return [name for name in own if name not in guides or name in chosen]


def _holds_no_word(file: Path) -> bool:
    """Whether a file in a folder is a picture or LoRA like any other; what is broken is told when it is read."""
    if formats.container_of(file.suffix.lower()) == "pickle":
        return False
    try:
        formats.open_file(file)
    except NoWord:
        return True
    except FormatError:
        return False
    return False


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
    targets, files = list(dict.fromkeys(targets)), list(files)
    if token and len(files) > 1:
        raise FormatError(f"{len(files)} files are named, and their words cannot all be called {token!r}.")
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
        disk.remove(half)


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
            stem = _free(folder, formats.safe_stem(concept.token), taken)
            yield from ((file, concept, target, folder / target / stem) for target in targets)


def _done(job: Future[Outcome] | Outcome) -> Outcome:
    return job if isinstance(job, Outcome) else job.result()


def _tried(file: Path, concept: Concept, target: str, place: Path, dtype: str, overwrite: bool) -> Outcome:
    try:
        return _written(file, target, _made(concept, target, place, dtype), overwrite=overwrite)
    except (PseudowordError, OSError) as error:
        return Outcome(file, target, error=first_line(error))


def words(files: Iterable[Path], token: str | None = None) -> list[Concept]:
    """Return the words of all files, the one word renamed if there is a token; FormatError says what is wrong."""
    found = [(file, concept) for file in files for concept in formats.read_all(file)]
    if token is None:
        return [concept for _, concept in found]
    return [_renamed([concept for _, concept in found], token, found[0][0])]


def convert_one(
    files: Sequence[Path], targets: Sequence[str], path: Path, token: str | None, dtype: str, *, overwrite: bool = False
) -> Outcome:
    """Write the one word of the files for the one target as this very file; FormatError if there are more."""
    check(targets, dtype)
    concepts = words(files, token)
    if len(concepts) != 1 or len(targets) != 1:
        raise FormatError(
            f"One file takes one word for one tool, but there are {len(concepts)} and {len(targets)}; "
            "let --output be a folder."
        )
    if path.exists() and path.resolve() == files[0].resolve():
        raise FormatError(f"{path} is the word's own file; write to another.")
    made = _made(concepts[0], targets[0], path.with_suffix(""), DTYPES[dtype])
    if list(made.contents) != [path]:
        wanted = "a folder" if len(made.contents) > 1 else f"a {next(iter(made.contents)).suffix}"
        raise FormatError(f"For {targets[0]} {concepts[0].token!r} becomes {wanted}, not a {path.suffix}.")
    return _written(files[0], targets[0], replace(made, renamed=""), overwrite=overwrite)  # you named it


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


@dataclass(frozen=True)
class _Made:
    """A word's files for a tool, not written yet, and what they say when they are read."""

    contents: dict[Path, bytes]
    lost: tuple[str, ...]
    trigger: str
    needs: str
    note: str
    renamed: str


def _made(concept: Concept, target: str, place: Path, dtype: str) -> _Made:
    """Return a word's files for a tool, read again where they do no harm; FormatError if they would not be the word."""
    contents = contents_for(concept, target, place, dtype)
    with tempfile.TemporaryDirectory() as aside:
        for path, content in contents.items():
            (Path(aside) / path.name).write_bytes(content)
        first = next(iter(contents))
        opened = formats.open_file(Path(aside) / first.name)
        after = formats.concepts_of(opened, Path(aside) / first.name)
    if len(after) != 1:
        raise FormatError(f"{concept.token!r} cannot be written for {target}: it would be read as {len(after)} words.")
    tool = TOOLS[TARGETS[target].tool]
    verdict = tool.verdict(opened, first.name)
    if verdict.rename:
        raise FormatError(
            f"{tool.title} would load {first.name}, but not read its name in prompts: it {verdict.says}{first.suffix}."
        )
    if not verdict.loads:
        raise FormatError(f"{tool.title} would not load {concept.token!r} in any file: it {verdict.says}.")
    goes_by_file = target not in ("diffusers", "onetrainer", "original")
    renamed = place.name if goes_by_file and place.name != formats.plain_name(concept.token) else ""
    lost = tuple(differences(concept, after[0]))
    return _Made(contents, lost, verdict.trigger, verdict.needs, verdict.note, renamed)


def _written(file: Path, target: str, made: _Made, *, overwrite: bool) -> Outcome:
    """Write what is not there yet; another file under the same name is left, unless it is to be overwritten."""
    missing = {path: own for path, own in made.contents.items() if not path.is_file() or path.read_bytes() != own}
    other = next((path for path in missing if path.exists()), None)
    if other and not overwrite:
        raise FormatError(f"{other} is there already, and holds something else; --overwrite replaces it.")
    for path, content in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        disk.write(path, content)
    return Outcome(
        file,
        target,
        tuple(made.contents),
        made.lost,
        made.trigger,
        needs=made.needs,
        note=made.note,
        renamed=made.renamed,
        was_there=not missing,
    )


def contents_for(concept: Concept, target: str, place: Path, dtype: str) -> dict[Path, bytes]:
    """Return the files of a word for a tool, by their paths; FormatError if no format of its can hold the word."""
    tool, choices = TOOLS[TARGETS[target].tool], TARGETS[target].choices
    if target == "diffusers" and len(concept.rows) > 1:
        return formats.contents_of_each(concept, place / "learned_embeds.safetensors", dtype)
    fitting = [(name, suffix) for name, suffix in choices if formats.FORMATS[name].refuses(concept) is None]
    if not fitting:
        encoders = ", ".join(concept.rows)
        reason = formats.FORMATS[choices[-1][0]].refuses(concept)
        raise FormatError(f"{tool.title} can have no file of {concept.token!r}, which is for {encoders}: it {reason}.")
    name, suffix = fitting[0]
    path = place.with_name(f"{place.name}{suffix}")
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
