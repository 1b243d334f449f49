"""The rows behind each point: filters, order, and text given as codes."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.measurements import Coded, coded_columns_of
from explorer.points import PointRows, methods_on
from explorer.queries import PointTable
from search_spaces.errors import InputError
from tests.conftest import row


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for each in rows for name in each)
    return pa.table({name: [each.get(name) for each in rows] for name in names})


def documents(table: PointTable) -> list[dict[str, Any]]:
    return [table.point(index).to_json() for index in range(len(table))]


def points_of(rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    return documents(PointTable.of(coded_columns_of(table_of(rows)), **options))


ROWS = [
    row(phi, 0.1 * seed + phi / 3 - (split == "test") / 7, seed=seed, split=split, method=method)
    for method in ("sshn", "film")
    for split in ("val", "test")
    for seed in (10, 9, 2)
    for phi in (0.3, 0.1, 0.2)
]


@given(st.permutations(range(len(ROWS))))
def test_order_of_rows_changes_no_digit(order: list[int]) -> None:
    assert points_of([ROWS[index] for index in order]) == points_of(ROWS)


def test_means_do_not_mix_methods_splits_and_seeds() -> None:
    found = points_of(ROWS, method="film", seeds=[2, 10])
    assert [point["conditioning"]["phi"] for point in found] == [0.1, 0.2, 0.3]
    for point in found:
        phi = point["conditioning"]["phi"]
        assert point["metrics"] == {"dice": pytest.approx(0.6 + phi / 3)}
        assert point["test_metrics"] == {"dice": pytest.approx(0.6 + phi / 3 - 1 / 7)}
        assert point["seed_sd"] == {"dice": pytest.approx(0.8 / 2**0.5)}
        assert (point["num_seeds"], point["trial_ids"]) == (2, ["film-s10", "film-s2"])


def test_points_of_the_test_split_have_no_further_test_metrics() -> None:
    found = points_of(ROWS, split="test")
    assert len(found) == 6
    assert all(point["test_metrics"] == {} for point in found)


def test_text_as_codes_gives_the_points_of_text_as_objects() -> None:
    table = table_of([*ROWS, row(0.5, 0.5, **{"conditioning/mode": "fast"})])
    plain = {name: table[name].to_numpy() for name in table.column_names}
    coded = coded_columns_of(table)
    assert isinstance(coded["conditioning/mode"], Coded)
    assert documents(PointTable.of(coded)) == documents(PointTable.of(plain))


def test_a_setting_is_its_conditioning_to_twelve_decimals() -> None:
    found = points_of([row(0.3, 0.8), row(0.1 + 0.2, 0.9, seed=1), row(0.3 + 1e-11, 0.9, seed=2)])
    assert [point["num_seeds"] for point in found] == [2, 1]


def test_settings_sort_by_their_columns_in_turn() -> None:
    modes = (None, "slow", "fast")
    rows = [
        row(phi, 0.8, **{"conditioning/psi": psi, "conditioning/mode": mode})
        for phi in (None, 2.0, 1.0)
        for psi in (7.0, -7.0)
        for mode in modes
    ]
    found = [tuple(point["conditioning"].values()) for point in points_of(rows)]
    assert found == [
        (*phi, psi, *mode)
        for phi in ((1.0,), (2.0,), ())
        for psi in (-7.0, 7.0)
        for mode in ((), ("fast",), ("slow",))
    ]


def test_many_conditionings_of_many_values_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    n, names = 3000, [f"conditioning/p{index}" for index in range(8)]
    values = rng.integers(0, 2000, (n, len(names))).astype(float)
    values[:, 0] = 0.0
    values[: n // 2] = values[n // 2 :]  # every setting twice, as two seeds
    columns = dict(zip(names, values.T, strict=True))
    text = {"split": ["val"] * n, "method": ["m"] * n}
    text["trial_id"] = ["a"] * (n // 2) + ["b"] * (n // 2)
    rows = PointRows.of(columns | {k: np.array(v, object) for k, v in text.items()})
    expected = np.unique(values, axis=0)
    assert len(rows) == len(expected) == n // 2
    np.testing.assert_array_equal(values[rows.rows[rows.offsets[:-1]]], expected)


def test_unknown_seed_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no measurements of seed 7; there are: 2, 9, 10"):
        points_of(ROWS, method="film", seeds=[2, 7])
    with pytest.raises(InputError, match="expected at least one seed, got none"):
        points_of(ROWS, seeds=[])


def test_methods_come_in_the_order_of_recording() -> None:
    rows = [row(0.1, 0.5, method="z"), row(0.1, 0.5, method="a"), row(0.1, 0.5, method="z")]
    rows.append(row(0.1, 0.5, method="b", split="test"))
    assert methods_on(coded_columns_of(table_of(rows)), "val") == ["z", "a"]


def test_points_know_their_seeds_and_the_order_of_recording() -> None:
    table = PointTable.of(coded_columns_of(table_of(ROWS)), method="sshn")
    assert table.seeds == (2, 9, 10)
    assert PointRows.of(coded_columns_of(table_of(ROWS)), method="sshn").recorded().tolist() == [
        2, 0, 1,
    ]  # fmt: skip
