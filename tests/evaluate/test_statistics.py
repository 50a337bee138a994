from __future__ import annotations

import math

import numpy as np
import pytest

from pseudoword.evaluate import statistics
from pseudoword.evaluate.statistics import spread

NAN = float("nan")


def test_a_mean_leaves_out_what_a_measure_says_nothing_about():
    scores = np.array([[NAN, NAN], [0.2, 0.4], [0.6, 0.8]])
    assert statistics.mean(scores) == pytest.approx(0.5)
    np.testing.assert_allclose(statistics.by_noise(scores), [0.4, 0.6])
    assert math.isnan(statistics.mean(np.full((2, 2), NAN)))


def test_sampling_error_is_that_of_the_mean_over_noises():
    scores = np.array([[0.1, 0.3, 0.5, 0.7], [0.3, 0.5, 0.7, 0.9]])
    by_hand = np.std([0.2, 0.4, 0.6, 0.8], ddof=1) / 2
    assert statistics.sampling_error(scores) == pytest.approx(by_hand)
    assert math.isnan(statistics.sampling_error(scores[:, :1]))


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (2, 4.303), (9, 2.262), (20, 2.086), (120, 1.980)])
def test_intervals_are_students(freedom: int, t: float):
    assert statistics.student_t(freedom) == pytest.approx(t, abs=0.006)


def test_an_interval_over_seeds_is_computed_as_by_hand():
    words = [np.array([[0.4, 0.6]]), np.array([[0.5, 0.7]]), np.array([[0.9, 1.1]])]
    made = spread(words)
    means = [0.5, 0.6, 1.0]
    assert made.mean == pytest.approx(0.7)
    assert made.half == pytest.approx(4.303 * np.std(means, ddof=1) / math.sqrt(3))
    # The noises differ by 0.2 in every word alike, so nothing of the words' difference is sampling's.
    assert made.training == pytest.approx(np.std(means, ddof=1))
    assert made.sampling == pytest.approx(0.1)


def test_training_and_sampling_are_told_apart():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (1, 20))
    for true in (0.0, 0.2):
        found = []
        for _ in range(40):
            trained = rng.normal(0, true, 6)
            words = [t + noise + rng.normal(0, 0.3, (1, 20)) for t in trained]
            found.append(spread(words).training ** 2)
        assert math.sqrt(np.mean(found)) == pytest.approx(true, abs=0.05)


def test_one_seed_has_no_interval_and_one_noise_no_error():
    one = spread([np.array([[0.5, 0.7]])])
    assert (one.seeds, one.mean) == (1, pytest.approx(0.6))
    assert math.isnan(one.half)
    assert math.isnan(one.training)
    single = spread([np.array([[0.5]]), np.array([[0.7]])])
    assert math.isnan(single.half), "two seeds are too few for an interval"
    assert single.each == (0.5, 0.7)
    assert math.isnan(single.training)
    assert math.isnan(single.sampling)
