import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from search_spaces.space import CategoricalParameter, FloatParameter, IntParameter, SearchSpace

FLOAT = FloatParameter("phi", 0.0, 0.5)
LOG = FloatParameter("rate", 1e-4, 1.0, log=True)
INT = IntParameter("width", 4, 32, role="training")
CATEGORY = CategoricalParameter("mode", ("a", "b", "c"))
SPACE = SearchSpace((FLOAT, LOG, INT, CATEGORY))

bounded = st.floats(-1e6, 1e6)
units = st.floats(0, 1)


@st.composite
def float_parameters(draw):
    low, high = sorted((draw(bounded), draw(bounded)))
    assume(high - low > 1e-6 * max(abs(low), abs(high), 1))
    log = draw(st.booleans()) and low > 1e-6
    # a value far from zero has not the digits to be near its end by less than its rounding
    is_near = max(abs(low), abs(high)) <= 1e3
    soft = draw(st.sampled_from([None, 1e-3, 1.0])) if is_near and not log else None
    return FloatParameter("x", low, high, log=log, linear_below=soft)


@st.composite
def int_parameters(draw):
    low = draw(st.integers(-(10**6), 10**6))
    return IntParameter("k", low, low + draw(st.integers(1, 10**6)))


categories = st.integers(2, 20).map(
    lambda count: CategoricalParameter("c", tuple(f"choice_{index}" for index in range(count)))
)


# --- parameters


@given(float_parameters(), units)
def test_float_decodes_inside_its_range_and_back(parameter, u):
    value = parameter.from_unit(u)
    assert parameter.low <= value <= parameter.high
    assert parameter.from_unit(parameter.to_unit(value)) == pytest.approx(value, rel=1e-9, abs=1e-9)
    assert parameter.to_unit(value) == pytest.approx(u, abs=1e-9)


@given(int_parameters(), st.data())
def test_every_whole_number_survives_encoding(parameter, data):
    value = data.draw(st.integers(parameter.low, parameter.high))
    assert parameter.from_unit(parameter.to_unit(value)) == value
    assert 0 <= parameter.to_unit(value) <= 1


@given(categories, st.data())
def test_every_choice_survives_encoding(parameter, data):
    choice = data.draw(st.sampled_from(parameter.choices))
    assert parameter.from_unit(parameter.to_unit(choice)) == choice
    assert 0 < parameter.to_unit(choice) < 1


@given(st.one_of(float_parameters(), int_parameters(), categories), units)
def test_decoded_values_are_valid(parameter, u):
    value = parameter.from_unit(u)
    assert parameter.validate(value) == value


@given(float_parameters(), units, units)
def test_float_decoding_keeps_the_order(parameter, u, v):
    assert (parameter.from_unit(u) <= parameter.from_unit(v)) or u > v


@pytest.mark.parametrize("parameter", [FLOAT, LOG, INT])
def test_ends_of_a_range_are_zero_and_one(parameter):
    assert (parameter.to_unit(parameter.low), parameter.to_unit(parameter.high)) == (0, 1)
    assert (parameter.from_unit(0.0), parameter.from_unit(1.0)) == (parameter.low, parameter.high)


@pytest.mark.parametrize(("low", "high", "log"), [(0.06, 0.9, False), (0.001, 2.3, True)])
def test_rounding_does_not_leave_the_range(low, high, log):
    assert (low * (high / low) if log else low + (high - low)) > high
    assert FloatParameter("x", low, high, log=log).from_unit(1.0) == high


def test_price_is_spaced_evenly_near_zero_and_logarithmically_far_above():
    price = FloatParameter("price", 0.0, 10.0, linear_below=1e-3)
    assert [price.from_unit(u) for u in (0.0, 1.0)] == [0.0, 10.0]
    assert price.to_unit(2e-6) == pytest.approx(2 * price.to_unit(1e-6), rel=1e-3)
    steps = [price.to_unit(10 * x) - price.to_unit(x) for x in (0.1, 1.0)]
    assert steps[0] == pytest.approx(steps[1], rel=2e-2)
    assert price.to_unit(price.from_unit(0.3)) == pytest.approx(0.3, rel=1e-12)


def test_logarithmic_middle_is_the_geometric_mean():
    assert LOG.from_unit(0.5) == pytest.approx(1e-2, rel=1e-12)
    assert LOG.to_unit(1e-3) == pytest.approx(0.25, rel=1e-12)


