"""Evaluation prompts: what a word is asked to do besides what it was trained on, `{}` where it stands.

As in DreamBooth's protocol (Ruiz et al. 2023, arXiv 2208.12242, section 4.1) objects are asked for in other places and
with other properties, living things in places, with things on and doing things. The lists are our own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pseudoword.errors import RecipeError

Kind = Literal["object", "living", "style"]


@dataclass(frozen=True)
class Question:
    """An evaluation prompt."""

    text: str
    """The prompt, `{}` where the word stands."""
    plain: bool = False
    """Whether it asks for the word and nothing else; such pictures say nothing about editability."""

    def saying(self, word: str) -> str:
        """Return the prompt with a word in its place."""
        return self.text.replace("{}", word)

    def __post_init__(self) -> None:
        if self.text.count("{}") != 1:
            raise RecipeError(f"The evaluation prompt {self.text!r} needs {{}} once, where the word goes.")


PLAIN: dict[Kind, tuple[str, ...]] = {
    "object": ("a photo of a {}",),
    "living": ("a photo of a {}",),
    "style": ("a painting in the style of {}",),
}
EDITED: dict[Kind, tuple[str, ...]] = {
    "object": (
        "a photo of a {} in the snow",
        "a photo of a {} on a sandy beach",
        "a photo of a {} in a dense forest",
        "a photo of a {} on a kitchen table",
        "a photo of a {} on a city street at night",
        "a photo of a {} on top of a pile of books",
        "a photo of a {} floating in a swimming pool",
        "a photo of a {} in front of a snowy mountain",
        "a photo of a {} on a blue carpet",
        "a photo of a {} beside a red apple",
        "a photo of a {} next to a sleeping dog",
        "a photo of a {} in a field of sunflowers",
        "a photo of a {} held in a hand",
        "a photo of a {} in a shop window",
        "a photo of a {} made of glass",
        "a photo of a {} made of wood",
        "a photo of a red {}",
        "a photo of a tiny {} on a coin",
        "a watercolor painting of a {}",
        "a pencil sketch of a {}",
    ),
    "living": (
        "a photo of a {} in the snow",
        "a photo of a {} on a sandy beach",
        "a photo of a {} in a dense forest",
        "a photo of a {} on a city street at night",
        "a photo of a {} in front of a snowy mountain",
        "a photo of a {} on a red sofa",
        "a photo of a {} in a field of flowers",
        "a photo of a {} on a small boat",
        "a photo of a {} wearing a red hat",
        "a photo of a {} wearing a yellow raincoat",
        "a photo of a {} wearing sunglasses",
        "a photo of a {} dressed as an astronaut",
        "a photo of a {} with a blue scarf",
        "a photo of a {} asleep on a blanket",
        "a photo of a {} running on the grass",
        "a photo of a {} swimming in a lake",
        "a photo of a {} beside a bicycle",
        "an oil painting of a {}",
        "a pencil sketch of a {}",
        "a marble statue of a {}",
    ),
    "style": (
        "a painting of a cat in the style of {}",
        "a painting of a house by a lake in the style of {}",
        "a painting of a city street at night in the style of {}",
        "a painting of a bowl of fruit in the style of {}",
        "a painting of a woman reading in the style of {}",
        "a painting of a ship on a stormy sea in the style of {}",
        "a painting of a snowy forest in the style of {}",
        "a painting of a red bicycle in the style of {}",
        "a painting of a horse in a field in the style of {}",
        "a painting of an old car in the style of {}",
        "a painting of a mountain at sunrise in the style of {}",
        "a painting of a vase of flowers in the style of {}",
    ),
}
LISTS: dict[Kind, tuple[Question, ...]] = {
    kind: (*(Question(text, plain=True) for text in PLAIN[kind]), *(Question(text) for text in EDITED[kind]))
    for kind in PLAIN
}


def read(path: Path) -> tuple[Question, ...]:
    """Read prompts from a text file, one a line with {} in each; those of its first paragraph ask for the word alone.

    A file of one paragraph has no such prompts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Cannot read the evaluation prompts {str(path)!r}: {error}.") from error
    paragraphs = [[line.strip() for line in p.splitlines() if line.strip()] for p in re.split(r"\n[ \t]*\n", text)]
    paragraphs = [lines for lines in paragraphs if lines]
    if not paragraphs:
        raise RecipeError(f"The evaluation prompts {str(path)!r} are empty; write one a line, with {{}} in each.")
    return tuple(
        Question(line, plain=i == 0 and len(paragraphs) > 1) for i, lines in enumerate(paragraphs) for line in lines
    )
