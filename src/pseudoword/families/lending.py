"""Rows lent to a text encoder that stays in others' hands: looked up beside its table for ids that no table has.

Nothing of the encoder is replaced or written to. Hooks see the ids, give the encoder known ones in their place, and put
the rows where those were looked up. So every lending may have ids of its own, several threads may use one encoder with
different words at once, and what the encoder is saved as is what it was.
"""

from __future__ import annotations

import heapq
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from pseudoword.errors import TokenError

PLAIN = 0
"""The known id that stands in for a row's: below that of the end, which transformers may look for as the largest."""


class Lender:
    """The rows lent to one text encoder, over all lendings; see `lender_of`."""

    def __init__(self, encoder: Any, end: int) -> None:
        """Hook the encoder; `end` is the id of the tokenizer's end token."""
        self.size: int = encoder.get_input_embeddings().num_embeddings
        self.width: int = encoder.get_input_embeddings().embedding_dim
        self._end = end
        self._lock = threading.Lock()
        self._free: list[int] = []
        """A heap of the places in `_rows` that are free."""
        self._room: torch.Tensor = torch.zeros(0, self.width)
        """Rows and room for more, so that one more does not mean to copy all; `_rows` are its first."""
        self._rows: torch.Tensor = self._room
        self._in_use = False
        """Whether a prompt may be reading `_rows`, so that a place that was given back must not be written over."""
        self._placed: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._seen = threading.local()
        embedding = encoder.get_input_embeddings()
        self._hooks = [
            encoder.register_forward_pre_hook(self._before, with_kwargs=True),
            embedding.register_forward_hook(self._looked_up),
            encoder.register_forward_hook(self._after, always_call=True),
        ]

    def take(self, rows: Float[np.ndarray, "vectors width"]) -> list[int]:
        """Hold rows and return an id for each."""
        with self._lock:
            again = [heapq.heappop(self._free) for _ in range(min(len(rows), len(self._free)))]
            used = len(self._rows)
            slots = [*again, *range(used, used + len(rows) - len(again))]
            end = max([used, *(slot + 1 for slot in slots)])
            if end > len(self._room):
                self._copy(2 * end)
            elif again and self._in_use:  # by another thread, for a word that was given back meanwhile
                self._copy(len(self._room))
            self._room[slots] = torch.from_numpy(np.array(rows, dtype=np.float32))
            self._rows, self._placed = self._room[:end], {}
            return [self.size + slot for slot in slots]

    def _copy(self, length: int) -> None:
        """Go on with a copy of the rows, with room for so many, and leave the old ones to those who read them."""
        room = torch.zeros(length, self.width)
        room[: len(self._rows)] = self._rows
        self._room, self._in_use = room, False

    def rows_of(self, ids: Sequence[int]) -> Float[np.ndarray, "vectors width"]:
        """Return rows by their ids."""
        return self._rows[[i - self.size for i in ids]].numpy()

    def give_back(self, ids: Sequence[int]) -> None:
        """Forget rows by their ids; with the last the hooks are taken away."""
        with self._lock:
            for i in ids:
                heapq.heappush(self._free, i - self.size)
            if len(self._free) == len(self._rows):
                for hook in self._hooks:
                    hook.remove()
                self._room = self._rows = torch.zeros(0, self.width)
                self._free, self._placed, self._hooks = [], {}, []

    @property
    def is_over(self) -> bool:
        """Whether it has been taken away."""
        return not self._hooks

    # The hooks

    def _before(self, encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        ids: Int[torch.Tensor, "batch tokens"] | None = args[0] if args else kwargs.get("input_ids")
        self._seen.prompts = None
        if encoder.get_input_embeddings().num_embeddings != self.size:
            raise TokenError(
                "The text encoder's table was changed while words are lent to it; unload them before you add tokens "
                "in another way, and load them again after."
            )
        if ids is None or not bool((ids >= self.size).any()):
            return args, kwargs
        self._seen.prompts = _Prompts(ids, self._on)
        known = torch.where(ids >= self.size, PLAIN, ids)
        return ((known, *args[1:]), kwargs) if args else (args, {**kwargs, "input_ids": known})

    def _looked_up(self, embedding: Any, args: tuple[Any, ...], found: torch.Tensor) -> torch.Tensor | None:
        prompts: _Prompts | None = getattr(self._seen, "prompts", None)
        if prompts is None or found.shape[:-1] != prompts.ids.shape:
            return None
        prompts.looked_up = True
        rows, slots = prompts.rows_on(found), prompts.ids.to(found.device) - self.size
        return torch.where((slots >= 0)[..., None], rows[slots.clamp(min=0)], found)

    def _after(self, encoder: Any, args: tuple[Any, ...], output: Any) -> Any:
        prompts: _Prompts | None = getattr(self._seen, "prompts", None)
        self._seen.prompts = None
        if prompts is None or output is None:  # without an output the encoder has failed, and says so itself
            return None
        if not prompts.looked_up:
            raise TokenError(
                "The text encoder did not look words up where they are lent, as one that was compiled does not; load "
                "words before it is compiled, or leave it as it is."
            )
        ids, projection = prompts.ids, getattr(encoder, "text_projection", None)
        if projection is None or getattr(output, "text_embeds", None) is None:
            return None
        # transformers pools at `eos_token_id`, or if that is 2, as old configurations have it, at the largest id.
        known, end = torch.where(ids >= self.size, PLAIN, ids), encoder.config.eos_token_id
        theirs = known.argmax(-1) if end == 2 else (known == end).int().argmax(-1)
        ours = (ids == self._end).int().argmax(-1)
        has_words = (ids >= self.size).any(-1)
        if bool((has_words & (theirs != ours)).any()):
            at_end = output.last_hidden_state[torch.arange(len(ids), device=ids.device), ours]
            output["text_embeds"] = torch.where(has_words[:, None], projection(at_end), output.text_embeds)
        return output

    @property
    def _on(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """How the present rows are had where and as another tensor is, whatever is lent and given back meanwhile."""
        with self._lock:
            placed, rows, self._in_use = self._placed, self._rows, True

        def on(like: torch.Tensor) -> torch.Tensor:
            key = like.device, like.dtype
            if key not in placed:
                placed[key] = rows.to(device=like.device, dtype=like.dtype)
            return placed[key]

        return on

    def __deepcopy__(self, memo: dict[int, Any]) -> Lender:
        """Return itself: the hooks of a copied encoder look words up here too."""
        return self


@dataclass
class _Prompts:
    """Prompts with words in them, on their way through the encoder in one thread."""

    ids: torch.Tensor
    """[batch, tokens]"""
    rows_on: Callable[[torch.Tensor], torch.Tensor]
    looked_up: bool = False


_LENDERS: weakref.WeakKeyDictionary[Any, Lender] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def lend(encoder: Any, end: int, rows: Float[np.ndarray, "vectors width"]) -> tuple[Lender, list[int]]:
    """Lend rows to a transformers text encoder; return who holds them, to give them back to, and an id for each.

    `end` is the id of its tokenizer's end token, at which the pooled output is taken.
    """
    with _LOCK:
        lender = _LENDERS.get(encoder)
        if lender is None or lender.is_over:
            lender = _LENDERS[encoder] = Lender(encoder, end)
        return lender, lender.take(rows)


def give_back(lender: Lender, ids: Sequence[int]) -> None:
    """Take rows back."""
    with _LOCK:
        lender.give_back(ids)
