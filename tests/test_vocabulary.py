"""Prompts to ids against a scanner of characters and diffusers' own expansion, lending, and rows to start from."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudoword.concept import Concept
from pseudoword.errors import RecipeError, TokenError
from pseudoword.families.sd import miniature
from pseudoword.placeholder import vector_tokens
from pseudoword.vocabulary import Vocabulary

Words = list[tuple[str, int]]
WIDTH = 8
LENGTHS = st.sampled_from([77, 20, 7, 4, 3, 2])
WORDS: list[Words] = [
    [("<t>", 1)],
    [("<t>", 3)],
    [("<t>", 14)],  # <t>_1 and <t>_12 are both names of its rows
    [("<t>", 2), ("<T>", 1)],
    [("<t>", 2), ("<t><u>", 3), ("<u>", 1)],  # a token inside another
    [("<t>", 1), ("<t>_1", 2)],  # a word that looks like a row of another
    [("sks-cat", 2), ("sks", 1), ("éa", 2)],
    [("a.b*", 2), ("x_1", 2)],  # regular expressions would read these as patterns
]
GLUE = [
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    ",",
    "(",
    ")",
    ":1.2",
    "a",
    "photo of",
    "cat",
    "s",
    "_",
    "1",
    "2",
    "_1",
    "<",
    ">",
    "é",
]


@functools.cache
def tokenizer(max_length: int = 77) -> Any:
    return miniature.clip_tokenizer(max_length)


@functools.cache
def table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(tokenizer()), WIDTH)).astype(np.float32)


def vocabulary(words: Words = (), max_length: int = 77) -> Vocabulary:
    made = Vocabulary(tokenizer(max_length), table())
    for token, vectors in words:
        made.lend(token, vectors)
    return made


# The reference: look at every character, and take the longest name that stands alone there.


def scan(text: str, words: Words) -> tuple[list[int], list[tuple[str, bool, int]]]:
    """Return the ids between start and end, and (word, all of it, where it ends) for each word found."""
    first = dict(zip([t for t, _ in words], np.cumsum([0, *(n for _, n in words)])[:-1] + len(table()), strict=True))
    ids: list[int] = []
    found: list[tuple[str, bool, int]] = []
    plain, at = "", 0
    while at < len(text):
        names = [name for token, n in words for name in names_at(text, at, token, n)]
        if names and not (at and is_letter(text[at - 1])):
            end, token, rows = max(names)
            ids += [*plain_ids(plain), *(int(first[token]) + row for row in rows)]
            found.append((token, len(rows) == dict(words)[token], len(ids)))
            plain, at = "", end
        else:
            plain, at = plain + text[at], at + 1
    return [*ids, *plain_ids(plain)], found


def names_at(text: str, at: int, token: str, vectors: int) -> list[tuple[int, str, list[int]]]:
    """Return (end, token, rows) of each name of a word that starts here and is not followed by a letter."""
    everything = list(range(vectors))
    single = [(token, everything), *((f"{token}_{row}", [row]) for row in everything[1:])]
    names = [(at + len(name), token, rows) for name, rows in single if text.startswith(name, at)]
    end = at
    for row in everything:  # written out already: <t> <t>_1 <t>_2
        start = end
        while row and start < len(text) and text[start] in " \t":
            start += 1
        name = f"{token}_{row}" if row else token
        if (row and start == end) or not text.startswith(name, start):
            break
        end = start + len(name)
    else:
        names.append((end, token, everything))
    return [name for name in names if name[0] == len(text) or not is_letter(text[name[0]])]


def is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def plain_ids(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def check(text: str, words: Words, max_length: int) -> None:
    encoded = vocabulary(words, max_length).encode(text)
    body, found = scan(text, words)
    room = max_length - 2
    inside = body[:room]
    end = [tokenizer().eos_token_id] + [tokenizer().pad_token_id] * (room - len(inside))
    assert encoded.ids.dtype == np.int64
    assert encoded.ids.tolist() == [tokenizer().bos_token_id, *inside, *end]
    assert encoded.words == tuple(token for token, whole, at in found if whole and at <= room)
    assert encoded.cut == tuple(token for token, _, at in found if at > room)


@st.composite
def prompts(draw: Any) -> tuple[str, Words]:
    words = draw(st.sampled_from(WORDS))
    names = [name for token, n in words for name in vector_tokens(token, n)]
    written_out = [" ".join(vector_tokens(token, n)) for token, n in words]
    pieces = st.sampled_from([*(token for token, _ in words), *names, *written_out, *(n.upper() for n in names), *GLUE])
    return "".join(draw(st.lists(pieces, max_size=25))), words


@settings(max_examples=300, deadline=None)
@given(prompt=prompts(), max_length=LENGTHS)
def test_expansion_is_what_a_scanner_of_characters_finds(prompt: tuple[str, Words], max_length: int):
    check(*prompt, max_length)


@pytest.mark.parametrize(
    ("text", "words", "expected", "whole"),  # expected: which of the lent rows, or None for plain text
    [
        ("x<t>x", [("<t>", 2)], None, ()),
        ("<t>x", [("<t>", 2)], None, ()),
        ("x <t>,", [("<t>", 2)], [0, 1], ("<t>",)),
        ("<T>", [("<t>", 2)], None, ()),
        ("<t><t>", [("<t>", 2)], [0, 1, 0, 1], ("<t>", "<t>")),
        ("<t> <t>_1", [("<t>", 2)], [0, 1], ("<t>",)),
        ("<t> \t <t>_1 <t>_2", [("<t>", 3)], [0, 1, 2], ("<t>",)),
        ("<t> <t>_1", [("<t>", 3)], [0, 1, 2, 1], ("<t>",)),
        ("<t>_1 <t>", [("<t>", 2)], [1, 0, 1], ("<t>",)),
        ("<t>_1", [("<t>", 2)], [1], ()),
        ("<t>_12", [("<t>", 14)], [12], ()),
        ("<t>_12", [("<t>", 2)], None, ()),
        ("<t>_1", [("<t>", 1), ("<t>_1", 2)], [1, 2], ("<t>_1",)),
        ("<t><u>", [("<t>", 1), ("<u>", 1), ("<t><u>", 1)], [2], ("<t><u>",)),
        ("scats cat-toys cat-toy", [("cat-toy", 1)], [0], ("cat-toy",)),
    ],
)
def test_a_token_is_a_word_only_where_it_stands_alone(text: str, words: Words, expected: Any, whole: tuple[str, ...]):
    made = vocabulary(words)
    encoded = made.encode(text)
    rows = [i - made.size for i in encoded.ids.tolist() if i >= made.size]
    assert rows == (expected or [])
    assert (encoded.words, encoded.cut) == (whole, ())
    if expected is None:
        assert encoded.ids.tolist() == vocabulary().encode(text).ids.tolist()


def test_the_end_of_the_model_s_length_cuts_words_and_they_are_named():
    words = [("<t>", 3), ("<u>", 2)]
    encoded = vocabulary(words, max_length=9).encode("a <t> a <u> <u> <t>")  # room for 7: a, 3 rows, a, 2 rows
    assert encoded.words == ("<t>", "<u>")
    assert encoded.cut == ("<u>", "<t>")
    assert encoded.ids.tolist()[-1] == tokenizer().eos_token_id
    assert vocabulary(words, max_length=8).encode("a <t> a <u>").cut == ("<u>",)


def test_padding_is_the_tokenizer_s_own_token():
    own = miniature.clip_tokenizer(10)
    own.pad_token = "!"
    ids = Vocabulary(own, table()).encode("a cat").ids.tolist()
    assert ids == own("a cat", padding="max_length", max_length=10).input_ids
    assert ids[-1] == own.convert_tokens_to_ids("!") != own.eos_token_id


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=100), max_length=LENGTHS)
def test_text_without_words_is_encoded_as_the_tokenizer_does(text: str, max_length: int):
    own = tokenizer(max_length)(text, padding="max_length", truncation=True, max_length=max_length)
    assert vocabulary(max_length=max_length).encode(text).ids.tolist() == own.input_ids


@settings(max_examples=100, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(["<cat-toy>", "<dog>", "a", "photo", "of", "red", "toys", "(", "),", "."]), max_size=20
    ),
    vectors=st.integers(1, 4),
)
def test_ordinary_prompts_become_the_ids_that_diffusers_makes(pieces: list[str], vectors: int):
    words = [("<cat-toy>", vectors), ("<dog>", 1)]
    theirs = miniature.clip_tokenizer(20)
    theirs.add_tokens([name for token, n in words for name in vector_tokens(token, n)])
    text = " ".join(pieces)
    prompt = TextualInversionLoaderMixin().maybe_convert_prompt(text, theirs)
    ids = theirs(prompt, padding="max_length", truncation=True, max_length=20).input_ids
    assert vocabulary(words, 20).encode(text).ids.tolist() == ids


# Lending words


def test_words_lent_one_after_the_other_get_consecutive_rows_and_are_given_back_together():
    made = vocabulary()
    assert made.lend("<a>", 2) == [made.size, made.size + 1]
    assert made.lend("<b>", 3) == [made.size + 2, made.size + 3, made.size + 4]
    assert made.rows_lent == 5
    made.give_back()
    assert made.rows_lent == 0
    assert made.encode("<a> <b>").ids.tolist() == vocabulary().encode("<a> <b>").ids.tolist()
    assert made.lend("<b>", 1) == [made.size]


def test_a_tokenizer_of_another_model_is_refused():
    own = miniature.clip_tokenizer()
    own.add_tokens(["<known>"])
    with pytest.raises(RecipeError, match=r"has \d+ tokens, but the text encoder's table only \d+ rows"):
        Vocabulary(own, table())


def test_a_token_that_is_taken_is_refused_and_nothing_is_lent():
    own = miniature.clip_tokenizer()
    own.add_tokens(["<known>", "<new>_1"])
    made = Vocabulary(own, np.concatenate([table(), table()[:2]]))
    made.lend("<t>", 3)
    for token, vectors, message in [
        ("toy", 1, r"The token 'toy' is already in the vocabulary \(id \d+\); choose one .* such as '<toy>'\."),
        ("TOY", 1, r"The token 'TOY' is already in the vocabulary"),
        ("<known>", 1, r"The token '<known>' is already an added token of this tokenizer; choose another\."),
        ("<new>", 2, r"The token '<new>_1' is already an added token"),
        ("<t>", 1, r"The token '<t>' is already the name of a learned word here; choose another\."),
        ("<t>_2", 1, r"The token '<t>_2' is already the name of a learned word"),
    ]:
        with pytest.raises(TokenError, match=message):
            made.lend(token, vectors)
    assert made.rows_lent == 3
    made.lend("<t>_3", 1)  # no row of <t> has this name
    with pytest.raises(TokenError, match="'<t>_3' is already the name"):
        vocabulary([("<t>_3", 1)]).lend("<t>", 4)


@pytest.mark.parametrize("token", ["", " <t>", "my cat", "a\tb", "a\nb", "a\u00a0b", "a\x00"])
def test_a_token_must_be_one_printable_word(token: str):
    with pytest.raises(TokenError, match="must be one word of printable characters without spaces, but is"):
        vocabulary().lend(token, 1)


# Rows to start from


def row(word: str) -> np.ndarray:
    return table()[tokenizer().convert_tokens_to_ids(f"{word}</w>")]


def test_one_word_starts_every_vector():
    rows, how = vocabulary().initial_rows("toy", 3)
    assert np.array_equal(rows, np.stack([row("toy")] * 3))
    assert rows.dtype == np.float32
    assert how == "3 vector(s) start from 'toy' (1 token(s) ['toy</w>']: the same for every vector)"


def test_a_phrase_is_spread_over_the_vectors_in_order():
    rows, how = vocabulary().initial_rows("red toy", 2)
    assert np.array_equal(rows, [row("red"), row("toy")])
    assert how.endswith("spread over the vectors in order)")
    rows, _ = vocabulary().initial_rows("red toy", 5)
    assert np.array_equal(rows, [row("red")] * 3 + [row("toy")] * 2)


def test_more_tokens_than_vectors_make_each_vector_the_mean_of_its_share():
    rows, how = vocabulary().initial_rows("a red toy", 1)
    assert np.allclose(rows, [(row("a") + row("red") + row("toy")) / 3], rtol=1e-6)
    assert how.endswith("each vector the mean of its share)")
    rows, _ = vocabulary().initial_rows("a red toy", 2)
    assert np.allclose(rows, [(row("a") + row("red")) / 2, row("toy")], rtol=1e-6)


@pytest.mark.parametrize("initializer", ["", "   ", "<|endoftext|><|endoftext|>"])
def test_an_initializer_without_a_known_word_is_refused(initializer: str):
    # CLIP's unknown token is its end token; nothing else is unknown to a tokenizer of all bytes.
    with pytest.raises(TokenError, match=r"The initializer '.*' has no known word; try a plain noun such as 'toy'\."):
        vocabulary().initial_rows(initializer, 1)


def test_the_nearest_tokens_are_those_of_largest_cosine():
    query = row("cat") + 0.01
    found = vocabulary().nearest(query, 4)
    cosines = {i: float(np.dot(r, query) / np.sqrt(np.dot(r, r) * np.dot(query, query))) for i, r in enumerate(table())}
    best = sorted(cosines, key=lambda i: -cosines[i])[:4]
    names = [name.removesuffix("</w>") for name in tokenizer().convert_ids_to_tokens(best)]
    assert [name for name, _ in found] == names
    assert found[0][0] == "cat"
    assert [cosine for _, cosine in found] == pytest.approx([cosines[i] for i in best], rel=1e-5)


def test_rows_for_another_width_are_refused_naming_both():
    made = vocabulary()
    right = Concept("<t>", {"clip_l": np.ones((2, WIDTH))})
    assert np.array_equal(made.rows_of(right, "clip_l"), right.rows["clip_l"])
    wrong = Concept("<t>", {"clip_h": np.ones((1, 1024))}, base="somebody/sd-2-1")
    with pytest.raises(
        TokenError,
        match=r"'<t>' has rows for clip_h of width 1024; this base wants clip_l of width 8\. "
        r"It was trained on 'somebody/sd-2-1'\.",
    ):
        made.rows_of(wrong, "clip_l")
    with pytest.raises(TokenError, match=r"clip_l of width 16; this base wants clip_l of width 8\.$"):
        made.rows_of(Concept("<t>", {"clip_l": np.ones((1, 16))}), "clip_l")
