"""A concept: a placeholder token, its property and its learned rows — what an embedding file holds."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Float

from pseudoword import encoders
from pseudoword.errors import TokenError
from pseudoword.placeholder import check_token, vector_tokens

Property = Literal["object", "style"]
Rows = Mapping[str, Float[np.ndarray, "vectors width"]]


@dataclass(frozen=True, eq=False)
class Concept:
    """A placeholder token and its rows, one fp32 block `[vectors, width]` per text encoder (Gal et al., sec. 3).

    The blocks are in the order of the table of encoders, whatever order they are given in. They may have different
    numbers of vectors (OneTrainer's files do): in a prompt, the word stands for as many as each encoder has.
    """

    token: str
    rows: Rows
    property: Property = "object"
    base: str = ""
    """The model it was trained on, as a folder, file or Hub id; empty where a file does not say."""
    steps: int = 0
    """Optimizer steps it was trained for; 0 where a file does not say."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Whatever else the file said about it."""

    def __post_init__(self) -> None:
        check_token(self.token)
        if self.property not in ("object", "style"):
            raise TokenError(f"A concept's property is 'object' or 'style', not {self.property!r}.")
        if not self.rows:
            raise TokenError(f"The concept {self.token!r} has no rows; expected one block per text encoder.")
        blocks = {}
        order = sorted(self.rows, key=lambda encoder: encoders.ORDER.get(encoder, len(encoders.ORDER)))
        for encoder in order:
            # a copy: the caller's array stays the caller's
            block = np.array(self.rows[encoder], dtype=np.float32, order="C")
            if block.ndim != 2 or 0 in block.shape:
                raise TokenError(
                    f"Rows of {self.token!r} for {encoder} must be [vectors, width], not {list(block.shape)}."
                )
            if not np.isfinite(block).all():
                raise TokenError(f"Rows of {self.token!r} for {encoder} hold NaN or infinity; the file is damaged.")
            block.flags.writeable = False
            blocks[encoder] = block
        object.__setattr__(self, "rows", MappingProxyType(blocks))

    @builtins.property
    def num_vectors(self) -> int:
        """How many rows the word has in the text encoder that has the most; mostly all have as many."""
        return max(len(block) for block in self.rows.values())

    @builtins.property
    def vectors(self) -> dict[str, int]:
        """How many rows the word has in each text encoder."""
        return {encoder: len(block) for encoder, block in self.rows.items()}

    @builtins.property
    def vector_count(self) -> str:
        """The word's number of vectors as a sentence says it: for each text encoder, where they differ."""
        if len(set(self.vectors.values())) == 1:
            return str(self.num_vectors)
        return ", ".join(f"{count} ({encoder})" for encoder, count in self.vectors.items())

    @builtins.property
    def tokens(self) -> list[str]:
        """The word's tokens, one per vector of the text encoder that has the most."""
        return vector_tokens(self.token, self.num_vectors)

    @classmethod
    def load(cls, path: str | Path, token: str | None = None) -> Concept:
        """Read a concept from an embedding file or a run's folder.

        `token` renames the word of a file that holds one, and says which is meant of a file that holds several.
        """
        from pseudoword import formats  # the one door upwards: a noun that users load and save by name

        return formats.read(path, token=token)

    def save(self, path: str | Path) -> Path:
        """Write the word as one file, or as the guide's files into a folder; return what was written."""
        from pseudoword import formats

        return formats.write(self, path)
