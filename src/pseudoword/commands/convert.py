"""`pseudoword convert`: words as the files of other tools."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import tyro

from pseudoword import bar, flags

if TYPE_CHECKING:
    from pseudoword.converting import Outcome

EXAMPLES = (
    "pseudoword convert cat-run --to comfyui,a1111 --output cat-files",
    "pseudoword convert embeddings/ --to invokeai --output for-invokeai",
    "pseudoword convert cat-run --into lora.safetensors --output with-cat.safetensors",
)
DESCRIPTION = (
    "Write words as the files of other tools: diffusers, a1111, a1111-picture, forge, comfyui, invokeai, kohya, "
    "onetrainer, original; or into a LoRA's file. What a file cannot say is told."
)


@dataclass(frozen=True)
class Options:
    """Write words as the files of other tools."""

    file: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Embedding files, runs, folders of them, or ids on the Hub: every format, whatever the ending says."""
    to: Optional[str] = None
    """Tools to write for, separated by commas: comfyui,a1111."""
    into: Optional[str] = None
    """A LoRA's .safetensors file to bundle the words with; --output then is the new file."""
    output: str = "converted"
    """Folder for the files, each in a folder of its tool's name; or, of one word for one tool, the file itself."""
    token: Optional[str] = None
    """What the word is called from now on, where the input holds one."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """How numbers are stored; fp32 loses nothing. Pictures have decimals."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that are there and hold something else."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a JSON object a line for each word and tool."""


def run(arguments: Sequence[str]) -> int:
    """Convert, show what became of each, and return 1 if something could not be converted."""
    options = flags.parse(Options, arguments, "pseudoword convert", DESCRIPTION, examples=EXAMPLES)
    from pseudoword import watch

    watch.show_messages()
    from pseudoword import converting, disk, formats
    from pseudoword.errors import RecipeError

    if not options.file:
        raise RecipeError("Name at least one embedding file, or a folder of them.")
    if bool(options.to) == bool(options.into):
        raise RecipeError("Name tools with --to, such as --to comfyui,a1111, or a LoRA with --into; one of the two.")
    targets = [name.strip() for name in (options.to or "").split(",") if name.strip()]
    if options.to and not targets:
        raise RecipeError("--to names no tool; say --to comfyui, for example.")
    converting.check(targets, options.dtype)
    output = Path(options.output).expanduser()
    files = converting.sources(options.file, besides=output)
    is_file = disk.means_file(output, formats.ENDINGS)
    if is_file and output.suffix.lower() not in formats.ENDINGS:
        raise RecipeError(f"--output {output} is a file; name a folder, or a file that ends as an embedding's does.")
    with disk.writing(output):
        if options.into:
            return _into(options, files, output)
        if is_file:
            one = converting.convert_one(
                files, targets, output, options.token, options.dtype, overwrite=options.overwrite
            )
            return _show([one], 1, options)
        found = converting.convert(
            files, targets, output, token=options.token, dtype=options.dtype, overwrite=options.overwrite
        )
        return _show(found, len(files) * len(targets), options)


def _into(options: Options, files: Sequence[Path], output: Path) -> int:
    from pseudoword import converting, formats
    from pseudoword.errors import RecipeError

    lora = Path(options.into or "").expanduser()
    if output.suffix != ".safetensors":
        raise RecipeError("With --into LORA, name the new file: --output NEW.safetensors.")
    if options.json or options.dtype != "fp32":
        raise RecipeError("--into has no --json and no --dtype: words are put into a LoRA's file in fp32.")
    if output.exists() and (output.resolve() == lora.resolve() or not options.overwrite):
        raise RecipeError(f"{output} is there already; name another file, or, if it is not the LoRA, add --overwrite.")
    words = converting.words(files, options.token)
    formats.bundle_into(lora, words, output)
    names = ", ".join(f"{word.token} as {formats.safe_stem(word.token)}" for word in words)
    print(f"{output} has {names}.")
    return 0


def _show(outcomes: Iterable[Outcome], expected: int, options: Options) -> int:
    failed = written = there = 0
    with _bar(expected, shown=not options.json and bar.has_room()) as advance:
        for outcome in outcomes:
            advance()
            failed += bool(outcome.error)
            there += outcome.was_there
            written += bool(outcome.written) and not outcome.was_there
            if options.json:
                print(json.dumps(dataclasses.asdict(outcome), default=str))
            elif outcome.error:
                print(f"error: {outcome.error}", file=sys.stderr)
            elif expected <= MOST_LINES:
                print(_line(outcome))
    if not options.json:
        print(f"{written} written, {there} were there already, {failed} could not be converted.")
    return 1 if failed else 0


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Show a bar for the block, if it is to be, and yield what advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn

    if not shown:
        yield lambda: None
        return
    with bar.bar("converting", BarColumn(bar_width=None), MofNCompleteColumn(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


MOST_LINES = 40
"""Of words that went well; of more, only their number is shown."""


def _line(outcome: Outcome) -> str:
    lost = f"; it does not hold {', '.join(outcome.lost)}" if outcome.lost else ""
    note = f" ({outcome.note})" if outcome.note else ""
    renamed = f"; it is called {outcome.renamed}, which every tool reads in prompts" if outcome.renamed else ""
    first, *more = outcome.written
    name = first.parent if more else first
    needs = f"; {outcome.needs}" if outcome.needs else ""
    return f"{name}: in prompts {outcome.trigger}{note}{renamed}{lost}{needs}"
