"""Rules by which tools load embedding files or not, and those that several tools have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pseudoword.contents import Parameters
from pseudoword.formats import misread
from pseudoword.formats.tool_file import File

WITH_ONE_ENCODER = (768, 1024)
"""Widths of text encoders that bases have alone: Stable Diffusion 1.x and 2.x."""
LOADABLE = (".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Rule:
    """What a tool does with a file for which `when` holds and no earlier rule did."""

    when: Callable[[File], bool]
    loads: bool
    says: str
    """As what it is loaded, or why it is not."""
    needs: Callable[[File], str] | None = None
    """What has to be set in the tool for it, if anything."""


def loads(when: Callable[[File], bool], says: str, needs: Callable[[File], str] | None = None) -> Rule:
    """Return a rule by which a tool loads a file."""
    return Rule(when, True, says, needs)


def refuses(when: Callable[[File], bool], says: str) -> Rule:
    """Return a rule by which a tool does not load a file."""
    return Rule(when, False, says)


def is_array(value: Any, *dimensions: int) -> bool:
    """Whether a value is an array of so many dimensions."""
    return isinstance(value, np.ndarray) and value.ndim in dimensions


def one(values: Iterable[Any], *dimensions: int) -> bool:
    """Whether there is one value alone, an array of so many dimensions."""
    only = list(values)
    return len(only) == 1 and is_array(only[0], *dimensions)


NO_BASE = refuses(
    lambda f: f.only_width not in (0, *WITH_ONE_ENCODER), "has no base with one text encoder of this width"
)
PART_OF_LORA = refuses(lambda f: f.beside_others and not f.bundled, "finds the tensors of a LoRA around the word")
NO_PICTURES = refuses(lambda f: f.contents.container == "picture", "reads no pictures")
BY_ENDING = refuses(lambda f: not f.is_what_it_says, "goes by the ending, which says another kind of file than it is")
NO_LORA = refuses(lambda f: f.bundled, "knows no words in LoRA files")
NAMELESS = refuses(lambda f: f.has(""), "expects tensors with names")
NO_SAFE_TYPE = refuses(
    lambda f: isinstance(f.terms, Parameters),
    "unpickles safe types alone, as torch does since 2.6; this has others",
)
FIRST_IS_WORD = loads(
    lambda f: f.has("emp_params") and f.first is f.values["emp_params"], "the first of its tensors, emp_params"
)
AS_XL = refuses(
    lambda f: f.has("clip_g") and (f.has("t5") or f.has("t5xxl") or f.foreign),
    "takes a word of more text encoders (SD 3, HiDream) for one of SDXL's",
)
FOREIGN = refuses(lambda f: f.foreign and len(f.values) == 1, "has no base with this text encoder")
WRONG_KEY = refuses(
    lambda f: misread.has_key_of_another(f.contents),
    "would find rows under the key of another text encoder; pseudoword convert repairs the key",
)
SEVERAL = refuses(
    lambda f: misread.has_several_words(f.contents),
    "takes one word a file, and this has several; pseudoword convert writes a file of each",
)
UNEVEN = refuses(
    lambda f: f.has("clip_l", "clip_g") and misread.has_uneven_counts(f.contents),
    "expects as many vectors for clip_l as for clip_g",
)
