"""What scores of pictures come to: means, their uncertainty, and how much of it is training's and how much sampling's.

A word's scores of one measure are an array `[prompts, noises]`: a picture for each prompt from each of the same
starting noises, NaN where the measure says nothing about a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Scores = Float[np.ndarray, "prompts noises"]

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t for 95% intervals, by degrees of freedom from 1; beyond them 1.96 + 2.5 / freedom."""


def student_t(freedom: int) -> float:
    """Return the half width of a 95% interval in standard errors."""
    return T_975[freedom - 1] if freedom <= len(T_975) else 1.96 + 2.5 / freedom


def mean(scores: Scores) -> float:
    """Return the mean over all pictures that the measure says something about; NaN if there are none."""
    return float("nan") if np.isnan(scores).all() else float(np.nanmean(scores))


def by_noise(scores: Scores) -> Float[np.ndarray, " noises"]:
    """Return a score for each starting noise: the mean over the prompts that the measure says something about."""
    asked = scores[~np.isnan(scores).all(axis=1)]
    return np.nanmean(asked, axis=0) if len(asked) else np.full(scores.shape[1], np.nan)


def sampling_error(scores: Scores) -> float:
    """Return the standard error of a word's mean that its starting noises leave; NaN if there is but one noise."""
    values = by_noise(scores)
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else float("nan")


FEWEST = 3
"""Seeds from which on an interval is worth saying: of two, Student's t is 12.7, which says nothing of a share."""


@dataclass(frozen=True)
class Spread:
    """One recipe's score over training seeds."""

    mean: float
    seeds: int
    half: float
    """Half the width of the 95% interval of the mean over training seeds (Student's t); NaN for fewer than 3."""
    training: float
    """Standard deviation that training alone causes; NaN for one seed."""
    sampling: float
    """Standard error that a word's starting noises leave, root mean square over the seeds; NaN for one noise."""
    each: tuple[float, ...] = ()
    """The score from each seed."""


def spread(words: Sequence[Scores]) -> Spread:
    """Return what one measure says of the words of one recipe, which were all sampled from the same noises.

    Training and sampling are told apart by a two-way analysis of variance without repeats, words × noises: the words'
    means vary by training's own variance plus the interaction's over the number of noises; the noises' own effect is
    the same for all words and cancels.
    """
    table = np.stack([by_noise(scores) for scores in words])
    means = table.mean(axis=1)
    count, noises = table.shape
    errors = [sampling_error(scores) for scores in words]
    sampling = math.sqrt(float(np.mean(np.square(errors))))
    if count == 1:
        return Spread(float(means[0]), 1, float("nan"), float("nan"), sampling, (float(means[0]),))
    observed, each = float(means.var(ddof=1)), tuple(means.tolist())
    half = half_interval(means)
    if noises == 1:
        return Spread(float(means.mean()), count, half, float("nan"), sampling, each)
    rest = table - means[:, None] - table.mean(axis=0) + table.mean()
    interaction = float((rest**2).sum() / ((count - 1) * (noises - 1)))
    training = math.sqrt(max(0.0, observed - interaction / noises))
    return Spread(float(means.mean()), count, half, training, sampling, each)


def half_interval(values: Sequence[float] | np.ndarray) -> float:
    """Return half the width of the 95% interval of the mean of several seeds' values; NaN where they are too few."""
    count = len(values)
    if count < FEWEST:
        return float("nan")
    return student_t(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)


def gain(scores: Scores, reference: Scores) -> tuple[float, float]:
    """Return how much higher scores are than a reference's from the same noises, and its standard error or NaN."""
    differences = by_noise(scores) - by_noise(reference)
    error = float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else float("nan")
    return float(differences.mean()), error
