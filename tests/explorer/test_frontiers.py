"""Dominance and hypervolume: against closed forms, a naive second algorithm, and their laws."""

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from explorer.frontiers import Frontier, hypervolume, knee, nondominated_mask

Floats = NDArray[np.float64]
# A coarse lattice makes ties and copies frequent.
LATTICE = st.integers(0, 6).map(float)
POINTS = st.tuples(st.integers(1, 25), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=LATTICE)
)
PAIRS = st.integers(1, 25).flatmap(lambda n: arrays(np.float64, (n, 2), elements=LATTICE))


def naive_mask(losses: Floats) -> list[bool]:
    return [
        not any((q <= p).all() and (q < p).any() for q in losses)  # the definition, O(n²)
        for p in losses
    ]


def staircase(n: int) -> Floats:
    steps = np.arange(n, dtype=np.float64)
    return np.stack([steps, n - 1 - steps], axis=1)


@given(POINTS)
def test_nondominated_mask_matches_the_definition(losses: Floats) -> None:
    assert nondominated_mask(losses).tolist() == naive_mask(losses)


def test_nondominated_mask_keeps_every_copy_of_equal_rows() -> None:
    mask = nondominated_mask([[0, 1], [1, 1], [0, 1], [1, 0], [1, 0]])
    assert mask.tolist() == [True, False, True, True, True]


