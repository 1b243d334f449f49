"""Training images per second by number format and memory layout."""

from typing import Any

import torch
from training_step import TrainingStep, Workload, interleaved, quartiles

from trainables.base import Precision

BATCH_SIZE = 16
FORMATS: tuple[tuple[Precision, bool], ...] = (
    ("float32", False),
    ("float32", True),
    ("bf16", True),
)
BUDGET_S = {64: 15.0, 128: 60.0}


def measure() -> dict[str, list[dict[str, Any]]]:
    """Training images per second; the speed-up is over float32, contiguous, of the same method."""
    threads_before = torch.get_num_threads()
    rows = []
    for size, width in ((64, 16), (128, 32)):
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            rows += compare(size, width, num_threads)
    torch.set_num_threads(threads_before)
    return {"throughput": rows}


def compare(size: int, width: int, num_threads: int) -> list[dict[str, Any]]:
    cases = [(method, *each) for method in ("fixed", "sshn") for each in FORMATS]
    steps = {
        f"{method} {precision} {channels_last}": TrainingStep(
            method, Workload(size, width, BATCH_SIZE, precision, channels_last)
        )
        for method, precision, channels_last in cases
    }
    turns = interleaved(steps, budget_s=BUDGET_S[size], num_timed=1)
    rows = []
    for (method, precision, channels_last), own in zip(cases, turns.values(), strict=True):
        reference = turns[f"{method} float32 False"]
        pairs = zip(reference, own, strict=True)
        low, speedup, high = quartiles(a.step / b.step for a, b in pairs)
        rows.append(
            {
                "size": size,
                "width": width,
                "batch_size": BATCH_SIZE,
                "num_threads": num_threads,
                "method": method,
                "precision": precision,
                "layout": "channels-last" if channels_last else "contiguous",
                "rounds": len(own),
                "images_per_s": BATCH_SIZE * len(own) / sum(turn.step for turn in own),
                "speedup": speedup,
                "quartiles": [low, high],
                "step_ms": 1e3 * quartiles(turn.step for turn in own)[1],
                "page_faults": quartiles(turn.page_faults for turn in own)[1],
            }
        )
    return rows
