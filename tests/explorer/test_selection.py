"""The search in blocks: against a scan over all rows, one after the other."""

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from explorer.selection import BlockSearch, Key
from search_spaces.problem import Objective

NAMES = ("a", "b", "c")
VALUES = st.one_of(st.just(math.nan), st.integers(-2, 3).map(float))
ROWS = st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=40)
OBJECTIVES = st.builds(Objective, st.sampled_from(NAMES), st.sampled_from(("minimize", "maximize")))
LIMITS = st.lists(st.tuples(OBJECTIVES, st.integers(-3, 3).map(float)), max_size=3)


def loss(objective: Objective) -> Key:
    return lambda read: read(objective)


def naive(
    rows: list[tuple[float, ...]],
    keys: list[Objective],
    limits: list[tuple[Objective, float]],
    required: list[str],
) -> int | None:
    def loss_of(row: tuple[float, ...], objective: Objective) -> float:
        return objective.to_loss(row[NAMES.index(objective.name)])

    allowed = [
        (*(math.inf if math.isnan(v) else v for v in (loss_of(row, key) for key in keys)), index)
        for index, row in enumerate(rows)
        if all(loss_of(row, objective) <= limit for objective, limit in limits)
        and not any(math.isnan(row[NAMES.index(name)]) for name in required)
    ]
    return int(min(allowed)[-1]) if allowed else None


@given(
    ROWS,
    st.lists(OBJECTIVES, max_size=3),
    LIMITS,
    st.lists(st.sampled_from(NAMES), max_size=2),
    st.integers(1, 5),
    st.data(),
)
def test_first_is_that_of_a_scan_whatever_the_order_and_size_of_blocks(
    rows: Any, keys: Any, limits: Any, required: Any, block_size: int, data: st.DataObject
) -> None:
    columns = dict(zip(NAMES, np.array(rows, dtype=float).T, strict=True))
    order = np.array(data.draw(st.permutations(range(len(rows)))), dtype=np.int64)
    search = BlockSearch(columns, order, block_size=block_size)
    found = search.first([loss(key) for key in keys], limits=limits, required=required)
    assert found == naive(rows, keys, limits, required)


def test_key_of_several_losses_is_bounded_in_blocks() -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.random(1000) for name in NAMES}
    low, high = Objective("a", "minimize"), Objective("b", "maximize")

    def worst(read: Any) -> Any:
        return np.maximum(read(low) - 0.2, read(high) + 0.9)

    expected = np.argmin(np.maximum(columns["a"] - 0.2, 0.9 - columns["b"]))
    search = BlockSearch(columns, np.argsort(columns["c"]), block_size=16)
    assert search.first([worst]) == expected


def test_range_passes_over_what_was_not_measured() -> None:
    columns = {"a": np.array([3.0, math.nan, 1.0]), "b": np.full(3, math.nan)}
    search = BlockSearch(columns, np.arange(3), block_size=2)
    assert search.range("a") == 2.0
    assert math.isnan(search.range("b"))


def test_most_blocks_are_not_looked_at() -> None:
    values = np.arange(100_000.0)
    search = BlockSearch({"a": values}, np.arange(100_000))
    column = search._columns["a"]
    looked_at: list[int] = []

    class Watched(np.ndarray):
        def __getitem__(self, key: Any) -> Any:
            looked_at.append(np.size(key[0] if isinstance(key, tuple) else key))
            return np.asarray(self)[key]

    object.__setattr__(column, "values", column.values.view(Watched))
    limit = [(Objective("a", "maximize"), -70_000.0)]
    assert search.first([loss(Objective("a", "minimize"))], limits=limit) == 70_000
    assert 0 < sum(looked_at) < 5000  # of 100,000 rows
