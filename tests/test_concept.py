"""A concept: what it takes, what it refuses, and that it stays as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pseudoword.concept import Concept
from pseudoword.encoders import encoder_of_width
from pseudoword.errors import TokenError
from pseudoword.placeholder import check_token, vector_tokens


def rows(vectors: int = 2, width: int = 4) -> np.ndarray:
    return np.arange(vectors * width, dtype=np.float32).reshape(vectors, width)


def test_a_word_has_a_token_per_vector():
    concept = Concept("<t>", {"clip_l": rows(3)})
    assert concept.num_vectors == 3
    assert concept.tokens == ["<t>", "<t>_1", "<t>_2"] == vector_tokens("<t>", 3)
    assert Concept("<t>", {"clip_l": rows(1)}).tokens == ["<t>"]


def test_what_is_not_said_has_its_default():
    concept = Concept("<t>", {"clip_l": rows()})
    assert (concept.property, concept.base, concept.steps, dict(concept.metadata)) == ("object", "", 0, {})


def test_rows_become_fp32_and_cannot_be_changed():
    given = rows().astype(np.float64)[:, ::2]
    concept = Concept("<t>", {"clip_l": given})
    held = concept.rows["clip_l"]
    given[0, 0] = 99
    assert held.dtype == np.float32
    assert held.flags.c_contiguous
    assert np.array_equal(held, rows()[:, ::2])
    with pytest.raises(ValueError, match="read-only"):
        held[0, 0] = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        concept.rows["clip_g"] = held
    with pytest.raises(dataclasses.FrozenInstanceError):
        concept.token = "<u>"


def test_an_array_that_was_given_is_not_frozen_with_the_concept():
    given = rows()
    Concept("<t>", {"clip_l": given})
    given[0, 0] = 99  # still the caller's own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token": "my cat"}, "must be one word of printable characters without spaces, but is 'my cat'"),
        ({"property": "thing"}, r"A concept's property is 'object' or 'style', not 'thing'\."),
        ({"rows": {}}, "The concept '<t>' has no rows; expected one block per text encoder"),
        ({"rows": {"clip_l": rows()[0]}}, r"Rows of '<t>' for clip_l must be \[vectors, width\], not \[4\]\."),
        ({"rows": {"clip_l": rows()[:0]}}, r"must be \[vectors, width\], not \[0, 4\]\."),
        ({"rows": {"clip_g": rows() * np.nan}}, "Rows of '<t>' for clip_g hold NaN or infinity; the file is damaged"),
        ({"rows": {"clip_g": np.full((1, 4), 1e39)}}, "hold NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_no_concept_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(TokenError, match=message):
        Concept(**{"token": "<t>", "rows": {"clip_l": rows()}, **changes})


@pytest.mark.parametrize("token", ["<cat-toy>", "*", "sks", "<日本>", "é", "a_1", "[x]"])
def test_any_printable_word_is_a_token(token: str):
    check_token(token)


@pytest.mark.parametrize("token", ["", " ", "a b", " a", "a ", "a\n", "a\u2003b", "a\u200bb", "\x7f"])
def test_a_token_that_cannot_be_written_in_a_prompt_is_refused_with_an_example(token: str):
    with pytest.raises(TokenError, match=r"try something like '<cat-toy>'\.") as refused:
        check_token(token)
    assert repr(token) in str(refused.value)


@pytest.mark.parametrize(("width", "name"), [(768, "clip_l"), (1024, "clip_h"), (1280, "clip_g"), (4096, "t5")])
def test_encoders_are_told_apart_by_their_width(width: int, name: str):
    assert encoder_of_width(width) == name
    assert encoder_of_width(width + 1) == "clip_l"


def test_a_concept_saves_and_loads_itself(tmp_path: Path):
    concept = Concept("<t>", {"clip_l": rows()}, property="style", base="somebody/model", steps=7)
    for name in ("word.safetensors", "folder"):
        loaded = Concept.load(concept.save(tmp_path / name))
        assert (loaded.token, loaded.property, loaded.base, loaded.steps) == ("<t>", "style", "somebody/model", 7)
        assert np.array_equal(loaded.rows["clip_l"], rows())
    assert Concept.load(tmp_path / "folder", token="<other>").token == "<other>"
