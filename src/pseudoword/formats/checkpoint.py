"""The words in a run's checkpoint: rows of its parameters, for steps at which the run wrote no word."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import methods
from pseudoword.contents import Contents, Word
from pseudoword.errors import FormatError

STATE = "state.safetensors"
DESCRIPTION = "checkpoint.json"


def is_checkpoint(path: Path) -> bool:
    """Whether a path is the file that holds a checkpoint's arrays."""
    return path.name == STATE and path.with_name(DESCRIPTION).is_file()


def words(contents: Contents, path: Path) -> list[Word]:
    """Return a checkpoint's words, in the order in which they are learned. FormatError if it is damaged.

    `contents` are those of its state.safetensors; which words those rows are, and their method, is in checkpoint.json.
    """
    try:
        facts = json.loads(path.with_name(DESCRIPTION).read_text(encoding="utf-8"))
        options = dict(facts["recipe"]["method"])
        name = options.pop("name")
        method = methods.build(methods.OPTIONS[name](**options))
        failed = facts.get("failed", {})
        learned = [concept for concept in facts["recipe"]["concepts"] if concept["token"] not in failed]
        found = []
        for place, concept in enumerate(learned):
            rows = method.rows(np, _params(contents.values, place))
            metadata = {
                "base": Path(facts["recipe"]["base"]["model"]).name,
                "steps": str(facts["step"]),
                "property": concept.get("property", "object"),
            }
            if not rows:
                raise FormatError(f"The checkpoint {str(path.parent)!r} has no rows of {concept['token']!r}.")
            found.append(Word(concept["token"], rows, metadata))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"The checkpoint {str(path.parent)!r} is damaged ({type(error).__name__}: {error})."
        ) from error
    return found


def _params(values: Mapping[str, Any], place: int) -> dict[str, np.ndarray]:
    """Return the parameters of the concept at a place, by their own names."""
    start = f"params.{place}."
    return {name.removeprefix(start): array for name, array in values.items() if name.startswith(start)}
