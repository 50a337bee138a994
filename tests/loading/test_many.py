"""Many words in a pipeline, and what other libraries ask of its tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pseudoword
from pseudoword.families import lending
from tests.loading.pipelines import state, word


def lent(pipeline: Any, token: str) -> np.ndarray:
    """Return a word's rows as the text encoder looks them up."""
    ids = pipeline.tokenizer(token, add_special_tokens=False).input_ids
    return lending._LENDERS[pipeline.text_encoder].rows_of(ids)


def test_rows_are_not_copied_for_every_word_that_is_added(sd: Any, monkeypatch: pytest.MonkeyPatch):
    copies: list[int] = []
    copy = lending.Lender._copy

    def counted(lender: lending.Lender, length: int) -> None:
        copies.append(length)
        copy(lender, length)

    monkeypatch.setattr(lending.Lender, "_copy", counted)
    before, words = state(sd), [word(f"<w-{i}>", seed=i) for i in range(200)]
    loaded = [pseudoword.load(sd, one) for one in words]
    assert len(copies) < 10
    for one in words:
        assert np.array_equal(lent(sd, one.token), one.rows["clip_l"])
    for one in loaded:
        one.unload()
    assert state(sd) == before


def test_reading_a_prompt_and_refusing_a_token_ask_the_tokenizer_as_often_however_many_words_there_are(
    sd: Any, monkeypatch: pytest.MonkeyPatch
):
    kind, calls = type(sd.tokenizer), list[str]()
    plain = kind._encode_plus

    def counted(tokenizer: Any, *args: Any, **options: Any) -> Any:
        calls.append("read")
        return plain(tokenizer, *args, **options)

    monkeypatch.setattr(kind, "_encode_plus", counted)
    asked: list[int] = []
    with pseudoword.load(sd, *[word(f"<w-{i}>", 8, seed=i) for i in range(50)]):
        for i in range(3):
            calls.clear()
            with pseudoword.load(sd, word(f"<more-{i}>", 8)):
                asked.append(len(calls))
    assert asked == [1, 1, 1], "all eight rows' tokens at once"


@torch.no_grad()
def test_a_place_that_is_taken_again_is_not_written_over_under_a_prompt_that_reads_it(sd: Any):
    first, other = word("<first>", seed=1), word("<other>", seed=2)
    with pseudoword.load(sd, word("<stays>", seed=3)):
        loaded = pseudoword.load(sd, first)
        lender = lending._LENDERS[sd.text_encoder]
        ids = sd.tokenizer("<first>", add_special_tokens=False).input_ids
        read = lender._on  # as a prompt does when it begins
        loaded.unload()
        with pseudoword.load(sd, other):
            assert sd.tokenizer("<other>", add_special_tokens=False).input_ids == ids
            assert np.array_equal(lent(sd, "<other>"), other.rows["clip_l"])
            rows = read(torch.zeros(1))[[i - lender.size for i in ids]]
            assert np.array_equal(rows.numpy(), first.rows["clip_l"])


@pytest.mark.parametrize(
    "text", ["<toy>", "a photo of <toy>, red", "<toy>_1 and <one>", "no word", "<toy> <toy>_1 <toy>_2 x"]
)
@pytest.mark.parametrize("special", [False, True])
def test_tokens_and_ids_are_those_that_a_prompt_is_read_as(sd: Any, text: str, special: bool):
    with pseudoword.load(sd, word("<toy>", 3), word("<one>", 1)):
        tokenizer = sd.tokenizer
        ids = tokenizer(text, add_special_tokens=special).input_ids
        tokens = tokenizer.tokenize(text, add_special_tokens=special)
        assert tokenizer.convert_tokens_to_ids(tokens) == ids
        assert tokenizer.convert_ids_to_tokens(ids) == tokens


def test_a_words_tokens_are_known_one_by_one_and_forgotten_with_it(sd: Any):
    plain, unknown = sd.tokenizer, sd.tokenizer.unk_token_id
    with pseudoword.load(sd, word("<toy>", 2)):
        tokenizer, size = sd.tokenizer, sd.text_encoder.get_input_embeddings().num_embeddings
        assert tokenizer.convert_tokens_to_ids("<toy>") == size
        assert tokenizer.convert_tokens_to_ids("<toy>_1") == size + 1
        assert tokenizer.convert_tokens_to_ids("<toy>_2") == unknown
        assert tokenizer.convert_tokens_to_ids("a</w>") == plain.convert_tokens_to_ids("a</w>") != unknown
        assert tokenizer.tokenize("a <toy>") == ["a</w>", "<toy>", "<toy>_1"]
        assert tokenizer.convert_ids_to_tokens(size) == "<toy>"
        assert tokenizer.eos_token_id == plain.eos_token_id
    assert sd.tokenizer is plain
    assert plain.convert_tokens_to_ids("<toy>") == unknown
