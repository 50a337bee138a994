"""A tokenizer and its encoder's frozen table: token ids with learned words expanded, and rows to start a word from."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pseudoword.concept import Concept
from pseudoword.errors import RecipeError, TokenError
from pseudoword.placeholder import check_token, vector_tokens
from pseudoword.spelling import did_you_mean

log = logging.getLogger(__name__)

TOKENIZING = threading.Lock()
"""Tokenizers are not made for threads; batches are prepared on one while pictures are sampled on another."""
LOOKS_LIKE_A_WORD = re.compile(r"<[^<>\s]+>")
LentRows = Mapping[str, Float[np.ndarray, "rows width"]]


@dataclass(frozen=True)
class Encoded:
    """A prompt as the text encoder reads it."""

    ids: Int[np.ndarray, " tokens"]
    """Start, words, end, padding; ids at or above the table's size are learned rows."""
    words: tuple[str, ...]
    """Placeholder tokens that the prompt holds whole."""
    cut: tuple[str, ...]
    """Placeholder tokens that the prompt's end at the model's length cut, wholly or in part."""
    length: int
    """Tokens that the whole prompt takes, start and end included, however many are read."""


class Span(NamedTuple):
    """A learned word in a prompt's ids."""

    word: str
    whole: bool
    """Whether it is all of its rows, rather than one written out as `<t>_i`."""
    end: int
    """How many ids there are up to its last."""


class Words:
    """Token ids of prompts in which learned words stand, for the tokenizer of a table of `size` rows.

    A lent word gets the ids from `size` on, one per vector, in the order of lending. Prompts are expanded by ids,
    never by replacing strings, and a token is a word only where no letter, digit or `_` touches it; tokenizers
    themselves match added tokens inside words and regardless of case (transformers' AddedToken).
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        if len(tokenizer) > size:
            raise RecipeError(
                f"The tokenizer has {len(tokenizer)} tokens, but the text encoder's table only {size} rows; "
                "they are not of one model."
            )
        self.tokenizer = tokenizer
        self.size = size
        """Rows of the frozen table."""
        self._ids: dict[str, list[int]] = {}
        self.ids_by_token: dict[str, int] = {}
        """The id of every row that is lent, by its token; `<t>_i` for the second and further rows of a word."""
        self._pattern: re.Pattern[str] | None = None
        """Of all words; made when a prompt is read first, since many words are often lent one after the other."""

    @property
    def model_max_length(self) -> int:
        """Tokens the encoder reads, start and end included."""
        return self.tokenizer.model_max_length

    @property
    def rows_lent(self) -> int:
        """How many rows are lent, over all words."""
        return sum(len(ids) for ids in self._ids.values())

    @property
    def tokens_by_id(self) -> dict[int, str]:
        """The token of each row that is lent."""
        return {i: token for token, i in self.ids_by_token.items()}

    # Lending words

    def lend(self, token: str, num_vectors: int) -> list[int]:
        """Make `token` a word of `num_vectors` rows and return their ids; TokenError if the token is taken."""
        self.check(token, num_vectors)
        first = self.size + self.rows_lent
        return self.add(token, range(first, first + num_vectors))

    def add(self, token: str, ids: Sequence[int]) -> list[int]:
        """Make `token`, which `check` has passed, a word of rows with these ids, from `size` on."""
        words = {**self._ids, token: list(ids)}
        self._ids, self._pattern = words, None
        self.ids_by_token.update(zip(vector_tokens(token, len(words[token])), words[token], strict=True))
        return words[token]

    def check(self, token: str, num_vectors: int) -> None:
        """Raise TokenError if `token` cannot be a word of so many rows."""
        check_token(token)
        for name in vector_tokens(token, num_vectors):
            self._refuse_if_known(name)

    @property
    def ids(self) -> Mapping[str, Sequence[int]]:
        """The ids of each word that is lent."""
        return dict(self._ids)

    def give_back(self, token: str | None = None) -> None:
        """Forget a lent word, or all of them."""
        words = {name: ids for name, ids in self._ids.items() if token is not None and name != token}
        for name in self._ids.keys() - words.keys():
            for row_token in vector_tokens(name, len(self._ids[name])):
                self.ids_by_token.pop(row_token, None)
        self._ids, self._pattern = words, None

    def _refuse_if_known(self, token: str) -> None:
        if token in self.tokenizer.get_added_vocab():
            raise TokenError(f"The token {token!r} is already an added token of this tokenizer; choose another.")
        if token in self.ids_by_token:
            raise TokenError(f"The token {token!r} is already the name of a learned word here; choose another.")
        ids = self._plain_ids(token)
        if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id:
            raise TokenError(
                f"The token {token!r} is already in the vocabulary (id {ids[0]}); "
                f"choose one that is not a word, such as '<{token.strip('<>')}>'."
            )
        known = self.tokenizer.convert_tokens_to_ids(token)  # the whole vocabulary as a dict would take 20 ms
        if known is not None and (known != self.tokenizer.unk_token_id or token == self.tokenizer.unk_token):
            raise TokenError(
                f"The token {token!r} is a piece that this tokenizer makes words of, so diffusers could not load it; "
                f"choose another, such as '<{token.strip('<>')}>'."
            )

    def alone(self, token: str) -> Words:
        """Return this tokenizer with one of the lent words, under the ids that it has here."""
        own = Words(self.tokenizer, self.size)
        own.add(token, self._ids[token])
        return own

    # Prompts to ids

    def encode(self, text: str) -> Encoded:
        """Return the ids of `text`, cut and padded to the model's length, and which words are in it or were cut."""
        body, spans = self.expand(text)
        room = self.model_max_length - 2
        ids = [self.tokenizer.bos_token_id, *body[:room], self.tokenizer.eos_token_id]
        ids += [self.tokenizer.pad_token_id] * (self.model_max_length - len(ids))
        return Encoded(
            np.asarray(ids, dtype=np.int64),
            words=tuple(span.word for span in spans if span.whole and span.end <= room),
            cut=tuple(span.word for span in spans if span.end > room),
            length=len(body) + 2,
        )

    def expand(self, text: str) -> tuple[list[int], list[Span]]:
        """Return all ids of `text`, without start, end or padding, and where words are in them."""
        body: list[int] = []
        spans: list[Span] = []
        for piece, word, ids in self._pieces(text):
            body += self._plain_ids(piece) if word is None else ids
            if word is not None:
                spans.append(Span(word, ids == self._ids[word], len(body)))
        return body, spans

    def _pieces(self, text: str) -> list[tuple[str, str | None, list[int]]]:
        """Split a prompt into plain text and words: (text, None, []) or (text, token, row ids)."""
        pieces: list[tuple[str, str | None, list[int]]] = []
        at = 0
        if self._ids and self._pattern is None:
            self._pattern = _pattern_of(self._ids)
        for match in self._pattern.finditer(text) if self._pattern else ():
            pieces += [(text[at : match.start()], None, []), (match[0], *self._word(match[0]))]
            at = match.end()
        return [*pieces, (text[at:], None, [])]

    def strays(self, text: str) -> list[str]:
        """Return what looks like a word in a prompt, `<…>`, but is read as plain text."""
        found: list[str] = []
        for piece, word, _ in self._pieces(text):
            if word is None:
                found += LOOKS_LIKE_A_WORD.findall(piece)
        known = self.tokenizer.get_added_vocab() if found else {}
        return [stray for stray in dict.fromkeys(found) if stray not in known]

    def _word(self, found: str) -> tuple[str, list[int]]:
        """Return the word and the ids that a match stands for: all its rows, or the one of `<t>_i`."""
        first = found.split()[0]
        if first in self._ids:
            return first, self._ids[first]
        word, _, number = first.rpartition("_")
        return word, [self._ids[word][int(number)]]

    def _plain_ids(self, text: str) -> list[int]:
        with TOKENIZING:
            return self.tokenizer(text, add_special_tokens=False).input_ids


