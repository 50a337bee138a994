"""Words loaded into a diffusers pipeline, and taken back: `load` for all who use it, `lend` for one request."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pseudoword import families, formats
from pseudoword.concept import Concept
from pseudoword.encoders import encoder_of_width
from pseudoword.errors import TokenError
from pseudoword.families import lending
from pseudoword.families.tokenizers import LOCK, RETURNED, Held, LendingTokenizer, drain, give_back, lending_tokenizer

log = logging.getLogger(__name__)

Source = Concept | str | Path
"""A word, its file or folder, or an id on the Hub."""
PAIRS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"), ("tokenizer_3", "text_encoder_3"))


def load(pipeline: Any, *words: Source | Mapping[str, Source], strength: float | Mapping[str, float] = 1.0) -> Loaded:
    """Teach a diffusers pipeline words, for prompts and negative prompts alike, until they are unloaded.

    `words` are concepts, files, folders or Hub ids; a mapping from tokens to these gives words other tokens. `strength`
    scales the rows, of all or by token. Works for pipelines that read prompts with CLIP's text encoders: Stable
    Diffusion 1.x, 2.x and XL, from text, from pictures, inpainting, with a ControlNet.

        words = pseudoword.load(pipeline, "cat-run", {"<bad>": "bad-hands.safetensors"})
        pipeline("a <cat-toy> on the beach", negative_prompt="<bad>")
        words.unload()

    No module is changed, only given hooks; with `unload`, or at the end of a `with` block, these are gone too.
    TokenError says for which base a word is if it is for another, or that its token is taken; FormatError what is wrong
    with a file.
    """
    drain()
    concepts = list(_concepts(words))
    parts = _parts(pipeline)
    for concept in concepts:
        _check_base(concept, parts)
    scales = {concept.token: _scale(strength, concept.token) for concept in concepts}
    if isinstance(strength, Mapping) and (unknown := strength.keys() - scales.keys()):
        raise TokenError(f"strength names {', '.join(sorted(unknown))}, but the words are {', '.join(scales)}.")
    loaded = Loaded(pipeline, concepts)
    try:
        for part in parts:
            loaded.inherit(part)
            for concept in concepts:
                loaded.hold(part, concept.token, concept.rows[part.encoder] * np.float32(scales[concept.token]))
    except BaseException:
        loaded.unload()
        raise
    return loaded


def lend(pipeline: Any, *words: Source | Mapping[str, Source], strength: float | Mapping[str, float] = 1.0) -> Any:
    """Return a pipeline for one request: of the same weights, with a scheduler and words of its own. See `load`.

    The pipeline itself does not learn the words, so requests in several threads can each have theirs, under the same
    tokens if they like. They are given back when nobody holds the returned pipeline any more.
    """
    _parts(pipeline)  # or it is refused
    _check_vae(pipeline)
    own = copy.copy(pipeline)
    own.__dict__["scheduler"] = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    loaded = load(own, *words, strength=strength)
    own.__dict__["words"] = loaded.tokens
    weakref.finalize(own, RETURNED.append, loaded.held)
    return own


class Loaded:
    """Words that a pipeline has been lent; unloads them at the end of a `with` block."""

    def __init__(self, pipeline: Any, concepts: Sequence[Concept]) -> None:
        self._pipeline = weakref.ref(pipeline)
        self.tokens = [concept.token for concept in concepts]
        """How prompts call the words."""
        self.held: list[Held] = []
        """What is to be given back."""

    def inherit(self, part: _Part) -> None:
        """Give the pipeline a tokenizer of its own that reads words, with those that it had from another pipeline."""
        pipeline = self._pipeline()
        assert pipeline is not None
        had = getattr(pipeline, part.tokenizer_name)
        if isinstance(had, LendingTokenizer) and had.owner() is pipeline:
            return
        size = part.text_encoder.get_input_embeddings().num_embeddings
        with LOCK:
            reading = lending_tokenizer(had, size, pipeline)
            pipeline.__dict__[part.tokenizer_name] = reading  # past diffusers' recording setter
            if isinstance(had, LendingTokenizer) and had.lender is not None:
                for token, ids in had.words.ids.items():
                    self.hold(part, token, had.lender.rows_of(ids))

    def hold(self, part: _Part, token: str, rows: Float[np.ndarray, "vectors width"]) -> None:
        """Lend one word to one text encoder."""
        tokenizer = getattr(self._pipeline(), part.tokenizer_name)
        with LOCK:
            tokenizer.words.check(token, len(rows))
            lender, ids = lending.lend(part.text_encoder, tokenizer.eos_token_id, rows)
            tokenizer.words.add(token, ids)
            tokenizer.lender = lender
        self.held.append(Held(tokenizer.words, token, lender, ids))

    def unload(self) -> None:
        """Give every word back; the pipeline is what it was before. Doing so again does nothing."""
        drain()
        give_back(self.held)
        pipeline = self._pipeline()
        for name, _ in PAIRS if pipeline is not None else ():
            tokenizer = getattr(pipeline, name, None)
            while isinstance(tokenizer, LendingTokenizer) and not tokenizer.words.rows_lent:
                tokenizer = pipeline.__dict__[name] = tokenizer.before

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unload()


# What is lent


def _concepts(words: Sequence[Source | Mapping[str, Source]]) -> Iterator[Concept]:
    for word in words:
        if not isinstance(word, Concept | str | Path | Mapping):
            raise TokenError(
                f"A word is a Concept, a path, a Hub id, or a mapping from tokens to these, not {word!r}; several are "
                "given one after the other."
            )
        named = word.items() if isinstance(word, Mapping) else [(None, word)]
        for token, source in named:
            if not isinstance(token, str | None) or not isinstance(source, Concept | str | Path):
                raise TokenError(f"A mapping of words is from tokens to Concepts, paths or Hub ids, not {word!r}.")
            if not isinstance(source, Concept):
                yield formats.read(formats.fetched(source), token=token)
            else:
                yield source if token is None else replace(source, token=token)


def _scale(strength: float | Mapping[str, float], token: str) -> float:
    scale = strength.get(token, 1.0) if isinstance(strength, Mapping) else strength
    if not isinstance(scale, int | float | np.number) or not np.isfinite(scale):
        raise TokenError(f"The strength of {token!r} must be a number, not {scale!r}.")
    return float(scale)


# To whom


@dataclass(frozen=True)
class _Part:
    """A text encoder of a pipeline with its tokenizer."""

    encoder: str
    """What embedding files call it."""
    tokenizer_name: str
    tokenizer: Any
    text_encoder: Any

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.text_encoder.get_input_embeddings().embedding_dim


def _parts(pipeline: Any) -> list[_Part]:
    """Return the text encoders that a pipeline has loaded; TokenError if it reads prompts in another way."""
    parts: list[_Part] = []
    several = hasattr(pipeline, "text_encoder_2")
    for i, (words, name) in enumerate(PAIRS):
        tokenizer, text_encoder = getattr(pipeline, words, None), getattr(pipeline, name, None)
        if tokenizer is None or text_encoder is None:
            continue
        if text_encoder.config.model_type not in ("clip_text_model", "clip"):
            raise TokenError(
                f"This pipeline reads prompts with a {type(text_encoder).__name__} too, which words cannot be lent to "
                "yet; those of Stable Diffusion 1.x, 2.x and XL can."
            )
        width = text_encoder.get_input_embeddings().embedding_dim
        encoder = ("clip_l", "clip_g", "t5")[i] if several else encoder_of_width(width)
        parts.append(_Part(encoder, words, tokenizer, text_encoder))
    if not parts:
        raise TokenError(
            f"This {type(pipeline).__name__} has no tokenizer and text encoder to lend words to; load it with both."
        )
    return parts


def _check_base(concept: Concept, parts: Sequence[_Part]) -> None:
    """Raise TokenError if a word is for another base than a pipeline's."""
    wanted = {part.encoder: part.width for part in parts}
    has = {encoder: rows.shape[1] for encoder, rows in concept.rows.items()}
    is_half = wanted.keys() == {"clip_g"} and wanted.items() <= has.items()  # an SDXL refiner has the second alone
    if wanted == has or is_half:
        return
    kinds = [families.of_word(blocks) for blocks in (has, wanted)]
    for_base, this = (kind[1] if kind else "a base of another kind" for kind in kinds)
    trained = f", learned on {concept.base!r}" if concept.base else ""
    raise TokenError(
        f"{concept.token!r} is a word for {for_base} ({_told(has)}){trained}, "
        f"but this pipeline is {this} ({_told(wanted)}); load the base that the word is for."
    )


def _check_vae(pipeline: Any) -> None:
    """Raise TokenError if requests side by side would cast one VAE back and forth under each other."""
    vae = getattr(pipeline, "vae", None)
    several = hasattr(pipeline, "text_encoder_2")  # diffusers does so for Stable Diffusion XL alone
    if several and vae is not None and vae.dtype == torch.float16 and vae.config.get("force_upcast", False):
        raise TokenError(
            "This VAE overflows in fp16, so diffusers casts it to fp32 and back for every picture, which requests side "
            "by side cannot share; load the pipeline in bfloat16, or with a VAE made for fp16 such as "
            "madebyollin/sdxl-vae-fp16-fix."
        )


def _told(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{encoder} of width {width}" for encoder, width in widths.items())
