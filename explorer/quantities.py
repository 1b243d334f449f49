"""Numbers as people write them: 0.6G, 250k."""

from __future__ import annotations

import math
import re

from search_spaces.errors import InputError

_SI_EXPONENTS = {"P": 15, "T": 12, "G": 9, "M": 6, "k": 3}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d+))?\s*([kKMGTP]?)")


def parse_quantity(text: str) -> float:
    """Read a number with an optional SI suffix (k, M, G, T, P): `0.6G`, `250k`, `1e9`, `0.9`.

    Raises:
        InputError: not such a number, or too large for a float.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match:
        mantissa, exponent, suffix = match.groups()
        scale = _SI_EXPONENTS.get(suffix.replace("K", "k"), 0)
        # Scaling in decimal keeps 0.07G exactly 70000000.
        number = float(f"{mantissa}e{int(exponent or 0) + scale}")
        if math.isfinite(number):
            return number
    raise InputError(f"expected a number such as 0.9, 1e9, 250k or 0.6G, got {text!r}")


def format_quantity(value: float, *, digits: int = 3) -> str:
    """Write a number with `digits` significant digits (at least 3), from 1000 on with a suffix."""
    rounded = float(f"{value:.{digits - 1}e}")
    for suffix, exponent in _SI_EXPONENTS.items():
        if abs(rounded) >= 10**exponent:
            return f"{rounded / 10**exponent:.{digits}g}{suffix}"
    return f"{rounded:.{digits}g}"
