"""Captions: what may stand beside each picture, and which of it does at a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pseudoword.concept import Property
from pseudoword.errors import CaptionError

# The ImageNet prompt templates of Radford et al. 2021 as chosen by Gal et al. 2022, sec. 4; the guide uses them too.
OBJECT_TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
STYLE_TEMPLATES = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a cropped painting in the style of {}",
    "a good painting in the style of {}",
    "a close-up painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)
TEMPLATES: dict[Property, Sequence[str]] = {"object": OBJECT_TEMPLATES, "style": STYLE_TEMPLATES}
PLACES = ("{}", "[name]")
"""Where the word goes in templates and captions; the second is A1111's."""


COLUMNS = ("text", "caption", "prompt")
"""What captions may be called in metadata.jsonl and datasets, in order of preference."""


@dataclass(frozen=True)
class Caption:
    """A picture's caption as written, and where it is from."""

    text: str
    source: str


@dataclass(frozen=True)
class Captions:
    """What may stand beside each picture, the word already in it. Which of it does is a function of a step's draw."""

    token: str
    texts: Sequence[Sequence[str]]
    """Of each picture."""
    names: Sequence[str]
    """Where each picture's texts are from, for messages."""
    shuffle_tags: bool = False
    keep_tags: int = 1
    dropout: float = 0.0

    def text(self, picture: int, template: float, tags: int, drop: float) -> str:
        """Return the caption that numbers of a draw choose."""
        if drop < self.dropout:
            return self.token
        own = self.texts[picture]
        text = own[int(template * len(own))]
        if not self.shuffle_tags:
            return text
        kept, rest = self._tags(text)
        order = np.random.Generator(np.random.Philox(key=tags)).permutation(len(rest))
        return ", ".join([*kept, *(rest[i] for i in order)])

    def hardest(self) -> Iterator[tuple[str, str]]:
        """Yield (where from, text) of all captions, tags in the order in which a length limit cuts the word soonest."""
        if self.dropout:
            yield "dropped captions", self.token
        for name, own in dict(zip(self.names, self.texts, strict=True)).items():
            for text in own:
                kept, rest = self._tags(text) if self.shuffle_tags else ([text], [])
                yield name, ", ".join([*kept, *sorted(rest, key=lambda tag: self.token in tag)])

    def _tags(self, text: str) -> tuple[list[str], list[str]]:
        """Return the tags that stay in front, and the others."""
        tags = [tag.strip() for tag in text.split(",") if tag.strip()]
        return tags[: self.keep_tags], tags[self.keep_tags :]


def with_word(text: str, token: str) -> str:
    """Return a template or caption with the word in its place."""
    for place in PLACES:
        text = text.replace(place, token)
    return text


def read_templates(path: str | Path, token: str) -> list[str]:
    """Return the captions that a file of templates makes, one a line; CaptionError names the line that makes none."""
    path = Path(path).expanduser()
    texts = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        text = with_word(line.strip(), token)
        if "[filewords]" in text:
            raise CaptionError(f"{path}, line {number}: [filewords] is not known; captions 'files' takes them whole.")
        if token not in text:
            raise CaptionError(f"{path}, line {number}, has no {{}} where the word goes: {line.strip()!r}.")
        texts.append(text)
    if not texts:
        raise CaptionError(f"{path} holds no template; write one a line, such as 'a photo of {{}}'.")
    return texts


def read_text(path: Path) -> str:
    """Return what a text file says; CaptionError if it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise CaptionError(f"Cannot read {path}: {error.strerror}.") from error
