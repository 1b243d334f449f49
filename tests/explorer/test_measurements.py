import math

import numpy as np
import pyarrow as pa
import pytest

from explorer.measurements import (
    FIXED_FIELDS,
    SAMPLE_FIELDS,
    Coded,
    coded_columns_of,
    families,
    join_tables,
    measurements_of,
    measurements_table,
    samples_table,
    setting_id,
)
from tests.conftest import measured


def make_measurement(phi=0.5, *, trial_id="sshn-0", **changes):
    families = {
        "metrics": {"dice": 0.9, "dice/nucleus": 0.8},
        "standard_errors": {"dice": 0.01},
        "costs": {"macs": 1e6},
    }
    return measured(phi, 0.9, trial_id=trial_id, **{**families, "time": 1.7e9, **changes})


def make_samples(**changes):
    arguments = {
        "trial_id": "sshn-0",
        "method": "sshn",
        "seed": 0,
        "split": "test",
        "conditioning": {"phi": 0.5, "domain": "wbc"},
        "sample_ids": ["a/1", "a/2", "a/3"],
        "metrics": {"dice": np.array([0.9, np.nan, 0.7])},
    }
    return samples_table(**{**arguments, **changes})


def test_measurement_id_is_the_unique_key():
    measurement = make_measurement(0.5)
    assert measurement.measurement_id == f"sshn-0/val/{setting_id({'phi': 0.5})}"
    assert "sshn-0" in repr(measurement)


def test_setting_id_is_stable():
    # sha256 of {"lambda":2.0,"phi":0.5}
    assert setting_id({"phi": 0.5, "lambda": 2}) == "1f6308256f70"


@pytest.mark.parametrize(
    ("same", "other"),
    [
        ({"phi": 0.1, "k": 3}, {"k": 3.0, "phi": 0.1 + 1e-15}),
        ({"phi": 0.0}, {"phi": -0.0}),
        ({"phi": np.float64(0.25)}, {"phi": 0.25}),
    ],
)
def test_setting_id_ignores_order_type_and_rounding(same, other):
    assert setting_id(same) == setting_id(other)


def test_setting_id_tells_settings_apart():
    settings = [{}, {"phi": 0.1}, {"phi": 0.1 + 1e-9}, {"psi": 0.1}, {"phi": "0.1"}, {"psi": 0.2}]
    assert len({setting_id(setting) for setting in settings}) == 6


def test_measurements_round_trip_drops_nulls():
    measurements = [
        make_measurement(0.5),
        make_measurement(0.25, metrics={"dice": 0.1}, standard_errors={}, costs={"flops": 3.0}),
        make_measurement(conditioning={"domain": "wbc"}, trial_id="hyda-0"),
    ]
    assert measurements_of(measurements_table(measurements)) == measurements


def test_measurements_table_has_fixed_columns_first_then_flat_families():
    table = measurements_table([make_measurement()])
    assert table.schema.names[: len(FIXED_FIELDS)] == FIXED_FIELDS.names
    assert table.schema.names[len(FIXED_FIELDS) :] == [
        "conditioning/phi",
        "metric/dice",
        "metric/dice/nucleus",
        "se/dice",
        "cost/macs",
    ]


def test_measurements_table_of_nothing_has_fixed_columns():
    table = measurements_table([])
    assert table.schema == FIXED_FIELDS
    assert measurements_of(table) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("attribute", "family"),
    [("metrics", "metric"), ("costs", "cost"), ("conditioning", "conditioning")],
)
def test_measurements_table_refuses_non_finite_values(attribute, family, value):
    measurement = make_measurement(**{attribute: {"x": value}})
    with pytest.raises(ValueError, match=f"{family} x of sshn-0/val/[0-9a-f]+ must be finite"):
        measurements_table([measurement])


def test_measurements_table_takes_an_undefined_standard_error_as_absent():
    table = measurements_table([make_measurement(standard_errors={"dice": math.nan})])
    assert families(table, "se") == ()
    with pytest.raises(ValueError, match=r"se dice of .* must be finite, got inf"):
        measurements_table([make_measurement(standard_errors={"dice": math.inf})])


def test_families_lists_names_with_labels():
    table = measurements_table([make_measurement()])
    assert families(table, "metric") == ("dice", "dice/nucleus")
    assert families(table, "conditioning") == ("phi",)
    assert families(make_samples(), "cost") == ()


def test_samples_table_turns_nan_into_null():
    table = make_samples()
    assert table.schema.names == [
        *SAMPLE_FIELDS.names,
        "conditioning/domain",
        "conditioning/phi",
        "metric/dice",
    ]
    assert table.select(SAMPLE_FIELDS.names).schema == SAMPLE_FIELDS
    assert table["metric/dice"].to_pylist() == [0.9, None, 0.7]
    assert table["sample_id"].to_pylist() == ["a/1", "a/2", "a/3"]
    assert table["setting_id"].to_pylist() == [setting_id({"phi": 0.5, "domain": "wbc"})] * 3


def test_samples_table_refuses_another_shape():
    with pytest.raises(ValueError, match=r"metric dice of sshn-0/test/.* shape \(3,\), got \(2,\)"):
        make_samples(metrics={"dice": np.zeros(2)})


def test_samples_table_refuses_infinity():
    with pytest.raises(ValueError, match=r"metric dice of sshn-0/test/.* got infinity"):
        make_samples(metrics={"dice": np.array([0.0, np.inf, 0.0])})


def test_join_tables_makes_absent_columns_null_and_sorts():
    tables = [
        measurements_table([make_measurement(metrics={"nsd": 0.5}, costs={})]),
        measurements_table([make_measurement(metrics={"auc": 0.5}, standard_errors={})]),
    ]
    joined = join_tables(tables)
    assert joined.schema.names == [
        *FIXED_FIELDS.names,
        "conditioning/phi",
        "cost/macs",
        "metric/auc",
        "metric/nsd",
        "se/dice",
    ]
    assert joined["metric/auc"].to_pylist() == [None, 0.5]
    assert joined["cost/macs"].to_pylist() == [None, 1e6]


def test_join_tables_refuses_a_column_of_two_types():
    with pytest.raises(TypeError, match="conditioning/x has incompatible types"):
        join_tables([pa.table({"conditioning/x": [1.0]}), pa.table({"conditioning/x": ["a"]})])


def test_text_is_handed_over_as_codes():
    rows = [
        make_measurement(0.1, trial_id=trial_id, conditioning={"phi": 0.1, **mode})
        for trial_id, mode in (("b", {}), ("a", {"mode": "slow"}), ("b", {"mode": "fast"}))
    ]
    table = measurements_table(rows)
    columns = coded_columns_of(pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert [columns["trial_id"][row] for row in range(3)] == ["b", "a", "b"]
    assert columns["trial_id"].names == ("b", "a")
    assert [columns["conditioning/mode"][row] for row in range(3)] == [None, "slow", "fast"]
    np.testing.assert_array_equal(columns["conditioning/phi"], [0.1, 0.1, 0.1])
    assert columns["seed"].dtype == np.int64
    plain = Coded.of(np.array(["x", None, np.nan, "x"], dtype=object))
    assert (plain.codes.tolist(), plain.names) == ([0, 1, 1, 0], ("x", None))
