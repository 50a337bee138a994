"""A1111's own: `string_to_param` with one term, and its name, steps and base; for SDXL one tensor an encoder.

The state that A1111 leaves beside a .pt to train on from, `FILE.pt.optim`, is read here too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword.concept import Concept
from pseudoword.contents import Contents, Word, blocks
from pseudoword.formats import files
from pseudoword.formats.names import STAR, by_width, metadata_of, refuses_several_encoders, token_of

log = logging.getLogger(__name__)

TOLD = "pseudoword"
"""What else we say about a word, as names and texts; no tool looks at it."""
SUFFIXES: tuple[str, ...] = (".pt", ".bin", ".png")


def owns(contents: Contents) -> bool:
    """Whether a file's content is of this format."""
    terms = contents.values.get("string_to_param")
    return isinstance(terms, Mapping) and len(blocks(terms)) == 1 and "name" in contents.values


def read(contents: Contents, stem: str) -> list[Word]:
    """Return the file's word, called as the file says, or else as it is called."""
    values = contents.values
    [rows] = blocks(values["string_to_param"]).values()
    own = values.get(TOLD)
    told = {str(k): str(v) for k, v in own.items()} if isinstance(own, Mapping) else {}
    name, step, base = (values.get(key) for key in ("name", "step", "sd_checkpoint_name"))
    if isinstance(base, str) and base:
        told.setdefault("base", base)
    if isinstance(step, int | float) and step > 0:
        told.setdefault("steps", str(int(step)))
    token = token_of(name) if isinstance(name, str) and name.strip() not in ("", "*") else token_of(stem)
    return [Word(token, by_width(rows), told)]


def refuses(concept: Concept) -> str | None:
    """Say why a word cannot be written so; None if it can."""
    return refuses_several_encoders(concept)


def write(concept: Concept, name: str) -> dict[str, Any]:
    """Return the file's values, for A1111 and diffusers, which takes the name for the token."""
    [rows] = concept.rows.values()
    return {
        "string_to_token": {"*": STAR},
        "string_to_param": {"*": np.asarray(rows)},
        "name": name,
        "step": concept.steps,
        "sd_checkpoint": None,
        "sd_checkpoint_name": concept.base or None,
        TOLD: metadata_of(concept),
    }


# What it trains on from


def optimizer_beside(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Return AdamW's running means of gradients and of their squares, as `rows`, and its steps; None if there are none.

    A1111 leaves them in `FILE.optim` ("Saves Optimizer state as separate *.optim file") with a hash of the rows; a
    file for other rows is passed over, as there.
    """
    beside = path.with_name(f"{path.name}.optim")
    if not beside.is_file():
        return None
    contents = files.open_file(beside)
    state = contents.values.get("optimizer_state_dict")
    moments = state.get("state") if isinstance(state, Mapping) else None
    own = next(iter(moments.values()), None) if isinstance(moments, Mapping) else None
    means, squares, steps = (
        own.get(k) if isinstance(own, Mapping) else None for k in ("exp_avg", "exp_avg_sq", "step")
    )
    done = np.asarray(steps).ravel() if isinstance(steps, int | float | np.ndarray) else np.zeros(0)
    counted = len(done) == 1 and 0 <= float(done[0]) < 2**31  # false for NaN
    if not isinstance(means, np.ndarray) or not isinstance(squares, np.ndarray) or not counted:
        log.warning("%s holds no state of AdamW; training starts from the rows of %s alone.", beside, path)
        return None
    own_hash = contents.values.get("hash")
    same = isinstance(own_hash, str) and own_hash == checksum(rows)
    if not same or means.shape != rows.shape or squares.shape != rows.shape:
        log.warning("%s is for other rows than those of %s, which training starts from alone.", beside, path)
        return None
    return means, squares, int(done[0])


def checksum(rows: np.ndarray) -> str:
    """Return A1111's hash of a word's rows (`Embedding.checksum`)."""
    value = 0
    for number in (rows.astype(np.float32).reshape(-1) * np.float32(100)).astype(np.int64).tolist():
        value = (value * 281 ^ number * 997) & 0xFFFFFFFF
    return f"{value & 0xFFFF:04x}"
