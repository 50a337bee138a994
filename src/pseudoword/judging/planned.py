"""What a recipe is likely to suffer from, before anything is trained: each a sentence with the option that cures it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pseudoword import schedules
from pseudoword.data import images
from pseudoword.data.folder import Picture
from pseudoword.data.framing import Frame
from pseudoword.data.pictures import FramedPictures
from pseudoword.judging.lengths import LEAST_MOVED, LONGEST, by_chance, usual_length, way
from pseudoword.recipe import ConceptRecipe, Recipe
from pseudoword.spelling import nearest
from pseudoword.starting import file_of
from pseudoword.vocabulary import Vocabulary

MOST_CUT = 0.35
"""Share of a picture that cropping may cut off. A square of a camera's 4:3 or 3:2 leaves out a quarter or a third; of
16:9 it leaves out 44%, and what the word learns depends on where the crop falls."""
WIDEST_BUCKET = 4
"""Times its height that a bucket is wide at most, or the other way round (see `framing.buckets`)."""
PLAIN = 8
"""Levels of 255 within which all pixels of a picture that shows nothing lie."""
NAMED = 3
"""Pictures that a sentence names; of more, their number is told."""


def doubts(
    recipe: Recipe, concept: ConceptRecipe, vocabularies: Mapping[str, Vocabulary], framed: FramedPictures, steps: int
) -> list[str]:
    """Return a sentence for each thing that training would do, but hardly anyone would want."""
    sentences = [*cropping(framed), *nothing_to_see(framed), *initializer(concept, vocabularies)]
    if recipe.method.name == "classic":  # the bounds are AdamW's
        sentences += learning_rate(recipe, vocabularies, steps)
    return sentences


# Pictures


def cropping(framed: FramedPictures) -> list[str]:
    """Say which pictures lose much to the crop."""
    fitting, too_long = [], []
    crops = 1
    for picture, frames in zip(framed.own.pictures, framed.frames, strict=True):
        lost = 1 - seen(picture, frames)
        if lost < MOST_CUT:
            continue
        width, height = picture.size
        ratio = max(width, height) / min(width, height)
        name = f"{picture.path.name} ({lost:.0%})"
        if 1 - WIDEST_BUCKET / ratio < MOST_CUT:
            fitting.append(name)
            crops = max(crops, math.ceil(ratio))
        else:
            too_long.append(name)
    sentences = []
    if fitting:
        sentences.append(_fitting(fitting, crops))
    if too_long:
        sentences.append(_too_long(too_long))
    return sentences


def seen(picture: Picture, frames: Sequence[Frame]) -> float:
    """Return the share of a picture that lies in any of its frames, which are in one row or column."""
    width, height = picture.size
    covered = np.zeros((2, max(width, height)), dtype=bool)
    for frame in frames:
        left, top, right, bottom = frame.box
        covered[0, left:right] = True
        covered[1, top:bottom] = True
    return float(covered[0].sum() / width * (covered[1].sum() / height))


def _fitting(names: Sequence[str], crops: int) -> str:
    return (
        f"Much is cut off of {_listed(names)}. Try --fit bucket, which keeps the shape of pictures, or "
        f"--crops {crops}, which takes squares from end to end."
    )


def _too_long(names: Sequence[str]) -> str:
    return f"Most is cut off of {_listed(names)}, too long for any --fit. Crop by hand, or leave out."


def nothing_to_see(framed: FramedPictures) -> list[str]:
    """Say which pictures show nothing, as they are laid on the colour for transparency."""
    colour = framed.own.data.alpha_colour
    transparent, plain = [], []
    for picture in framed.own.pictures:
        levels = np.asarray(images.read_rgb(picture.source, colour)).reshape(-1, 3)
        if int((levels.max(axis=0) - levels.min(axis=0)).max()) > PLAIN:
            continue
        alpha = images.read_alpha(picture.source)
        is_transparent = alpha is not None and int(np.asarray(alpha).max()) <= PLAIN
        (transparent if is_transparent else plain).append(picture.path.name)
    sentences = []
    if transparent:
        sentences.append(_transparent(transparent, colour))
    if plain:
        sentences.append(_plain(plain))
    return sentences


def _transparent(names: Sequence[str], colour: str) -> str:
    return (
        f"Fully transparent, so nothing but --alpha-colour {colour} is learned: {_listed(names)}. Save with what it "
        "should show, or leave out."
    )


def _plain(names: Sequence[str]) -> str:
    return f"Of one plain colour, so there is nothing to learn: {_listed(names)}. Leave out."


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# The initializer


def initializer(concept: ConceptRecipe, vocabularies: Mapping[str, Vocabulary]) -> list[str]:
    """Say which words of the initializer are none of the base's, and what it reads instead."""
    if file_of(concept) is not None:
        return []
    vocabulary = next(iter(vocabularies.values()))
    sentences = []
    for word in dict.fromkeys(re.findall(r"[^\W\d_]+", concept.initializer)):
        pieces = vocabulary.pieces(word)
        if len(pieces) > 1:
            sentences.append(_no_word(word, pieces, nearest(word.lower(), vocabulary.whole_words()) or "toy"))
    return sentences


def _no_word(word: str, pieces: Sequence[str], near: str) -> str:
    return (
        f"The initializer {word!r} is no word of this base, which reads {len(pieces)} pieces: {' + '.join(pieces)}. "
        f"Try --initializer with a plain noun that it knows, such as {near!r}."
    )


# The learning rate


def learning_rate(recipe: Recipe, vocabularies: Mapping[str, Vocabulary], steps: int) -> list[str]:
    """Say if a learning rate cannot but take rows too far, or leave them where they are."""
    schedule, training = recipe.schedule, recipe.training
    batch = training.batch_size * training.gradient_accumulation_steps if schedule.scale_lr else 1
    peak = schedule.learning_rate * batch
    rates = np.asarray([schedules.learning_rate(schedule, step, steps, peak) for step in range(steps)])
    chances, ways = [], []
    for vocabulary in vocabularies.values():
        usual, width = usual_length(vocabulary.table), vocabulary.table.shape[1]
        chances.append(by_chance(rates, width) / usual)
        ways.append(way(rates, width) / usual)
    if max(chances) > LONGEST:
        return [_too_high(peak, max(chances), steps)]
    if max(ways) < LEAST_MOVED:
        return [_too_low(peak, max(ways), steps)]
    return []


def _too_high(rate: float, times: float, steps: int) -> str:
    return (
        f"At a learning rate of {rate:g}, {steps} steps make rows about {times:,.0f} times as long as the "
        "vocabulary's, whatever the pictures. Try --learning-rate 5e-3, which is usual."
    )


def _too_low(rate: float, share: float, steps: int) -> str:
    return (
        f"At a learning rate of {rate:g}, {steps} steps move rows by at most {100 * share:.2g}% of their length. "
        "Try --learning-rate 5e-3, which is usual, or more --steps."
    )


# Several concepts


def by_sentence(doubts_of: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each sentence once, with the tokens of the concepts that it is said of."""
    tokens: dict[str, list[str]] = {}
    for token, sentences in doubts_of.items():
        for sentence in sentences:
            tokens.setdefault(sentence, []).append(token)
    return tokens