class Vocabulary(Words):
    """A tokenizer and its encoder's frozen table: see `Words`, and rows to start a word from."""

    def __init__(self, tokenizer: Any, table: Float[np.ndarray, "size width"]) -> None:
        super().__init__(tokenizer, len(table))
        self.table = table

    def initial_rows(self, initializer: str, num_vectors: int) -> tuple[Float[np.ndarray, "vectors width"], str]:
        """Return rows for a new word from a known word or phrase, and a sentence on how its tokens were used.

        The phrase's tokens are spread over the vectors in order; where there are more tokens than vectors,
        each vector is the mean of its share. TokenError if the phrase has no known token.
        """
        ids = [i for i in self._plain_ids(initializer) if i != self.tokenizer.unk_token_id]
        if not ids:
            raise TokenError(f"The initializer {initializer!r} has no known word; try a plain noun such as 'toy'.")
        shares = _spread(ids, num_vectors)
        rows = np.stack([self.table[share].astype(np.float32).mean(axis=0) for share in shares])
        names = self.tokenizer.convert_ids_to_tokens(ids)
        means = "each vector the mean of its share" if len(ids) > num_vectors else "spread over the vectors in order"
        how = means if len(ids) > 1 else "the same for every vector"
        return rows, f"{num_vectors} vector(s) start from {initializer!r} ({len(ids)} token(s) {names}: {how})"

    def pieces(self, text: str) -> list[str]:
        """Return the tokens that a text is read as, as they are written."""
        names = self.tokenizer.convert_ids_to_tokens(self._plain_ids(text))
        return [str(name).removesuffix("</w>") for name in names]

    def whole_words(self) -> list[str]:
        """Return the words of letters that are one token."""
        ends = (name.removesuffix("</w>") for name in self.tokenizer.get_vocab() if name.endswith("</w>"))
        return [word for word in ends if len(word) > 1 and word.isalpha()]

    def nearest(self, row: Float[np.ndarray, " width"], count: int = 5) -> list[tuple[str, float]]:
        """Return the vocabulary's tokens nearest to a row by cosine, with the cosine."""
        norms = np.linalg.norm(self.table, axis=1) * np.linalg.norm(row)
        cosine = self.table @ row / np.maximum(norms, 1e-12)
        best = np.argsort(-cosine, kind="stable")[:count]
        names = self.tokenizer.convert_ids_to_tokens(best.tolist())
        return [(str(name).removesuffix("</w>"), float(cosine[i])) for name, i in zip(names, best, strict=True)]

    def rows_of(self, concept: Concept, encoder: str) -> Float[np.ndarray, "vectors width"]:
        """Return the concept's rows for this encoder, or raise TokenError saying which base they are for."""
        rows = concept.rows.get(encoder)
        width = self.table.shape[1]
        if rows is None or rows.shape[1] != width:
            has = ", ".join(f"{name} of width {block.shape[1]}" for name, block in concept.rows.items())
            base = f" It was trained on {concept.base!r}." if concept.base else ""
            raise TokenError(f"{concept.token!r} has rows for {has}; this base wants {encoder} of width {width}.{base}")
        return rows


