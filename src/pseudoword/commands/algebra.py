"""`pseudoword algebra`: arithmetic on words."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import tyro

from pseudoword import flags

if TYPE_CHECKING:
    from pseudoword.concept import Concept


@dataclass(frozen=True)
class _Made:
    """What every new word has."""

    file: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The words' files or folders, or ids on the Hub."""
    output: str
    """The new word's file (.safetensors, .bin, .pt) or folder."""
    token: Optional[str] = None
    """What the new word is called; the first word's token if not said."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace a file that is there already."""


@dataclass(frozen=True)
class Merge(_Made):
    """The weighted mean of words of equally many vectors."""

    weights: tuple[float, ...] = ()
    """A weight for each word, of any sum; equal if not said."""
    spherical: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Average directions and lengths apart, so that the mean is no shorter than the words."""


@dataclass(frozen=True)
class Concatenate(_Made):
    """One word of all vectors of the words, in their order."""


@dataclass(frozen=True)
class Difference(_Made):
    """The first word less the second, plus a third: king - man + woman."""


@dataclass(frozen=True)
class Scale(_Made):
    """The word with every vector as long as the words of a base's vocabulary are on the average."""

    model: Optional[str] = None
    """The base model whose vocabulary says how long; a folder, a Hub id or toybox."""
    config: Optional[str] = None
    """With a base that is a .safetensors or .ckpt file: folder in diffusers layout, or Hub id, of a base like it."""


@dataclass(frozen=True)
class Prune(_Made):
    """The word with some of its vectors."""

    keep: tuple[int, ...] = ()
    """Vectors to keep, counted from 0, in this order."""
    num_vectors: int = 0
    """How many to keep instead: those that are least like each other."""


HOW_MANY = {Merge: (2, None), Concatenate: (2, None), Difference: (2, 3), Scale: (1, 1), Prune: (1, 1)}
"""Words that each takes, at least and at most."""
KINDS = {kind.__name__.lower(): kind for kind in HOW_MANY}
EARLIER = {"--base": "--model", "--vectors": "--num-vectors"}
DESCRIPTION = "Arithmetic on words: each writes a new word and leaves the others as they are."


def run(arguments: Sequence[str]) -> int:
    """Carry out one operation and write the new word."""
    name = arguments[0] if arguments else ""
    if name not in KINDS:
        if name in ("", *flags.HELP):
            print(
                flags.usage("pseudoword algebra", DESCRIPTION, {name: one.__doc__ or "" for name, one in KINDS.items()})
            )
            return 0 if name else 2
        print(f"error: there is no operation {name!r}; they are {', '.join(KINDS)}.", file=sys.stderr)
        return 2
    options = flags.parse(
        KINDS[name], arguments[1:], f"pseudoword algebra {name}", KINDS[name].__doc__ or "", earlier=EARLIER
    )
    from pseudoword import disk, formats, watch
    from pseudoword.errors import RecipeError

    watch.show_messages()
    least, most = HOW_MANY[type(options)]
    if len(options.file) < least or (most and len(options.file) > most):
        some = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        raise RecipeError(f"This takes {some} word(s), but {len(options.file)} are named.")
    files = [formats.find(formats.fetched(file)) for file in options.file]
    output = Path(options.output).expanduser()
    if any(output.resolve() in (file.resolve(), file.parent.resolve()) for file in files if output.exists()):
        raise RecipeError(f"{output} is one of the words; write to another.")
    if output.exists() and not options.overwrite:
        raise RecipeError(f"{output} is there already; name another, or add --overwrite.")
    if disk.means_file(output, formats.ENDINGS) and output.suffix not in formats.SUFFIXES:
        raise RecipeError(f"A new word is a {', '.join(formats.SUFFIXES)} file or a folder, not {output.suffix}.")
    words = [formats.read(file) for file in files]
    made = _carried_out(options, words)
    with disk.writing(output):
        written = made.save(output)
    print(f"{written}: {made.token}, {made.num_vectors} vector(s)")
    return 0


def _carried_out(options: Merge | Concatenate | Difference | Scale | Prune, words: Sequence[Concept]) -> Concept:
    from pseudoword import algebra

    token = options.token or ""
    match options:
        case Merge():
            return algebra.merge(words, options.weights or None, spherical=options.spherical, token=token)
        case Concatenate():
            return algebra.concatenate(words, token)
        case Difference():
            return algebra.difference(*words, token=token)
        case Scale():
            return algebra.scale(words[0], _mean_norms(options, words[0]), token)
        case Prune():
            return algebra.prune(words[0], options.keep, options.num_vectors, token)


def _mean_norms(options: Scale, word: Concept) -> dict[str, float]:
    """Return the mean norm of the base's vocabulary for each text encoder; TokenError for a word of another base."""
    import numpy as np

    from pseudoword.errors import RecipeError
    from pseudoword.inspection import vocabularies_of
    from pseudoword.recipe import BaseModel

    if not options.model:
        raise RecipeError("Name the base whose vocabulary the word shall be as long as: --model MODEL.")
    vocabularies = vocabularies_of(BaseModel(options.model, config=options.config))
    for encoder, vocabulary in vocabularies.items():
        vocabulary.rows_of(word, encoder)
    return {encoder: float(np.linalg.norm(v.table, axis=1).mean()) for encoder, v in vocabularies.items()}
