"""A tokenizer and its encoder's frozen table: token ids with learned words expanded, and rows to start a word from."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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
        self._names: dict[str, int] = {}
        """The id of each row's token, `<t>`, `<t>_1` and so on."""
        self._lengths: dict[str, Counter[int]] = {}
        """How many of these tokens begin with a character, by how long they are: what a prompt is searched with."""

    @property
    def model_max_length(self) -> int:
        """Tokens the encoder reads, start and end included."""
        return self.tokenizer.model_max_length

    @property
    def rows_lent(self) -> int:
        """How many rows are lent, over all words."""
        return len(self._names)

    @property
    def tokens_by_id(self) -> dict[int, str]:
        """The token of each row that is lent."""
        return {i: name for name, i in dict(self._names).items()}

    def id_of(self, token: str) -> int | None:
        """Return the id of a row's token, `<t>` or `<t>_i`; None if it is no word's."""
        return self._names.get(token)

    # Lending words

    def lend(self, token: str, num_vectors: int) -> list[int]:
        """Make `token` a word of `num_vectors` rows and return their ids; TokenError if the token is taken."""
        self.check(token, num_vectors)
        first = self.size + self.rows_lent
        return self.add(token, range(first, first + num_vectors))

    def add(self, token: str, ids: Sequence[int]) -> list[int]:
        """Make `token`, which `check` has passed, a word of rows with these ids, from `size` on."""
        self._ids[token] = list(ids)
        for name, i in zip(vector_tokens(token, len(ids)), ids, strict=True):
            self._names[name] = i
            self._lengths.setdefault(name[0], Counter())[len(name)] += 1
        return self._ids[token]

    def check(self, token: str, num_vectors: int) -> None:
        """Raise TokenError if `token` cannot be a word of so many rows."""
        check_token(token)
        names = vector_tokens(token, num_vectors)
        added = self.tokenizer.get_added_vocab()
        with TOKENIZING:
            read = self.tokenizer(names, add_special_tokens=False).input_ids
        for name, ids in zip(names, read, strict=True):
            self._refuse_if_known(name, ids, added)

    @property
    def ids(self) -> Mapping[str, Sequence[int]]:
        """The ids of each word that is lent."""
        return dict(self._ids)

    def give_back(self, token: str | None = None) -> None:
        """Forget a lent word, or all of them."""
        lent = list(self._ids) if token is None else [token] if token in self._ids else []
        for word in lent:
            for name in vector_tokens(word, len(self._ids.pop(word))):
                del self._names[name]
                lengths = self._lengths[name[0]]
                lengths[len(name)] -= 1
                if not lengths[len(name)]:
                    del lengths[len(name)]

    def _refuse_if_known(self, token: str, ids: Sequence[int], added: Mapping[str, int]) -> None:
        """Raise TokenError for a token that the tokenizer, which reads it as these ids, or a word has already."""
        if token in added:
            raise TokenError(f"The token {token!r} is already an added token of this tokenizer; choose another.")
        if token in self._names:
            raise TokenError(f"The token {token!r} is already the name of a learned word here; choose another.")
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

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens whose ids `expand` returns."""
        tokens: list[str] = []
        for piece, word, ids in self._pieces(text):
            if word is None:
                with TOKENIZING:
                    tokens += self.tokenizer.tokenize(piece)
            else:
                tokens += vector_tokens(word, len(ids)) if ids == self._ids[word] else [piece]
        return tokens

    def _pieces(self, text: str) -> list[tuple[str, str | None, list[int]]]:
        """Split a prompt into plain text and words: (text, None, []) or (text, token, row ids)."""
        pieces: list[tuple[str, str | None, list[int]]] = []
        at = 0
        for start, end in self._places(text) if self._names else ():
            pieces += [(text[at:start], None, []), (text[start:end], *self._word(text[start:end]))]
            at = end
        return [*pieces, (text[at:], None, [])]

    def strays(self, text: str) -> list[str]:
        """Return what looks like a word in a prompt, `<…>`, but is read as plain text."""
        found: list[str] = []
        for piece, word, _ in self._pieces(text):
            if word is None:
                found += LOOKS_LIKE_A_WORD.findall(piece)
        known = self.tokenizer.get_added_vocab() if found else {}
        return [stray for stray in dict.fromkeys(found) if stray not in known]

    def _places(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where rows' tokens stand alone in a prompt, the longest that fits; a word written out counts once.

        A pattern of all words would say the same, but takes a millisecond a word to make.
        """
        start = 0
        while start < len(text):
            lengths = self._lengths.get(text[start])
            end = self._end(text, start, lengths) if lengths and not _is_in_word(text, start - 1) else start
            if end > start:
                yield start, end
            start = max(end, start + 1)

    def _end(self, text: str, start: int, lengths: Collection[int]) -> int:
        """Return where the token ends that begins at `start`, or the word that is written out there; else `start`."""
        for length in sorted(lengths, reverse=True):
            end = start + length
            name = text[start:end]
            if name in self._names and not _is_in_word(text, end):
                return self._end_written_out(text, name, end)
        return start

    def _end_written_out(self, text: str, name: str, end: int) -> int:
        """Return where `<t> <t>_1 …` ends, of which `<t>` ends at `end`; `end` if the others do not all follow."""
        at = end
        for other in vector_tokens(name, len(self._ids.get(name, ())))[1:]:
            begin = at
            while text[begin : begin + 1] in (" ", "\t"):
                begin += 1
            if begin == at or not text.startswith(other, begin):
                return end
            at = begin + len(other)
        return end if _is_in_word(text, at) else at

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


def _is_in_word(text: str, at: int) -> bool:
    """Whether a letter, digit or `_` stands there, beside which a token does not stand alone."""
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


def _spread(ids: Sequence[int], num_vectors: int) -> list[list[int]]:
    """Deal a phrase's tokens to vectors in order: a contiguous share each, or one token to several vectors."""
    if len(ids) >= num_vectors:
        return [share.tolist() for share in np.array_split(np.asarray(ids), num_vectors)]
    return [[ids[i * len(ids) // num_vectors]] for i in range(num_vectors)]