@contextmanager
def lent_words(vocabularies: Mapping[str, Vocabulary], concepts: Sequence[Concept]) -> Iterator[LentRows | None]:
    """Lend words to a base's vocabularies for the block; yields all rows under each other, per text encoder.

    TokenError if a word is for another base, if its token is taken, or if words are lent already: rows of two blocks
    would not be under each other.
    """
    if any(vocabulary.rows_lent for vocabulary in vocabularies.values()):
        raise TokenError("This base has words lent already; leave that block first, or lend all words in one.")
    blocks: dict[str, list[np.ndarray]] = {encoder: [] for encoder in vocabularies}
    try:
        for encoder, vocabulary in vocabularies.items():
            for concept in concepts:
                blocks[encoder].append(vocabulary.rows_of(concept, encoder))
                vocabulary.lend(concept.token, len(concept.rows[encoder]))
        yield {encoder: np.concatenate(block) for encoder, block in blocks.items()} if concepts else None
    finally:
        for vocabulary in vocabularies.values():
            vocabulary.give_back()


def encode_all(vocabularies: Mapping[str, Vocabulary], prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the ids of prompts `[prompts, tokens]` per text encoder; says which words a prompt's end cut off."""
    ids = {}
    for encoder, vocabulary in vocabularies.items():
        encoded = [vocabulary.encode(prompt) for prompt in prompts]
        for prompt, one in zip(prompts, encoded, strict=True):
            if one.cut:
                log.warning("Cut off at %d tokens: %s in %r", vocabulary.model_max_length, ", ".join(one.cut), prompt)
        ids[encoder] = np.stack([one.ids for one in encoded])
    return ids


def warn_of_strays(vocabularies: Mapping[str, Words], prompts: Sequence[str]) -> None:
    """Say, once each, what in prompts looks like a learned word but is read as plain text."""
    vocabulary = next(iter(vocabularies.values()))
    where: dict[str, str] = {}
    for prompt in prompts:
        for stray in vocabulary.strays(prompt):
            where.setdefault(stray, prompt)
    for stray, prompt in where.items():
        if stray in vocabulary.ids:
            log.warning("In %r a letter, digit or _ touches %s, so it is read as plain text.", prompt, stray)
        else:
            hint = did_you_mean(stray, vocabulary.ids)
            log.warning("No file brings the word %s, so in %r it is read as plain text.%s", stray, prompt, hint)


def _pattern_of(words: dict[str, list[int]]) -> re.Pattern[str]:
    """Match every lent word, longest first, where it stands alone; a word already written out counts once."""
    forms: list[str] = []
    for word, ids in words.items():
        tokens = [re.escape(t) for t in vector_tokens(word, len(ids))]
        forms += [*tokens, *([r"[ \t]+".join(tokens)] if len(tokens) > 1 else [])]
    return re.compile(rf"(?<!\w)(?:{'|'.join(sorted(forms, key=len, reverse=True))})(?!\w)")


def _spread(ids: Sequence[int], num_vectors: int) -> list[list[int]]:
    """Deal a phrase's tokens to vectors in order: a contiguous share each, or one token to several vectors."""
    if len(ids) >= num_vectors:
        return [share.tolist() for share in np.array_split(np.asarray(ids), num_vectors)]
    return [[ids[i * len(ids) // num_vectors]] for i in range(num_vectors)]
