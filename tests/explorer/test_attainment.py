"""What fronts attain: against closed forms and the definitions, point by point."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from explorer.attainment import (
    additive_epsilon,
    attainment_surfaces,
    best_within,
    hypervolume_history,
    mean_gap,
    share_dominated,
)
from explorer.frontiers import hypervolume, nondominated_mask

LATTICE = st.integers(0, 6).map(float)
CLOUDS = st.integers(1, 8).flatmap(lambda n: arrays(np.float64, (n, 2), elements=LATTICE))
FRONTS = CLOUDS.map(lambda points: points[nondominated_mask(points)])
CELLS = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(-1, 2)


def attained(points: Any) -> Any:
    """Which cells some point is nowhere worse than."""
    return (points[:, None] <= CELLS).all(axis=2).any(axis=0)


@given(st.integers(1, 500), st.integers(1, 3))
def test_history_is_the_hypervolume_of_the_first_points(n: int, m: int) -> None:
    losses = np.random.default_rng(n).random((n, m))
    ref = np.full(m, 0.9)
    counts, volumes = hypervolume_history(losses, ref)
    assert counts[-1] == n
    assert len(counts) == min(n, 200)
    for index in {0, len(counts) // 2, len(counts) - 1}:
        expected = hypervolume(losses[: counts[index]], ref)
        assert volumes[index] == pytest.approx(expected, rel=1e-12)
    assert volumes == sorted(volumes)


def test_history_of_nothing_is_empty() -> None:
    assert hypervolume_history(np.zeros((0, 2)), np.ones(2)) == ([], [])


@given(st.lists(FRONTS, min_size=1, max_size=5))
def test_surfaces_attain_what_so_many_runs_do(fronts: Any) -> None:
    surfaces = attainment_surfaces(fronts)
    assert surfaces is not None
    num_runs = sum(attained(front).astype(int) for front in fronts)
    needed = {"best": 1, "median": (len(fronts) + 1) // 2, "worst": len(fronts)}
    for name, number in needed.items():
        np.testing.assert_array_equal(attained(surfaces[name]), num_runs >= number)
        assert nondominated_mask(surfaces[name]).all()
        assert (np.diff(surfaces[name][:, 0]) > 0).all()


def test_surfaces_are_for_two_or_three_objectives() -> None:
    assert attainment_surfaces([np.zeros((1, 1))]) is None
    assert attainment_surfaces([np.zeros((1, 4))]) is None
    surfaces = attainment_surfaces([np.zeros((1, 3)), np.ones((1, 3))])
    assert surfaces is not None
    assert surfaces["worst"].tolist() == [[1, 1, 1]]


@given(FRONTS, FRONTS)
def test_share_dominated_matches_the_definition(front: Any, by: Any) -> None:
    fallen = [any((q <= p).all() and (q < p).any() for q in by) for p in front]
    assert share_dominated(front, by=by) == pytest.approx(np.mean(fallen), abs=1e-15)


@given(FRONTS, FRONTS)
def test_epsilon_is_the_least_shift_to_be_nowhere_worse(front: Any, against: Any) -> None:
    expected = max(min((q - p).max() for q in front) for p in against) / 2
    scale = np.array([2.0, 2.0])
    assert additive_epsilon(front, against, scale=scale) == pytest.approx(expected, abs=1e-12)


def test_best_within_a_budget_is_the_lowest_so_far() -> None:
    points = np.array([[5.0, 2.0], [3.0, 1.0], [4.0, 3.0], [1.0, 4.0]])
    found = best_within(points, np.array([0.5, 1.0, 3.5, 4.0, 9.0]))
    np.testing.assert_array_equal(found, [np.nan, 3, 3, 1, 1])


def test_mean_gap_integrates_the_steps() -> None:
    front = np.array([[3.0, 0.0], [1.0, 2.0]])
    against = np.array([[4.0, 1.0], [0.0, 3.0]])
    # Over [1, 4]: 4 - 3 for one unit, 4 - 1 for one, 0 - 1 for one.
    assert mean_gap(front, against, 1.0, 4.0) == pytest.approx((1 + 3 - 1) / 3)
    assert mean_gap(against, front, 1.0, 4.0) == pytest.approx(-1.0)
