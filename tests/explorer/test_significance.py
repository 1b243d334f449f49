"""Paired tests between methods: closed forms and another implementation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from explorer.significance import significance


def compared(first, second, **changes):
    names = {"method": "a", "against": "b", "metric": "dice"}
    return significance(np.array(first), np.array(second), **names, **changes)


def test_wilcoxon_is_the_share_of_signs_with_as_large_a_rank_sum():
    """Under "no difference" every sign is as likely: all of them, for six samples."""
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.6])
    ranks = np.abs(differences).argsort().argsort() + 1
    seen = ranks[differences > 0].sum()
    sums = [ranks[list(signs)].sum() for signs in product([False, True], repeat=6)]
    expected = np.mean([total >= seen for total in sums])
    result = compared(differences, np.zeros(6))
    assert result.wilcoxon_p == pytest.approx(expected, rel=1e-12)
    assert result.sign_p == pytest.approx((6 + 1) / 2**6, rel=1e-12)  # five or six of six ahead
    assert (result.num_samples, result.difference) == (6, pytest.approx(0.25))


def test_less_is_better_where_the_sign_says_so():
    a, b = [0.1, 0.2, 0.3, 0.15], [0.4, 0.5, 0.7, 0.2]
    assert compared(a, b).wilcoxon_p == 1
    assert compared(a, b, sign=-1.0).wilcoxon_p == pytest.approx(1 / 16, rel=1e-12)
    assert compared(a, b).difference == compared(a, b, sign=-1.0).difference < 0


def test_equivalence_is_the_larger_of_two_one_sided_t_tests():
    rng = np.random.default_rng(0)
    a = rng.normal(0.9, 0.02, 40)
    b = a + rng.normal(0.003, 0.01, 40)
    above = stats.ttest_1samp(a - b, -0.01, alternative="greater").pvalue
    below = stats.ttest_1samp(a - b, 0.01, alternative="less").pvalue
    found = compared(a, b, margin=0.01)
    assert found.equivalence_p == pytest.approx(max(above, below), rel=1e-9)
    assert found.equivalence_p < 0.05 < compared(a, b, margin=0.002).equivalence_p


def test_equal_values_are_no_difference_and_equivalent():
    found = compared([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (found.wilcoxon_p, found.sign_p, found.equivalence_p) == (1, 1, 0)


def test_samples_without_a_value_of_both_do_not_count():
    found = compared([0.5, np.nan, 0.7, 0.9], [0.4, 0.6, np.nan, 0.6])
    assert found.num_samples == 2
    assert compared([0.5, np.nan], [np.nan, 0.4]) is None