def test_nondominated_mask_of_no_points_is_empty() -> None:
    assert nondominated_mask(np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_hypervolume_of_a_staircase_has_its_closed_form(n: int) -> None:
    assert hypervolume(staircase(n), [n, n]) == pytest.approx(n * n - n * (n - 1) / 2, rel=1e-12)


@given(PAIRS)
def test_hypervolume_of_lattice_points_counts_dominated_cells(losses: Floats) -> None:
    corners = np.stack(np.meshgrid(np.arange(8), np.arange(8)), axis=-1).reshape(-1, 1, 2)
    num_dominated = int((losses <= corners).all(axis=2).any(axis=1).sum())
    assert hypervolume(losses, [8, 8]) == pytest.approx(num_dominated, rel=1e-12)


def test_hypervolume_of_one_point_is_a_box_in_any_dimension() -> None:
    assert hypervolume([[1.0, 2.0, 3.0, 0.5]], [2, 4, 6, 1]) == pytest.approx(3.0, rel=1e-12)


def test_hypervolume_ignores_points_beyond_ref_point() -> None:
    assert hypervolume([[0.0, 0.0], [-5.0, 3.0], [3.0, -5.0]], [1, 2]) == pytest.approx(2.0)
    assert hypervolume([[1.0, 0.0]], [1, 2]) == 0.0
    assert hypervolume(np.zeros((0, 2)), [1, 2]) == 0.0


@given(POINTS, st.randoms(use_true_random=False))
def test_order_of_points_changes_nothing(losses: Floats, random: Random) -> None:
    order = np.array(sorted(range(len(losses)), key=lambda _: random.random()))
    ref = np.full(losses.shape[1], 7.0)
    mask = nondominated_mask(losses)
    assert nondominated_mask(losses[order]).tolist() == mask[order].tolist()
    assert hypervolume(losses[order], ref) == pytest.approx(hypervolume(losses, ref), rel=1e-12)


@given(POINTS)
def test_a_frontier_is_its_own_frontier(losses: Floats) -> None:
    once = Frontier.of(losses, np.arange(len(losses)))
    twice = Frontier.of(once.losses, once.ids)
    assert twice.ids.tolist() == once.ids.tolist()
    assert (twice.losses == once.losses).all()


@given(POINTS, st.data())
def test_hypervolume_never_falls_when_a_point_joins(losses: Floats, data: st.DataObject) -> None:
    m = losses.shape[1]
    point = data.draw(arrays(np.float64, (1, m), elements=LATTICE))
    ref = np.full(m, 7.0)
    assert hypervolume(np.vstack([losses, point]), ref) >= hypervolume(losses, ref) - 1e-9


@given(POINTS, st.data())
def test_a_dominated_point_changes_nothing(losses: Floats, data: st.DataObject) -> None:
    m = losses.shape[1]
    index = data.draw(st.integers(0, len(losses) - 1))
    worse = losses[index] + data.draw(arrays(np.float64, m, elements=LATTICE))
    assume((worse > losses[index]).any())
    joined = np.vstack([losses, worse])
    ref = np.full(m, 14.0)
    assert nondominated_mask(joined).tolist() == [*nondominated_mask(losses), False]
    assert hypervolume(joined, ref) == pytest.approx(hypervolume(losses, ref), rel=1e-12)


@given(POINTS, st.floats(1e-3, 1e9))
def test_scaling_an_objective_scales_the_hypervolume(losses: Floats, factor: float) -> None:
    scale = np.ones(losses.shape[1])
    scale[0] = factor
    ref = np.full(losses.shape[1], 7.0)
    assert nondominated_mask(losses * scale).tolist() == nondominated_mask(losses).tolist()
    assert hypervolume(losses * scale, ref * scale) == pytest.approx(
        factor * hypervolume(losses, ref), rel=1e-12
    )


@pytest.mark.parametrize("function", [nondominated_mask, lambda x: hypervolume(x, [1, 1])])
@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([[0.0, np.nan]], "must be finite"),
        ([[0.0, np.inf]], "must be finite"),
        ([0.0, 1.0], r"shape \(points, objectives\), got \(2,\)"),
        (np.zeros((3, 0)), r"shape \(points, objectives\), got \(3, 0\)"),
    ],
)
def test_bad_losses_are_refused(function: Any, losses: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(losses)


@pytest.mark.parametrize("ref_point", [[1.0], [1.0, np.inf], 1.0, [[1.0, 1.0]]])
def test_bad_ref_point_is_refused(ref_point: Any) -> None:
    with pytest.raises(ValueError, match="ref_point must hold 2 finite numbers"):
        hypervolume([[0.0, 0.0]], ref_point)


def test_frontier_is_sorted_by_first_loss_and_keeps_ids_and_copies() -> None:
    losses = [[2.0, 0.0], [0.0, 2.0], [1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    frontier = Frontier.of(losses, ["a", "b", "c", "d", "e"])
    assert frontier.ids.tolist() == ["b", "c", "e", "a"]
    assert frontier.losses.tolist() == [[0, 2], [1, 1], [1, 1], [2, 0]]
    assert len(frontier) == 4
    assert frontier.hypervolume([3, 3]) == pytest.approx(6.0, rel=1e-12)
    assert "Frontier" in repr(frontier)


def test_frontier_is_read_only_and_leaves_its_input_alone() -> None:
    losses = staircase(3)
    frontier = Frontier.of(losses, [0, 1, 2])
    with pytest.raises(ValueError, match="read-only"):
        frontier.losses[0, 0] = 9.0
    with pytest.raises(ValueError, match="read-only"):
        frontier.ids[0] = 9
    losses[0, 0] = 9.0
    assert frontier.losses[0, 0] == 0.0


@given(POINTS)
def test_points_beyond_ref_point_add_nothing(losses: Floats) -> None:
    ref = np.full(losses.shape[1], 3.0)
    inside = losses[(losses < ref).all(axis=1)]
    assert hypervolume(losses, ref) == pytest.approx(hypervolume(inside, ref), rel=1e-12)
    assert Frontier.of(losses, range(len(losses))).hypervolume(ref) == pytest.approx(
        hypervolume(inside, ref), rel=1e-12
    )


@given(POINTS)
def test_frontier_is_sorted_by_whole_rows_copies_in_their_order(losses: Floats) -> None:
    frontier = Frontier.of(losses, np.arange(len(losses)))
    rows = [(*row, name) for row, name in zip(frontier.losses.tolist(), frontier.ids, strict=True)]
    assert rows == sorted(rows)
    assert set(frontier.ids.tolist()) == set(np.flatnonzero(naive_mask(losses)).tolist())


# The knee


def naive_knee(losses: Floats) -> Floats:
    """Two objectives: distances below the line through the ends, over the ranges."""
    low, high = losses.min(axis=0), losses.max(axis=0)
    x, y = ((losses - low) / np.where(high > low, high - low, 1)).T
    return (1 - x - y) / np.sqrt(2)


@given(PAIRS)
def test_knee_lies_farthest_below_the_chord(losses: Floats) -> None:
    front = Frontier.of(losses, range(len(losses))).losses
    distances = naive_knee(front)
    assert distances[knee(front)] == pytest.approx(distances.max(), abs=1e-9)


@given(PAIRS, st.floats(1e-6, 1e9), st.floats(-1e3, 1e3))
def test_units_of_an_objective_do_not_move_the_knee(
    losses: Floats, factor: float, offset: float
) -> None:
    front = Frontier.of(losses, range(len(losses))).losses
    assert knee(front * [factor, 1.0]) == knee(front)
    assert knee(front + np.array([0.0, np.round(offset)])) == knee(front)


def test_knee_of_a_front_that_bulges_out_or_of_one_point_is_an_end() -> None:
    assert knee([[0.0, 1.0], [0.7, 0.9], [1.0, 0.0]]) == 0
    assert knee([[3.0, 4.0], [3.0, 4.0]]) == 0
    assert knee([[3.0]]) == 0


def test_knee_of_three_objectives_is_below_the_plane_through_their_best_points() -> None:
    ends = [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert knee([*ends, [0.5, 0.6, 0.7], [0.6, 0.6, 0.5]]) == 4
    # A point that is best in two objectives: no plane, so the least sum of scaled losses.
    assert knee([[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.2, 0.3, 0.4]]) == 2
    with pytest.raises(ValueError, match="at least one point"):
        knee(np.zeros((0, 2)))


def test_frontier_of_another_number_of_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="one id for each of 3 points, got 2"):
        Frontier.of(staircase(3), ["a", "b"])
