"""Points and answers: against hand-made tables and a naive search over their rows."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from explorer.quantities import parse_quantity
from explorer.queries import Bound, PointTable, _reachable, parse_bound
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from tests.conftest import columns_of, row

DICE = Objective("dice", "maximize")
MACS = Objective("macs", "minimize", "MAC")
PHIS = (0.0, 0.1, 0.2, 0.3, 0.4)
DICES = (0.80, 0.86, 0.88, 0.88, 0.91)
MACS_OF = (1.23e6, 0.3e9, 0.5e9, 0.45e9, 0.7e9)


@pytest.fixture(scope="module")
def curve() -> PointTable:
    rows = [row(*values) for values in zip(PHIS, DICES, MACS_OF, strict=True)]
    return PointTable.of(columns_of(rows))


def test_parse_bound_reads_name_kind_and_value() -> None:
    assert parse_bound("macs=0.6G", "max") == Bound("macs", "max", 6e8)
    assert parse_bound(" dice/nucleus = 0.9", "min") == Bound("dice/nucleus", "min", 0.9)
    assert str(parse_bound("macs=0.6G", "max")) == "macs <= 600M"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs", "expected NAME=VALUE such as macs=0.6G, got 'macs'"),
        ("=3", "expected NAME=VALUE"),
        ("macs=lots", "bound on macs: expected a number .* got 'lots'"),
    ],
)
def test_parse_bound_refuses_anything_else(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_bound(text, "max")


def test_bound_must_be_finite() -> None:
    with pytest.raises(ValueError, match="a bound on dice must be finite, got nan"):
        Bound("dice", "min", math.nan)


def test_point_averages_seeds_and_joins_test_rows() -> None:
    rows = [
        row(0.1, 0.8, 1e9, seed=2, **{"se/dice": 0.03}),
        row(0.1, 0.9, 1e9, seed=1, **{"se/dice": 0.01}),
        row(0.1, 0.5, 1e9, seed=1, split="test"),
        row(0.1, 0.7, 1e9, seed=2, split="test"),
        row(0.9, 0.1, 1e9, seed=2, split="test"),
    ]
    table = PointTable.of(columns_of(rows))
    assert len(table) == 1
    assert table.point(0).to_json() == {
        "conditioning": {"phi": 0.1},
        "metrics": {"dice": pytest.approx(0.85)},
        "standard_errors": {"dice": pytest.approx(0.02)},
        "seed_sd": {"dice": pytest.approx(0.1 / math.sqrt(2))},
        "num_seeds": 2,
        "costs": {"macs": 1e9, "flops": 2e9},
        "test_metrics": {"dice": pytest.approx(0.6)},
        "method": "sshn",
        "trial_ids": ["sshn-s1", "sshn-s2"],
    }


def test_point_of_one_seed_has_no_seed_sd_and_refined_ones_no_test_metrics() -> None:
    rows = [row(0.1, 0.8, 1e9), row(0.15, 0.8, 1e9), row(0.1, 0.7, 1e9, split="test")]
    table = PointTable.of(columns_of(rows))
    assert [dict(table.point(index).test_metrics) for index in (0, 1)] == [{"dice": 0.7}, {}]
    assert table.point(0).seed_sd == {}


def test_point_leaves_out_what_was_not_measured() -> None:
    rows = [
        row(0.1, 0.8, 1e9, **{"metric/dice/a": 0.5, "conditioning/mode": "fast"}),
        row(0.2, 0.8, 1e9, **{"metric/empty": None}),
    ]
    first, second = (PointTable.of(columns_of(rows)).point(index) for index in (0, 1))
    by_mode = {"mode" in point.conditioning: point for point in (first, second)}
    assert by_mode[True].conditioning == {"phi": 0.1, "mode": "fast"}
    assert by_mode[True].metrics == {"dice": 0.8, "dice/a": 0.5}
    assert by_mode[False].conditioning == {"phi": 0.2}
    assert by_mode[False].metrics == {"dice": 0.8}


def test_point_is_plain_finite_json(curve: PointTable) -> None:
    document = curve.point(0).to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert type(document["conditioning"]["phi"]) is float


@given(st.permutations(range(6)))
def test_order_of_rows_changes_nothing(order: list[int]) -> None:
    rows = [
        row(phi, phi / 2 + seed, 1e9, seed=seed, method=method)
        for phi, seed, method in [
            (0.1, 0, "fixed"), (0.1, 1, "fixed"), (0.2, 0, "fixed"),
            (0.1, 0, "sshn"), (0.2, 0, "sshn"), (0.2, 1, "sshn"),
        ]
    ]  # fmt: skip
    table = PointTable.of(columns_of([rows[index] for index in order]))
    assert [table.point(index).to_json() for index in range(len(table))] == [
        PointTable.of(columns_of(rows)).point(index).to_json() for index in range(4)
    ]
    assert [table.point(index).method for index in range(4)] == ["fixed"] * 2 + ["sshn"] * 2


def test_table_keeps_one_method_when_asked() -> None:
    columns = columns_of([row(0.1, 0.8, 1e9), row(0.1, 0.7, 1e9, method="fixed")])
    assert len(PointTable.of(columns)) == 2
    only = PointTable.of(columns, method="fixed")
    assert [only.point(index).method for index in range(len(only))] == ["fixed"]
    assert repr(only) == "PointTable(1 points of fixed; dice, macs, flops, phi)"


def test_table_without_such_rows_is_refused() -> None:
    columns = columns_of([row(0.1, 0.8, 1e9), row(0.1, 0.8, 1e9, split="test", method="fixed")])
    message = r"of method 'fixed' on split 'val'; there are: fixed on test, sshn on val"
    with pytest.raises(InputError, match=message):
        PointTable.of(columns, method="fixed")
    with pytest.raises(InputError, match="no measurements on split 'train'"):
        PointTable.of(columns, split="train")


def test_query_answers_with_the_best_point_within_bounds(curve: PointTable) -> None:
    answer = curve.query([parse_bound("macs=0.4G", "max")], objective=DICE)
    assert answer.feasible
    assert answer.point is not None
    assert answer.point.conditioning == {"phi": 0.1}
    assert answer.to_json() == {
        "feasible": True,
        "point": answer.point.to_json(),
        "bounds": {"macs": {"max": 4e8}},
    }


def test_query_takes_bounds_in_flops_and_values_on_the_bound(curve: PointTable) -> None:
    answer = curve.query([Bound("flops", "max", 0.6e9), Bound("dice", "min", 0.86)], objective=DICE)
    assert answer.point == curve.point(1)


def test_ties_go_to_the_cheaper_point_then_to_setting_order(curve: PointTable) -> None:
    answer = curve.query([Bound("macs", "max", 0.6e9)], objective=DICE)
    assert answer.point is not None
    assert answer.point.conditioning == {"phi": 0.3}
    twins = PointTable.of(columns_of([row(0.4, 0.8, 1e9), row(0.2, 0.8, 1e9)]))
    assert twins.best(DICE).conditioning == {"phi": 0.2}


def test_ties_follow_the_tie_breaks_given() -> None:
    table = PointTable.of(columns_of([row(0.1, 0.7, 1e9), row(0.2, 0.8, 1e9)]))
    assert table.query([], objective=MACS, tie_breaks=(DICE,)).point == table.point(1)
    unknown = Objective("unknown", "minimize")
    assert table.query([], objective=MACS, tie_breaks=(unknown,)).point == table.point(0)


def test_points_without_the_objective_take_no_part() -> None:
    table = PointTable.of(columns_of([row(0.1, math.nan, 1e6), row(0.2, 0.8, 1e9)]))
    assert table.best(DICE).conditioning == {"phi": 0.2}
    assert table.frontier([DICE, MACS]).ids.tolist() == [1]


# Few different values, so that ties abound; None was not measured.
VALUES = st.one_of(st.none(), st.integers(0, 4).map(float))
POINTS = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=12)
NAMES = ("dice", "dice/nucleus", "macs")
BOUNDS = st.lists(
    st.builds(
        Bound,
        st.sampled_from(NAMES),
        st.sampled_from(("max", "min")),
        st.integers(-1, 5).map(float),
    ),
    max_size=3,
    unique_by=lambda bound: (bound.name, bound.kind),
)
OBJECTIVES = st.builds(Objective, st.sampled_from(NAMES), st.sampled_from(("minimize", "maximize")))


def table_of(points: list[tuple[float | None, ...]]) -> PointTable:
    rows = [
        row(index / 100, math.nan, math.nan)
        | {
            f"{'cost' if n == 'macs' else 'metric'}/{n}": v
            for n, v in zip(NAMES, each, strict=True)
        }
        for index, each in enumerate(points)
    ]
    return PointTable.of(columns_of(rows))


def naive_query(
    points: list[tuple[float | None, ...]], bounds: list[Bound], objective: Objective
) -> tuple[int | None, int | None]:
    """The best point and, where there is none, the nearest: by a scan over all of them."""

    def value(index: int, name: str) -> float | None:
        return points[index][NAMES.index(name)]

    def order(index: int) -> tuple[float, float, int]:
        loss = objective.to_loss(value(index, objective.name))
        macs = value(index, "macs")
        return loss, math.inf if macs is None else macs, index

    names = [objective.name, *(bound.name for bound in bounds)]
    measured = [
        index for index in range(len(points)) if None not in [value(index, name) for name in names]
    ]
    met = [i for i in measured if all(b.violation(value(i, b.name)) <= 0 for b in bounds)]
    if met:
        return min(met, key=order), None

    def worst(index: int) -> float:
        violations = [0.0]
        for bound in bounds:
            held = [v for i in range(len(points)) if (v := value(i, bound.name)) is not None]
            violations.append(
                bound.violation(value(index, bound.name)) / (max(held) - min(held) or 1)
            )
        return max(violations)

    return None, min(measured, key=lambda i: (worst(i), *order(i))) if measured else None


@settings(max_examples=300)
@given(POINTS, BOUNDS, OBJECTIVES)
def test_query_agrees_with_a_scan(points: Any, bounds: Any, objective: Objective) -> None:
    table = table_of(points)
    assume(all(name in table.names for name in [objective.name, *(b.name for b in bounds)]))
    best, nearest = naive_query(points, bounds, objective)
    if best is None and nearest is None:
        with pytest.raises(InputError, match="none was measured"):
            table.query(bounds, objective=objective)
        return
    answer = table.query(bounds, objective=objective)
    assert answer.point == (None if best is None else table.point(best))
    assert answer.nearest == (None if nearest is None else table.point(nearest))
    assert bool(answer.reason) == (best is None)


@given(POINTS, BOUNDS, st.randoms(use_true_random=False))
def test_order_of_rows_changes_no_answer(points: Any, bounds: Any, random: Any) -> None:
    rows = [
        row(i / 100, d or 0, m or 0, **{"metric/dice/nucleus": n or 0})
        for i, (d, n, m) in enumerate(points)
    ]
    shuffled = random.sample(rows, len(rows))
    answers = [PointTable.of(columns_of(r)).query(bounds, objective=DICE) for r in (rows, shuffled)]
    assert answers[0].to_json() == answers[1].to_json()


@given(POINTS, st.integers(-1, 5))
def test_a_metric_and_its_negative_give_the_same_answer(points: Any, limit: int) -> None:
    rows = [
        row(i / 100, d or 0, m or 0) | {"metric/error": -(d or 0)}
        for i, (d, _, m) in enumerate(points)
    ]
    table = PointTable.of(columns_of(rows))
    answers = [
        table.query([Bound("dice", "min", limit)], objective=DICE),
        table.query([Bound("error", "max", -limit)], objective=Objective("error", "minimize")),
    ]
    assert answers[0].point == answers[1].point
    assert answers[0].nearest == answers[1].nearest


def test_reason_names_the_bound_that_nothing_meets(curve: PointTable) -> None:
    answer = curve.query([parse_bound("macs=1k", "max")], objective=DICE)
    assert answer.reason == "no setting has macs <= 1k: the smallest is 1.23M (phi = 0)"
    assert answer.nearest == curve.point(0)
    assert answer.nearest is not None
    assert answer.to_json() == {
        "feasible": False,
        "reason": answer.reason,
        "nearest": answer.nearest.to_json(),
        "bounds": {"macs": {"max": 1000.0}},
    }


def test_reason_names_every_bound_that_nothing_meets(curve: PointTable) -> None:
    bounds = [Bound("macs", "max", 1e3), Bound("dice", "min", 0.95), Bound("flops", "min", 0)]
    assert curve.query(bounds, objective=DICE).reason == (
        "no setting has macs <= 1k: the smallest is 1.23M (phi = 0); "
        "no setting has dice >= 0.95: the largest is 0.91 (phi = 0.4)"
    )


def test_reason_names_the_trade_between_bounds_that_exclude_each_other(curve: PointTable) -> None:
    bounds = [Bound("flops", "min", 0), Bound("macs", "max", 0.5e9), Bound("dice", "min", 0.9)]
    answer = curve.query(bounds, objective=MACS)
    assert answer.reason == (
        "macs <= 500M and dice >= 0.9 exclude each other: "
        "with dice >= 0.9 the smallest macs is 700M (phi = 0.4), "
        "with macs <= 500M the largest dice is 0.88 (phi = 0.2)"
    )


def test_reason_tells_a_near_miss_from_its_bound() -> None:
    table = PointTable.of(columns_of([row(0.1, 0.89999, 1e9, **{"conditioning/mode": "fast"})]))
    reason = table.query([Bound("dice", "min", 0.9)], objective=DICE).reason
    assert reason == "no setting has dice >= 0.9: the largest is 0.89999 (phi = 0.1, mode = fast)"
    miss = np.nextafter(0.9, 0)
    table = PointTable.of(columns_of([row(0.1, miss, 1e9)]))
    assert repr(float(miss)) in table.query([Bound("dice", "min", 0.9)], objective=DICE).reason


def test_nearest_has_the_smallest_worst_normalised_violation() -> None:
    # Ranges: macs 100, dice 1. Worst violations: 0.5 (macs), 0.3 (dice), 0.4 (dice).
    rows = [row(0.1, 1.0, 100), row(0.2, 0.6, 70), row(0.3, 0.5, 50), row(0.4, 0.0, 0)]
    bounds = [Bound("macs", "max", 50), Bound("dice", "min", 0.9)]
    answer = PointTable.of(columns_of(rows)).query(bounds, objective=DICE)
    assert answer.nearest is not None
    assert answer.nearest.conditioning == {"phi": 0.2}


def test_nearest_has_every_bounded_quantity() -> None:
    rows = [row(0.1, 0.9, math.nan), row(0.2, 0.5, 10), row(0.3, math.nan, 1)]
    table = PointTable.of(columns_of(rows))
    answer = table.query([Bound("macs", "max", 5)], objective=DICE)
    assert answer.nearest is not None
    assert answer.nearest.conditioning == {"phi": 0.2}
    apart = PointTable.of(columns_of([rows[0], rows[2]]))
    with pytest.raises(InputError, match="expected a point with all of dice, macs"):
        apart.query([Bound("macs", "max", 5)], objective=DICE)


def test_bounds_and_objectives_may_name_a_conditioning() -> None:
    rows = [row(phi, dice) for phi, dice in ((0.1, 0.7), (0.2, 0.9), (0.3, 0.8), (0.4, 0.95))]
    table = PointTable.of(columns_of([*rows, row(None, 0.99, method="other")]))
    between = [Bound("phi", "min", 0.1), Bound("phi", "max", 0.3)]
    best = table.query(between, objective=DICE).point
    assert best is not None
    assert best.conditioning == {"phi": 0.2}
    at_least = [Bound("dice", "min", 0.8)]
    least = table.query(at_least, objective=Objective("phi", "minimize")).point
    assert least is not None
    assert least.conditioning == {"phi": 0.2}
    none = table.query([Bound("phi", "min", 0.22), Bound("phi", "max", 0.28)], objective=DICE)
    assert none.reason.endswith("no setting between them was measured: --refine measures more")
    beyond = table.query([Bound("phi", "min", 0.41)], objective=DICE)
    assert beyond.nearest is not None
    assert beyond.nearest.conditioning == {"phi": 0.4}
    assert "phi >= 0.41" in beyond.reason


def test_values_of_a_category_are_no_quantity() -> None:
    rows = [row(0.1, 0.7), row(0.2, 0.9)]
    kinds = {"conditioning/kind": np.array(["a", "b"], dtype=object)}
    table = PointTable.of(columns_of(rows) | kinds)
    with pytest.raises(InputError, match="unknown metric, cost or conditioning 'kind'"):
        table.query([Bound("kind", "min", 0)], objective=DICE)


def test_unknown_names_list_the_known_ones(curve: PointTable) -> None:
    message = "unknown metric, cost or conditioning 'speed'; known: dice, flops, macs, phi"
    with pytest.raises(InputError, match=message):
        curve.query([Bound("speed", "max", 1)], objective=DICE)
    with pytest.raises(InputError, match=message):
        curve.query([], objective=Objective("speed", "maximize"))


def test_repeated_bounds_are_refused(curve: PointTable) -> None:
    with pytest.raises(InputError, match="at most one max bound on macs"):
        curve.query([Bound("macs", "max", 1), Bound("macs", "max", 2)], objective=DICE)


def test_iso_accuracy_finds_the_cheapest_point_as_good(curve: PointTable) -> None:
    assert curve.iso_accuracy(0.87, objective=DICE).point == curve.point(3)
    assert not curve.iso_accuracy(0.99, objective=DICE).feasible
    costly = Objective("macs", "minimize")
    assert curve.iso_accuracy(0.5e9, objective=costly, cost="flops").point == curve.point(0)


def test_frontier_holds_positions_of_nondominated_points(curve: PointTable) -> None:
    frontier = curve.frontier([DICE, MACS])
    assert [curve.point(index).conditioning["phi"] for index in frontier.ids] == [0.4, 0.3, 0.1, 0]
    assert frontier.losses[0].tolist() == [-0.91, 0.7e9]


def test_settings_given_up_in_a_race_are_no_points():
    rows = [row(0.1, 0.8, 1e9), row(0.2, 0.99, 1e9), row(0.3, 0.9, 1e9)]
    rows += [row(0.2, 0.7, 1e9, split="test")]
    columns = columns_of(rows) | {"num_samples": np.array([40, 16, 40, 99])}
    table = PointTable.of(columns)
    assert [table.point(k).conditioning["phi"] for k in range(len(table))] == [0.1, 0.3]
    assert table.best(Objective("dice", "maximize")).metrics["dice"] == 0.9


# The knee


def test_knee_is_the_front_s_point_farthest_from_its_chord() -> None:
    # Scaled to their ranges, the front's points lie 0, 0.3, 0.55, 0.5 and 0 below the chord.
    dices = (0.5, 0.75, 0.9, 0.95, 1.0)
    macs = (0.0, 20.0, 25.0, 40.0, 100.0)
    rows = [row(i / 10, d, m) for i, (d, m) in enumerate(zip(dices, macs, strict=True))]
    rows.append(row(0.9, 0.4, 50.0))
    table = PointTable.of(columns_of(rows))
    assert table.knee((DICE, MACS)).point == table.point(2)
    # Of the points from 0.75 on, those between the ends lie 0.5375 and 0.55 below.
    answer = table.knee((DICE, MACS), [Bound("macs", "max", 100), Bound("dice", "min", 0.75)])
    assert answer.point == table.point(3)
    assert answer.to_json()["bounds"] == {"macs": {"max": 100}, "dice": {"min": 0.75}}


def test_knee_within_bounds_that_nothing_meets_is_explained(curve: PointTable) -> None:
    answer = curve.knee((DICE, MACS), [Bound("macs", "max", 1e3)])
    assert not answer.feasible
    assert answer.reason == "no setting has macs <= 1k: the smallest is 1.23M (phi = 0)"


def test_knee_refuses_repeated_bounds(curve: PointTable) -> None:
    with pytest.raises(InputError, match="at most one max bound on macs"):
        curve.knee((DICE, MACS), [Bound("macs", "max", 1), Bound("macs", "max", 2)])


def test_losses_come_in_the_order_of_recording() -> None:
    rows = [row(0.2, 0.8, 2.0), row(0.1, 0.9, 1.0), row(0.3, math.nan, 3.0)]
    losses = PointTable.of(columns_of(rows)).losses([DICE, MACS])
    assert losses.tolist() == [[-0.8, 2.0], [-0.9, 1.0]]


@pytest.mark.parametrize(
    ("value", "bound", "text"),
    [
        (85_014_528, Bound("flops", "max", 85e6), "85.014528M"),
        (0.94048, Bound("dice", "min", 0.9405), "0.94"),
        (0.99999, Bound("dice", "min", 1.0), "0.99999"),
        (40.0, Bound("macs", "max", 39.9), "40"),
    ],
)
def test_value_named_in_a_reason_is_a_bound_that_can_be_kept(value, bound, text):
    told = _reachable(float(value), bound)
    assert told == text
    assert Bound(bound.name, bound.kind, parse_quantity(told)).is_kept({bound.name: value})


def test_distances_of_settings_are_their_largest_over_parameters():
    texts = {"conditioning/mode": "linear"}, {"conditioning/mode": "nearest"}
    rows = [row(0.1, 0.8, **texts[0]), row(0.4, 0.8, **texts[0]), row(0.4, 0.8, **texts[1])]
    table = PointTable.of(columns_of(rows))
    found = table.distances({"phi": 0.2, "mode": "nearest"}, {"phi": 0.5, "mode": 1.0})
    modes = [table.point(index).conditioning["mode"] for index in range(3)]
    phis = [table.point(index).conditioning["phi"] for index in range(3)]
    expected = [
        max(abs(phi - 0.2) / 0.5, float(mode != "nearest"))
        for phi, mode in zip(phis, modes, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
