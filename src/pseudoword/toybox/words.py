"""The toybox's tokenizer: CLIP's, with every word of the world as one token and single characters for all others."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

from pseudoword.data.captions import OBJECT_TEMPLATES, STYLE_TEMPLATES
from pseudoword.toybox import captions, world

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77
TEXTS = (
    *OBJECT_TEMPLATES,
    *STYLE_TEMPLATES,
    *captions.PAINTED,
    *captions.PLACES.values(),
    *captions.STROKES.values(),
    *captions.GENERIC,
    *world.SHAPES,
    *world.PATTERNS,
    *world.SIZES,
    *world.STYLES,
    "an and on with",
)
"""All that captions are made of."""


def words() -> list[str]:
    """Return every word that a caption can hold, sorted."""
    return sorted({word for text in TEXTS for word in re.findall(r"[a-z]+|-", text)})


def byte_characters() -> list[str]:
    """Return the 256 characters by which byte-level BPE writes bytes (those that print stand for themselves)."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printing]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(others))]


def merges(wanted: Iterable[str]) -> list[tuple[str, str]]:
    """Return BPE merges by which every wanted word becomes one token.

    Earlier merges win, so each word is first split by those there are, and what is left is joined from the left; a word
    that was whole before meets its own merges first and stays whole.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in wanted:
        tokens = split(word, ranks)
        while len(tokens) > 1:
            ranks.setdefault((tokens[0], tokens[1]), len(ranks))
            tokens = split(word, ranks)
    return list(ranks)


def split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Split a word as BPE does: merge the pair of lowest rank until there is none."""
    tokens = [*word[:-1], word[-1] + "</w>"]
    while len(tokens) > 1:
        pairs = list(itertools.pairwise(tokens))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            return tokens
        merged, i = [], 0
        while i < len(tokens):
            whole = tuple(tokens[i : i + 2]) == best
            merged.append("".join(best) if whole else tokens[i])
            i += 2 if whole else 1
        tokens = merged
    return tokens


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer as `CLIPTokenizer.from_pretrained` reads it."""
    from transformers import CLIPTokenizer

    joined = merges(words())
    characters = byte_characters()
    entries = [START, END, *characters, *(c + "</w>" for c in characters), *(a + b for a, b in joined)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary,
        merges=joined,  # pyright: ignore[reportArgumentType]  # pairs are what its backend takes
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=POSITIONS,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in joined)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
