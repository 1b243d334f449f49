"""How long a new weight of smoothness takes until the image is warped."""

import time
from typing import Any

import numpy as np
import torch

from explorer.models import build_trainable
from explorer.specs import load_spec
from trainables.deformations import warp

SIZES = ((80, 96), (160, 192))
NUM_CALLS = 50
TARGET_MS = 100.0


def measure() -> dict[str, list[dict[str, Any]]]:
    """From lambda to a warped slice: weights predicted, field integrated; target: 100 ms."""
    return {"registration": [row(size) for size in SIZES]}


def row(size: tuple[int, int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    spec = load_spec("hypermorph-oasis2d", [f"dataset.size={list(size)}"])
    trainable = build_trainable(spec)
    module = trainable.build(0)
    images = torch.rand(1, 2, *size) * 2 - 1

    def answer(value: float) -> tuple[float, float]:
        start = time.perf_counter()
        with torch.inference_mode():
            network = trainable.materialize(module, {"lambda": value})
            between = time.perf_counter()
            warp(images[:, :1], network(images))
        return between - start, time.perf_counter() - start

    answer(0.5)
    times = np.array([answer(value) for value in np.random.default_rng(0).random(NUM_CALLS)])
    weights, whole = 1e3 * np.median(times, axis=0)
    worst = 1e3 * times[:, 1].max()
    return {
        "size": "x".join(map(str, size)),
        "num_threads": 1,
        "weights_ms": round(float(weights), 2),
        "warped_ms": round(float(whole), 2),
        "slowest_ms": round(float(worst), 2),
        "target_ms": TARGET_MS,
        "is_met": bool(worst < TARGET_MS),
    }
