"""Points as figures and pages take them."""

from typing import Any

import pytest


def make_points(
    method: str, phis: list[float], dices: list[float], *, is_grid: bool = False
) -> list[dict[str, Any]]:
    return [
        {
            "conditioning": {"phi": phi},
            "metrics": {"dice": dice, "dice/nucleus": dice + 0.01},
            "standard_errors": {},
            "seed_sd": {"dice": 0.01},
            "num_seeds": 3,
            "costs": {"macs": 1e9 * (1 + phi), "flops": 2e9 * (1 + phi)},
            "test_metrics": {"dice": dice - 0.02},
            "method": method,
            "trial_ids": [f"{method}-{phi if is_grid else ''}-{seed}" for seed in range(3)],
        }
        for phi, dice in zip(phis, dices, strict=True)
    ]


@pytest.fixture
def points() -> list[dict[str, Any]]:
    return [
        *make_points("fixed", [0.0, 0.25, 0.5], [0.80, 0.88, 0.87], is_grid=True),
        *make_points("sshn", [0.5, 0.0, 0.1, 0.2, 0.3], [0.90, 0.81, 0.88, 0.87, 0.91]),
    ]


@pytest.fixture
def points_of_modes() -> list[dict[str, Any]]:
    """Two lines of one method and two networks, by a category."""
    linear = make_points("sshn", [0.0, 0.2, 0.4], [0.80, 0.85, 0.90])
    nearest = make_points("sshn", [0.0, 0.2, 0.4], [0.70, 0.86, 0.88])
    fixed = make_points("fixed", [0.1, 0.3], [0.8, 0.87], is_grid=True)
    for group, mode in ((linear, "linear"), (nearest, "nearest"), (fixed, "nearest")):
        for point in group:
            point["conditioning"] = {"interpolation": mode, **point["conditioning"]}
    return [*linear, *nearest, *fixed]