def test_whole_number_decodes_to_the_nearest():
    parameter = IntParameter("k", 0, 10)
    assert [parameter.from_unit(u) for u in (0.04, 0.06, 0.94, 0.96)] == [0, 1, 9, 10]


def test_choices_have_bins_of_equal_width():
    assert [CATEGORY.from_unit(u) for u in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)] == list("aabbcc")
    assert [CATEGORY.to_unit(choice) for choice in "abc"] == [0.5 / 3, 1.5 / 3, 2.5 / 3]


def test_validate_gives_plain_python_numbers():
    assert type(FLOAT.validate(np.float32(0.25))) is float
    assert type(FLOAT.validate(0)) is float
    assert type(INT.validate(np.int64(8))) is int
    assert INT.validate(8.0) == 8


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        (FLOAT, 0.51, r"^phi must be in \[0, 0.5\], got 0.51$"),
        (FLOAT, -1e-9, r"^phi must be in \[0, 0.5\], got -1e-09$"),
        (FLOAT, "0.2", "^phi must be a number, got '0.2'$"),
        (FLOAT, True, "^phi must be a number, got True$"),
        (FLOAT, None, "^phi must be a number, got None$"),
        (FLOAT, math.nan, "^phi must be finite, got nan$"),
        (FLOAT, math.inf, "^phi must be finite, got inf$"),
        (INT, 4.5, "^width must be a whole number, got 4.5$"),
        (INT, 33, r"^width must be in \[4, 32\], got 33$"),
        (INT, 3, r"^width must be in \[4, 32\], got 3$"),
        (INT, "8", "^width must be a number, got '8'$"),
        (CATEGORY, "d", "^mode must be one of a, b, c, got 'd'$"),
        (CATEGORY, 0, "^mode must be one of a, b, c, got 0$"),
        (CATEGORY, ["a"], r"^mode must be one of a, b, c, got \['a'\]$"),
    ],
)
def test_wrong_value_is_refused_by_name(parameter, value, message):
    with pytest.raises(InputError, match=message):
        parameter.validate(value)
    with pytest.raises(InputError, match=message):
        parameter.to_unit(value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FloatParameter("x", 1, 1), r"x: expected finite low < high, got \[1, 1\]"),
        (lambda: FloatParameter("x", 0, math.inf), "x: expected finite low < high"),
        (lambda: FloatParameter("x", math.nan, 1), "x: expected finite low < high"),
        (lambda: FloatParameter("x", 0, 1, log=True), "x: a logarithmic range needs low > 0"),
        (lambda: FloatParameter("x", 0, 1, linear_below=0), "x: linear_below must be positive"),
        (lambda: FloatParameter("x", 1, 2, log=True, linear_below=1), "positive and without log"),
        (lambda: IntParameter("k", 3, 3), r"k: expected low < high, got \[3, 3\]"),
        (lambda: CategoricalParameter("c", ("a",)), "c: expected at least two different choices"),
        (lambda: CategoricalParameter("c", ("a", "a")), "c: expected at least two different"),
        (lambda: SearchSpace((FLOAT, FLOAT)), "parameter names must differ, got phi, phi"),
    ],
)
def test_impossible_definition_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# --- space


@given(st.lists(st.tuples(units, units, units, units), max_size=5))
def test_encode_inverts_decode_up_to_rounding(rows):
    configs = SPACE.decode(np.array(rows, dtype=np.float64).reshape(-1, 4))
    again = SPACE.decode(SPACE.encode(configs))
    assert len(again) == len(rows)
    for config, other in zip(configs, again, strict=True):
        assert list(config) == list(other) == list(SPACE.names)
        assert (config["width"], config["mode"]) == (other["width"], other["mode"])
        assert config["phi"] == pytest.approx(other["phi"], rel=1e-12, abs=1e-15)
        assert config["rate"] == pytest.approx(other["rate"], rel=1e-12)


@given(st.lists(st.tuples(units, units, units, units), min_size=1, max_size=5))
def test_encoded_settings_are_unit_values_one_column_per_parameter(rows):
    configs = SPACE.decode(np.array(rows))
    encoded = SPACE.encode(configs)
    expected = [[p.to_unit(config[p.name]) for p in SPACE] for config in configs]
    assert encoded.dtype == np.float64
    assert np.array_equal(encoded, expected)
    assert encoded.min() >= 0
    assert encoded.max() <= 1


