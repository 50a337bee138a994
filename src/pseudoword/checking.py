"""A dry run of a recipe: what training would do with each picture and caption, or refuse, without loading the model."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pseudoword import families, toybox, tracking, training
from pseudoword.data import examples, folder, pictures
from pseudoword.data.captions import Captions
from pseudoword.data.folder import Found
from pseudoword.data.pictures import ConceptPictures, FramedPictures
from pseudoword.errors import PseudowordError
from pseudoword.families.locate import locate
from pseudoword.job import in_steps, with_dataset
from pseudoword.judging import planned
from pseudoword.placeholder import vector_tokens
from pseudoword.recipe import BaseModel, ConceptRecipe, Output, Recipe, Validation
from pseudoword.starting import starting_rows
from pseudoword.toybox import limits
from pseudoword.vocabulary import Vocabulary, Words

Told = dict[str, Any]
MEMORY_BASIS = (
    "an estimate: all weights, and what one step keeps for its gradient, counted on the model's layers; "
    "libraries, the VAE's work on the pictures and the device's working space come on top"
)
TIMED = 3
"""Steps that are timed, after one that warms up."""


def check(recipe: Recipe, *, time: bool = False) -> Told:
    """Return what training would make of a recipe of one concept; see `check_each`."""
    [told] = check_each(recipe, time=time)
    return told


def check_each(recipe: Recipe, *, time: bool = False) -> list[Told]:
    """Return what training would make of each concept, as plain values; `refused` is the sentence it would end with.

    `warnings` are what it would do without a word, but hardly anyone would want.
    Reads pictures, captions, the tokenizer with its table and configurations, in the order in which training does, and
    stops where that would. `time` also loads the model and carries out some steps, of all concepts together. What only
    loading can tell, a damaged file of weights, say, is not seen without it.
    """

    @functools.cache
    def opened() -> Opened:
        base = locate(recipe.base, toybox.BASES)
        return base, families.part(base.family, "words").vocabularies(base)

    found = [_checked(recipe, wanted, opened) for wanted in recipe.concepts]
    if time and any(told["starts"] for told in found):
        last = [told for told in found if told["starts"]][-1]
        try:
            last["time"] = timed(recipe)
        except PseudowordError as error:
            last |= {"starts": False, "refused": str(error)}
    return found


Opened = tuple[BaseModel, Mapping[str, Vocabulary]]


def _checked(recipe: Recipe, wanted: ConceptRecipe, opened: Callable[[], Opened]) -> Told:
    """Return what training would make of a concept, whose word is lent beside those before it."""
    told: Told = {"token": wanted.token, "starts": False, "refused": None, "pictures": [], "captions": []}
    told |= {"diffusers": [], "time": None, "warnings": []}
    try:
        tracking.check(recipe.output.report_to)
        with_dataset(recipe, None)
        found = pictures.find(wanted.pictures, recipe.data)
        told["pictures"] = _verdicts(found)
        own = ConceptPictures(wanted, recipe.data, found)
        _add_sidecars(told["pictures"], own)
        base, vocabularies = opened()
        starting_rows(vocabularies, wanted)
        framed = own.framed(families.part(base.family, "sizes").sizes(base))
        _add_frames(told["pictures"], framed)
        steps = in_steps(recipe.schedule.steps, recipe, framed, 1)
        told["warnings"] = planned.doubts(recipe, wanted, vocabularies, framed, steps)
        if limits.is_toybox(base.model) and (limit := limits.overstepped(found.pictures)):
            told["warnings"].append(limit)
        tokens = vector_tokens(wanted.token, wanted.num_vectors)
        alone = {encoder: vocabulary.alone(wanted.token) for encoder, vocabulary in vocabularies.items()}
        told["captions"] = _captions(own.captions, alone)
        told["diffusers"] = _read_differently(own.captions, alone, tokens)
        examples.captions_of(own.captions, alone)
        told["memory"] = _memory(recipe, base, framed)
        told["starts"] = True
    except PseudowordError as error:
        told["refused"] = str(error)
    return told


# Pictures


def _verdicts(found: Found) -> list[Told]:
    """Return each file, used or not, and why not."""
    groups = folder.duplicates(found.pictures)
    same = {p.path: [_name(found, q.path) for q in group if q is not p] for group in groups for p in group}
    used = [
        {"file": _name(found, p.path), "verdict": "used", "size": list(p.size), "same_as": same.get(p.path, [])}
        for p in found.pictures
    ]
    return used + [{"file": _name(found, path), "verdict": "skipped", "reason": why} for path, why in found.skipped]


def _name(found: Found, path: Path) -> str:
    return path.relative_to(found.folder).as_posix()


def _add_sidecars(rows: list[Told], own: ConceptPictures) -> None:
    """Add the source of each picture's caption and its mask."""
    for row, name, mask in zip(rows, own.captions.names, own.masks, strict=False):
        row["caption"], row["mask"] = name, mask is not None


