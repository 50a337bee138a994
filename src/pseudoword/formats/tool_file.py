"""A file as tools look at it: what is in it, and what it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from pseudoword.contents import Contents
from pseudoword.formats import misread
from pseudoword.formats.names import UNMISTAKABLE, container_of
from pseudoword.formats.tensors import BUNDLED


@dataclass(frozen=True)
class File:
    """A file as tools look at it: what is in it, and what it is called."""

    contents: Contents
    name: str

    @property
    def values(self) -> Mapping[str, Any]:
        """Its named values."""
        return self.contents.values

    @property
    def path(self) -> PurePath:
        """Its name, to be taken apart."""
        return PurePath(self.name)

    @property
    def ending(self) -> str:
        """Its ending, in lower case."""
        return self.path.suffix.lower()

    @property
    def is_what_it_says(self) -> bool:
        """Whether the container is the one that the file's ending promises."""
        return self.contents.container == container_of(self.ending)

    @property
    def terms(self) -> Mapping[str, Any]:
        """The rows of `string_to_param` by their names; none in a file of another kind."""
        own = self.values.get("string_to_param")
        return own if isinstance(own, Mapping) else {}

    @property
    def bundled(self) -> bool:
        """Whether words are bundled with a LoRA."""
        return any(name.startswith(BUNDLED) for name in self.values)

    @property
    def beside_others(self) -> bool:
        """Whether what was read is a part of the file, a LoRA's."""
        return self.contents.others > 0

    @property
    def only_width(self) -> int:
        """The width of the file's only rows; 0 if it has rows of several."""
        rows = list(self.terms.values() or self.values.values())
        return self.width(rows[0]) if len(rows) == 1 else 0

    @property
    def foreign(self) -> bool:
        """Whether it has keys of text encoders other than those of Stable Diffusion and FLUX.1."""
        return bool(misread.foreign_encoders(self.contents))

    @property
    def keyed(self) -> bool:
        """Whether all its values are rows by text encoder, or one of Stable Diffusion's or FLUX.1's is."""
        usual = any(name in self.values for name in UNMISTAKABLE)
        return usual or self.foreign

    def has(self, *names: str) -> bool:
        """Whether there are values of all these names."""
        return all(name in self.values for name in names)

    def width(self, value: Any) -> int:
        """The last dimension of an array; 0 of anything else."""
        return value.shape[-1] if isinstance(value, np.ndarray) and value.ndim else 0

    @property
    def first(self) -> Any:
        """The first value, as tools take it that do not look at names."""
        return next(iter(self.values.values()), None)