@pytest.mark.parametrize(("num_configs", "space"), [(0, SPACE), (2, SearchSpace(()))])
def test_no_settings_or_no_parameters_make_a_round_trip(num_configs, space):
    configs = [{} for _ in range(num_configs)]
    encoded = space.encode(configs)
    assert encoded.shape == (num_configs, len(space))
    assert space.decode(encoded) == configs


def test_features_are_unit_numbers_and_one_column_per_choice():
    configs = [
        {"phi": 0.25, "rate": 1.0, "width": 4, "mode": "b"},
        {"phi": 0.5, "rate": 1e-4, "width": 32, "mode": "c"},
    ]
    expected = [[0.5, 1.0, 0.0, 0, 1, 0], [1.0, 0.0, 1.0, 0, 0, 1]]
    np.testing.assert_array_equal(SPACE.features(configs), expected)


def test_decode_leaves_its_array_alone():
    array = np.array([[0.5, 0.5, 0.5, 0.5]])
    SPACE.decode(array)
    assert np.array_equal(array, np.full((1, 4), 0.5))


def test_validate_sorts_into_column_order_and_keeps_the_input():
    config = {"mode": "b", "width": 8.0, "phi": 0, "rate": 1}
    clean = SPACE.validate(config)
    assert list(clean.items()) == [("phi", 0.0), ("rate", 1.0), ("width", 8), ("mode", "b")]
    assert config == {"mode": "b", "width": 8.0, "phi": 0, "rate": 1}


@pytest.mark.parametrize(
    ("space", "config", "message"),
    [
        (SearchSpace((FLOAT,)), {}, "^expected values for phi, got none$"),
        (SearchSpace((FLOAT,)), {"phi": 0, "psi": 1}, "^expected values for phi, got phi, psi$"),
        (SearchSpace(()), {"phi": 0}, "^expected values for nothing, got phi$"),
        (SearchSpace((FLOAT,)), {"phi": 2}, r"^phi must be in \[0, 0.5\], got 2$"),
    ],
)
def test_incomplete_or_foreign_configuration_is_refused(space, config, message):
    with pytest.raises(InputError, match=message):
        space.validate(config)


def test_roles_split_the_space_in_order():
    assert SPACE.conditioning == SearchSpace((FLOAT, LOG, CATEGORY))
    assert SPACE.training == SearchSpace((INT,))


def test_with_role_changes_the_named_parameters_alone():
    demoted = SPACE.with_role("training", ["phi"])
    assert demoted.training.names == ("phi", "width")
    assert demoted.names == SPACE.names
    assert SPACE.with_role("training").training.names == SPACE.names
    assert SPACE.conditioning.names == ("phi", "rate", "mode")


def test_narrowed_replaces_ranges_within_the_old_ones():
    narrow = SPACE.narrowed({"phi": (0.1, 0.2), "width": (8, 16)})
    assert narrow["phi"] == FloatParameter("phi", 0.1, 0.2)
    assert narrow["width"] == IntParameter("width", 8, 16, role="training")
    assert narrow.names == SPACE.names
    assert narrow["rate"] == LOG
    assert SPACE["phi"] == FLOAT


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"psi": (0, 1)}, "^unknown parameter 'psi'; known: phi, rate, width, mode$"),
        ({"mode": (0, 1)}, "^mode is a category: it has choices, not a range$"),
        ({"phi": (0, 0.6)}, r"^phi must be in \[0, 0.5\], got 0.6$"),
        ({"width": (4, 8.5)}, "^width must be a whole number, got 8.5$"),
    ],
)
def test_impossible_narrowing_is_refused(ranges, message):
    with pytest.raises(InputError, match=message):
        SPACE.narrowed(ranges)


def test_unknown_parameter_of_an_empty_space_is_refused():
    with pytest.raises(InputError, match="unknown parameter 'phi'; known: none"):
        SearchSpace(())["phi"]


def test_space_iterates_and_counts_its_parameters():
    assert list(SPACE) == [FLOAT, LOG, INT, CATEGORY]
    assert len(SPACE) == 4
    assert SPACE["mode"] is CATEGORY
    assert "phi" in repr(SPACE)
