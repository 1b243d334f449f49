"""Asking a frozen model for one setting: precision, memory format, batch size."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trainables.base import Arrays
from trainables.methods import TRAINABLES
from trainables.scale_space import SegmentationModel
from trainables.train_loop import evaluate_network, evaluation_batch_size

WORKLOADS = {"64 px, width 16": (64, 16), "128 px, width 32": (128, 32)}
BATCH_SIZES = (8, 16, 32, 64, 128)
NUM_IMAGES = 128
NUM_ROUNDS = 5
PHI = 0.25


def measure() -> dict[str, Sequence[Mapping[str, Any]]]:
    """Images per second of one materialised setting (phi 0.25), best of 5 rounds in turn."""
    return {name: rows(*workload) for name, workload in WORKLOADS.items()}


def rows(size: int, width: int) -> list[dict[str, Any]]:
    model = SegmentationModel(3, ("a", "b"), (size, size), (width,) * 5, (width,) * 4)
    trainable = TRAINABLES["sshn"].construct(model, None)
    with torch.inference_mode():
        network = trainable.materialize(trainable.build(0), {"phi": PHI})
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (NUM_IMAGES, 3, size, size)).astype(np.float32)
    masks = generator.integers(0, 3, (NUM_IMAGES, size, size)).astype(np.uint8)
    data, device = Arrays(images, masks), torch.device("cpu")
    variants: list[dict[str, Any]] = [
        {"precision": precision, "channels_last": channels_last, "batch_size": batch_size}
        for precision in ("float32", "bf16")
        for channels_last in (False, True)
        for batch_size in BATCH_SIZES
    ]
    best = [np.inf] * len(variants)
    torch.set_num_threads(1)
    for _ in range(NUM_ROUNDS):
        for k, variant in enumerate(variants):
            start = time.perf_counter()
            evaluate_network(trainable, network, data, device, **variant)
            best[k] = min(best[k], time.perf_counter() - start)
    plain = max(
        NUM_IMAGES / s
        for v, s in zip(variants, best, strict=True)
        if not v["channels_last"] and v["precision"] == "float32"
    )
    return [
        {
            **variant,
            "is_default": variant["batch_size"] == evaluation_batch_size((size, size)),
            "images_per_s": round(NUM_IMAGES / seconds),
            "of_best_plain": round(NUM_IMAGES / seconds / plain, 2),
        }
        for variant, seconds in zip(variants, best, strict=True)
    ]