def _add_frames(rows: list[Told], framed: FramedPictures) -> None:
    """Add at what size each picture is trained, in how many frames, and what share each of them leaves out."""
    for row, frames in zip(rows, framed.frames, strict=False):
        left_out = 1 - frames[0].share(tuple(row["size"]))
        row |= {"trained_at": list(frames[0].size), "frames": len(frames)}
        row |= {"left_out": round(left_out, 3), "enlarged": frames[0].enlarged}


# Captions


def _captions(captions: Captions, vocabularies: Mapping[str, Words]) -> list[Told]:
    """Return each caption as each text encoder sees it."""
    seen = []
    for name, text in captions.hardest():
        for encoder, vocabulary in vocabularies.items():
            encoded, limit = vocabulary.encode(text), vocabulary.model_max_length
            told = {"from": name, "text": text, "encoder": encoder, "tokens": _words(encoded.ids, vocabulary)}
            seen.append({**told, "count": encoded.length, "limit": limit, "cut": encoded.length > limit})
    return seen


def _words(ids: np.ndarray, vocabulary: Words) -> list[str]:
    """Return ids from start to end as tokens, without the padding; the word's own as it is called."""
    read: list[int] = ids.tolist()
    read = read[: read.index(vocabulary.tokenizer.eos_token_id) + 1]
    names = [
        str(name) for name in vocabulary.tokenizer.convert_ids_to_tokens([min(i, vocabulary.size - 1) for i in read])
    ]
    return [vocabulary.tokens_by_id.get(i) or name.removesuffix("</w>") for i, name in zip(read, names, strict=True)]


def _read_differently(captions: Captions, vocabularies: Mapping[str, Words], tokens: Sequence[str]) -> list[str]:
    """Return where diffusers' `load_textual_inversion` reads a prompt otherwise than we do, tried with its tokenizer.

    It adds the word's tokens to the tokenizer, which then finds them inside other words and regardless of case; we
    take a word only where it stands alone.
    """
    told, token = [], tokens[0]
    for vocabulary in vocabularies.values():
        tokenizer = copy.deepcopy(vocabulary.tokenizer)
        tokenizer.add_tokens(list(tokens))
        rows = dict(zip(tokenizer.convert_tokens_to_ids(list(tokens)), vocabulary.ids[token], strict=True))

        def theirs(text: str, tokenizer: Any = tokenizer, rows: Any = rows) -> list[int]:
            ids = tokenizer(_expanded(text, tokenizer), add_special_tokens=False).input_ids
            return [rows.get(i, i) for i in ids]

        def differs(text: str, vocabulary: Any = vocabulary, theirs: Any = theirs) -> bool:
            room = vocabulary.model_max_length - 2
            ours = vocabulary.encode(text).ids[1:].tolist()
            return theirs(text)[:room] != ours[: ours.index(vocabulary.tokenizer.eos_token_id)]

        told += [f"the caption {text!r}" for _, text in captions.hardest() if differs(text)]
        told += [f"{token!r} inside other words, as in {text!r}" for text in [f"a{token}b"] if differs(text)]
        told += [f"{text!r} as the word, whatever its case" for text in [token.swapcase()] if differs(text)]
    return list(dict.fromkeys(told))


def _expanded(text: str, tokenizer: Any) -> str:
    """Return a prompt with words of several vectors written out, as diffusers' `maybe_convert_prompt` does."""
    for token in dict.fromkeys(tokenizer.tokenize(text)):
        if token in tokenizer.added_tokens_encoder:
            names, i = token, 1
            while f"{token}_{i}" in tokenizer.added_tokens_encoder:
                names, i = f"{names} {token}_{i}", i + 1
            text = text.replace(token, names)
    return text


# Memory and time


def _memory(recipe: Recipe, base: BaseModel, framed: FramedPictures) -> Told | None:
    """Return the bytes that a step needs; None if PyTorch, which counts them, is not installed."""
    try:
        costs = families.part(base.family, "costs")
    except ImportError:
        return None
    engine = recipe.engine
    half = engine.precision != "no"
    at_once = engine.pictures_at_once or (recipe.training.batch_size if engine.memory == "auto" else 1)
    weights = costs.weights(base, half=half, eight_bits=engine.memory == "lowest")
    del weights["vae"]  # gone by the time of the first step
    sizes = {frame.size for frames in framed.frames for frame in frames}
    kept = max(costs.kept_for_gradient(base, s, at_once, half=half, recomputed=engine.recomputes) for s in sizes)
    total = sum(weights.values()) + kept
    return {"weights": weights, "basis": MEMORY_BASIS, "kept_for_gradient": kept, "total": total}


def timed(recipe: Recipe) -> Told:
    """Carry out some steps of the recipe in a folder that is thrown away; return seconds a step and for them all."""
    with tempfile.TemporaryDirectory() as aside:
        output = Output(folder=aside, report_to="none")  # nothing is shown, tracked or pushed
        run = training.train(dataclasses.replace(recipe, output=output, validation=Validation(loss_steps=0)))
        with contextlib.closing(run):  # pyright: ignore[reportArgumentType] (a generator)
            done = list(itertools.islice(run, TIMED + 1))
    seconds = statistics.median(progress.seconds for progress in done[1:] or done)
    return {"seconds_per_step": seconds, "steps": done[0].steps, "seconds": seconds * done[0].steps}
