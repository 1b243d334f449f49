"""What asking for the cost of a setting costs."""

import time
from typing import Any

import numpy as np

from explorer.models import build_trainable
from explorer.specs import load_spec

PRESETS = ("sshn-oasis", "sshn-pets")
NUM_CALLS = 2000
TARGET_MS = 1.0


def measure() -> dict[str, list[dict[str, Any]]]:
    """`Trainable.costs` per call in Python, at random factors; target: 1 ms."""
    return {"cost": [row(preset) for preset in PRESETS]}


def row(preset: str) -> dict[str, Any]:
    trainable = build_trainable(load_spec(preset))
    first_ms = call_ms(lambda: trainable.costs({"phi": 0.5}))
    factors = np.random.default_rng(0).random(NUM_CALLS).tolist()
    times = [call_ms(lambda phi=phi: trainable.costs({"phi": phi})) for phi in factors]
    low, median, high, rare = np.quantile(times, [0.25, 0.5, 0.75, 0.99]).tolist()
    return {
        "preset": preset,
        "calls": NUM_CALLS,
        "num_threads": 1,
        "first_ms": first_ms,
        "median_ms": median,
        "quartiles": [low, high],
        "quantile_99_ms": rare,
        "target_ms": TARGET_MS,
        "is_met": median < TARGET_MS,
    }


def call_ms(function: Any) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)
