"""Standard errors of images, and of pairs that share them."""

import numpy as np
import pytest

from explorer.session import standard_error

PAIRS = np.array([(a, b) for a in range(8) for b in range(8) if a != b])


def test_of_images_it_is_the_usual_one():
    values = np.array([0.5, 0.7, np.nan, 0.9])
    assert standard_error(values) == pytest.approx(0.2 / np.sqrt(3))
    assert standard_error(np.array([0.5, np.nan])) is None


def test_of_pairs_it_is_that_of_what_their_images_bring():
    means, told, naive = [], [], []
    for seed in range(300):
        own = np.random.default_rng(seed).normal(size=8)
        values = own[PAIRS].sum(axis=1)
        means.append(values.mean())
        told.append(standard_error(values, PAIRS))
        naive.append(standard_error(values))
    spread = np.std(means)
    assert np.mean(told) == pytest.approx(spread, rel=0.15)
    assert np.mean(naive) < 0.6 * spread


def test_pairs_without_a_value_do_not_count():
    values = np.random.default_rng(0).random(len(PAIRS))
    values[PAIRS[:, 0] == 0] = np.nan
    some = np.isfinite(values)
    assert standard_error(values, PAIRS) == standard_error(values[some], PAIRS[some])
    assert standard_error(np.array([0.1, 0.2]), PAIRS[[0, 0]]) is None
