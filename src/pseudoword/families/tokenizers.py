"""A tokenizer that reads learned words by the ids that they are lent, in place of a pipeline's own."""

from __future__ import annotations

import copy
import functools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pseudoword.errors import TokenError
from pseudoword.families import lending
from pseudoword.vocabulary import Words

log = logging.getLogger(__name__)

LOCK = threading.RLock()
"""Held while words change and while a tokenizer works: transformers' are not made for several threads."""
_PRIVATE: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""Copies of tokenizers that only we use."""
PLAIN_OPTIONS = {"add_special_tokens", "padding", "truncation", "max_length", "return_tensors", "padding_side"}
PLAIN_OPTIONS |= {"return_attention_mask", "pad_to_multiple_of", "verbose"}


class LendingTokenizer:
    """Over a tokenizer's own class: prompts with learned words are read by ids, all others as they were."""

    words: Words
    """The words that it reads."""
    before: Any
    """The tokenizer that the pipeline had."""
    owner: Callable[[], Any]
    """The pipeline that it was made for; others of the same parts may hold it too."""
    lender: lending.Lender | None
    """Who holds the words' rows; None before there are any."""

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        """Return the ids of texts, as the tokenizer itself does, learned words as the ids of their rows."""
        tokenizer: Any = super()
        with LOCK:
            drain()
            texts = [text] if isinstance(text, str) else text
            known = isinstance(texts, (list, tuple)) and all(isinstance(one, str) for one in texts)
            read = [self.words.expand(one) for one in texts] if known else []
            if not any(spans for _, spans in read):
                return tokenizer.__call__(text, *args, **options)
            options |= {f"argument {i + 2}": value for i, value in enumerate(args)}
            if unknown := sorted(name for name in options.keys() - PLAIN_OPTIONS if options[name]):
                raise TokenError(
                    f"Prompts with learned words are read without {', '.join(unknown)}; leave these options out."
                )
            rows = [self._whole(one, body, spans, options) for one, (body, spans) in zip(texts, read, strict=True)]
            names = ("max_length", "return_tensors", "padding_side", "return_attention_mask", "pad_to_multiple_of")
            more = {name: options[name] for name in names if options.get(name) is not None}
            if isinstance(text, str) and "return_tensors" not in more:
                rows = rows[0]
            return tokenizer.pad({"input_ids": rows}, padding=options.get("padding", False), **more)

    def add_tokens(self, *tokens: Any, **options: Any) -> int:
        """Refuse: a new token's id would be a word's."""
        raise TokenError(
            "Words are loaded into this tokenizer; unload them before you add tokens or load words in another way, and "
            "load them again after."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy of the plain tokenizer: words are the pipeline's that they were loaded into."""
        return copy.deepcopy(_plain(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Let the plain tokenizer be pickled."""
        del protocol
        return _plain, (_plain(self),)

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        """Return the ids of one text."""
        return self(text, *args, **options).input_ids

    def _encode_plus(self, *args: Any, **options: Any) -> Any:
        """Through this go all of the class's own ways to read text, and no other while one does."""
        tokenizer: Any = super()
        with LOCK:
            return tokenizer._encode_plus(*args, **options)

    def _whole(self, text: str, body: list[int], spans: Sequence[Any], options: Mapping[str, Any]) -> list[int]:
        """Return a prompt's ids with start and end, cut if that is asked for; says which words the cut falls into."""
        tokenizer: Any = self
        ends = 2 if options.get("add_special_tokens", True) else 0
        if options.get("truncation") not in (None, False, "do_not_truncate"):
            room = (options.get("max_length") or tokenizer.model_max_length) - ends
            cut = [span.word for span in spans if span.end > room]
            if cut:
                log.warning("Cut off at %d tokens: %s in %r", room + ends, ", ".join(cut), text)
            body = body[:room]
        return [tokenizer.bos_token_id, *body, tokenizer.eos_token_id] if ends else body

    def tokenize(self, text: str, *args: Any, **options: Any) -> list[str]:
        """Return a text's tokens, a word's as its rows are called: `<t>`, `<t>_1` and so on."""
        tokenizer: Any = super()
        with LOCK:
            if not self.words.expand(text)[1]:
                return tokenizer.tokenize(text, *args, **options)
            tokens = self.words.tokenize(text)
        own: Any = self
        return [own.bos_token, *tokens, own.eos_token] if options.get("add_special_tokens") else tokens

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or of each of several, learned rows' among them."""
        tokenizer: Any = super()
        if tokens is None or isinstance(tokens, str):
            known = None if tokens is None else self.words.id_of(tokens)
            return tokenizer.convert_tokens_to_ids(tokens) if known is None else known
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, *args: Any, **options: Any) -> Any:
        """Return the token of an id, or of each of several, learned rows' among them."""
        tokenizer: Any = super()
        if not isinstance(ids, int):
            own = [int(i) for i in ids]
            if all(i < self.words.size for i in own):
                return tokenizer.convert_ids_to_tokens(own, *args, **options)
            pieces = [self.convert_ids_to_tokens([i], *args, **options) for i in own if i < self.words.size]
            plain, names = iter(pieces), self.words.tokens_by_id
            tokens: list[Any] = []
            for i in own:
                tokens += next(plain) if i < self.words.size else [names.get(i)]
            return tokens
        if ids < self.words.size:
            return tokenizer.convert_ids_to_tokens(ids, *args, **options)
        return self.words.tokens_by_id.get(ids)

    def decode(self, token_ids: Any, *args: Any, **options: Any) -> Any:
        """Return ids as text, learned rows by their words' tokens."""
        tokenizer: Any = super()
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if ids and isinstance(ids, list) and isinstance(ids[0], list):
            return [self.decode(own, *args, **options) for own in ids]
        with LOCK:
            if isinstance(ids, int) or all(i < self.words.size for i in ids):
                return tokenizer.decode(token_ids, *args, **options)
            names, pieces, plain = self.words.tokens_by_id, [], []
            for i in [*ids, None]:
                if i is not None and i < self.words.size:
                    plain.append(i)
                    continue
                pieces += [tokenizer.decode(plain, *args, **options)] if plain else []
                pieces += [names.get(i, "")] if i is not None else []
                plain = []
            return " ".join(pieces)

    def batch_decode(self, sequences: Any, *args: Any, **options: Any) -> list[str]:
        """Return each of several sequences of ids as text."""
        return [self.decode(ids, *args, **options) for ids in sequences]


# What is given back


@dataclass(frozen=True)
class Held:
    """A word that one text encoder has been lent."""

    words: Words
    token: str
    lender: lending.Lender
    ids: Sequence[int]


RETURNED: deque[list[Held]] = deque()
"""What lent pipelines held that are gone; a finalizer may run even where a lock is held, so it only notes it."""


def drain() -> None:
    """Give back what the pipelines held that nobody holds any more."""
    while RETURNED:
        give_back(RETURNED.popleft())


def give_back(held: list[Held]) -> None:
    """Give words back, the last first."""
    while held:
        one = held.pop()
        with LOCK:
            one.words.give_back(one.token)
            lending.give_back(one.lender, one.ids)


# How one is made


def lending_tokenizer(had: Any, size: int, owner: Any) -> Any:
    """Return a tokenizer that reads words in place of the one that a pipeline had, over a copy of the plain one.

    `size` is that of the text encoder's table.
    """
    own = _plain(had)
    with LOCK:
        private = _PRIVATE.get(own)
        if private is None or len(private) != len(own):  # tokens were added to it since
            private = _PRIVATE[own] = copy.deepcopy(own)
        tokenizer = copy.copy(private)
        tokenizer.__class__ = _over(type(private))
        tokenizer.__dict__ |= {"words": Words(private, size), "before": had, "owner": weakref.ref(owner)}
        tokenizer.__dict__["lender"] = None
        return tokenizer


def _plain(tokenizer: Any) -> Any:
    """Return the tokenizer that was there before any that reads words."""
    while isinstance(tokenizer, LendingTokenizer):
        tokenizer = tokenizer.before
    return tokenizer


@functools.cache
def _over(kind: type) -> type:
    """Return a tokenizer's class with `LendingTokenizer` over it, under its own name, by which it is saved."""
    return type(kind.__name__, (LendingTokenizer, kind), {"__module__": kind.__module__})
