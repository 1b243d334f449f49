"""Quantities: exact values, round trips, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.quantities import format_quantity, parse_quantity
from search_spaces.errors import InputError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.6G", 6e8), ("250k", 250_000), ("250K", 250_000), ("1.5M", 1.5e6), ("2T", 2e12),
        ("1P", 1e15), ("1e9", 1e9), ("0.9", 0.9), (".5", 0.5), ("3.", 3), ("-2", -2),
        (" 0.07 G ", 70_000_000), ("1e-3M", 1000),
    ],
)  # fmt: skip
def test_parse_quantity_is_exact(text: str, number: float) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "G", "0.6X", "0.6GG", "1m", "nan", "1e999", "1,5"])
def test_parse_quantity_refuses_anything_else(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a number such as 0\.9, 1e9, 250k or 0\.6G"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.88, "0.88"), (999.4, "999"), (999.9, "1k"), (1000.0, "1k"),
        (1.234e6, "1.23M"), (7e8, "700M"), (-2e9, "-2G"), (3e18, "3e+03P"), (1e-5, "1e-05"),
    ],
)  # fmt: skip
def test_format_quantity(value: float, text: str) -> None:
    assert format_quantity(value) == text


@given(st.floats(-1e20, 1e20).filter(lambda x: x == 0 or abs(x) > 1e-300))
def test_parse_inverts_format_to_its_digits(value: float) -> None:
    assert parse_quantity(format_quantity(value, digits=6)) == pytest.approx(value, rel=1e-5)
