"""Training steps of the amortised methods over the plain U-Net's, and what bounds the difference.

All make the same primary step at the same factor, so the plain step is a lower limit and
`stochastic`, whose step is the plain one, shows how far the ratios can be trusted.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from training_step import TrainingStep, Turn, Workload, interleaved, quartiles

from trainables.base import Precision

HIDDEN = (16, 32, 100)  # features of the last hidden layer; the one before has 10
BATCH_SIZES = (4, 8, 16)
FORMATS: tuple[tuple[Precision, bool], ...] = (("bf16", True), ("float32", False))
BYTES = 4
# Passes over one array as large as the hypernetwork's last layer, reads and writes:
FORWARD_PASSES = 1  # its product with the features reads the weights
BACKWARD_PASSES = 2  # the outer product writes their gradient, the features' gradient reads them
OPTIMISER_PASSES = 7  # reads weights, gradients and two moments, writes all but the gradients
BUDGET_S: dict[tuple[int, Precision], float] = {
    (64, "bf16"): 8.0,
    (64, "float32"): 8.0,
    (128, "bf16"): 20.0,
    (128, "float32"): 35.0,
}


def measure() -> dict[str, list[dict[str, Any]]]:
    """Training steps over the plain U-Net's at equal work; target at 128 px: 1.10."""
    threads_before = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []
    for size, width in ((64, 16), (128, 32)):
        torch.set_num_threads(1)
        for precision, channels_last in FORMATS:
            for batch_size in BATCH_SIZES:
                workload = Workload(size, width, batch_size, precision, channels_last)
                rows += compare(workload, 1)
        bounds += [bound(row) for row in rows if has_bound(row, size)]
        torch.set_num_threads(2)
        rows += compare(Workload(size, width, BATCH_SIZES[-1], *FORMATS[0]), 2)
    torch.set_num_threads(threads_before)
    return {"step": rows, "bounds": bounds}


def has_bound(row: Mapping[str, Any], size: int) -> bool:
    """Whether the row is of a hypernetwork in the ordinary setting."""
    ordinary = row["precision"] == FORMATS[0][0] and row["batch_size"] == BATCH_SIZES[-1]
    return bool(row["size"] == size and ordinary and row["hidden"])


def compare(workload: Workload, num_threads: int) -> list[dict[str, Any]]:
    """One row per method: its step over the plain one, paired at each factor."""
    steps = {"fixed": TrainingStep("fixed", workload)}
    if workload.precision == "bf16":
        steps["stochastic"] = TrainingStep("stochastic", workload)
        steps["film"] = TrainingStep("film", workload)
    for hidden in HIDDEN:
        steps[f"sshn {hidden}"] = TrainingStep("sshn", workload, hidden_sizes=(10, hidden))
    turns = interleaved(
        steps,
        budget_s=BUDGET_S[workload.size, workload.precision],
        num_timed=2 if workload.size == 64 else 1,
    )
    plain = turns.pop("fixed")
    rows = []
    for name, own in turns.items():
        method, _, features = name.partition(" ")
        rows.append(
            {
                "size": workload.size,
                "width": workload.width,
                "precision": workload.precision,
                "channels_last": workload.channels_last,
                "batch_size": workload.batch_size,
                "num_threads": num_threads,
                "method": method,
                "hidden": int(features or 0),
                "weights": sum(p.numel() for p in steps[name].module.parameters()),
                "rounds": len(own),
                **paired(plain, own),
            }
        )
    return rows


def paired(plain: list[Turn], own: list[Turn]) -> dict[str, Any]:
    """Medians over the rounds; of ratios the quartiles too, and the ratio of the sums."""
    pairs = list(zip(plain, own, strict=True))
    low, ratio, high = quartiles(b.step / a.step for a, b in pairs)

    def extra(part: str) -> float:
        return 1e3 * quartiles(getattr(b, part) - getattr(a, part) for a, b in pairs)[1]

    return {
        "ratio": ratio,
        "quartiles": [low, high],
        "ratio_of_sums": sum(turn.step for turn in own) / sum(turn.step for turn in plain),
        "plain_ms": 1e3 * quartiles(turn.step for turn in plain)[1],
        "extra_ms": extra("step"),
        "extra_forward_ms": extra("forward"),
        "extra_backward_ms": extra("backward"),
        "extra_optimiser_ms": extra("optimiser"),
        "plain_page_faults": quartiles(turn.page_faults for turn in plain)[1],
        "extra_page_faults": extra("page_faults") / 1e3,
    }


def bound(row: Mapping[str, Any]) -> dict[str, Any]:
    """Least time that the memory traffic of a hypernetwork's last layer takes, against the extra.

    Two bandwidths: of arrays far larger than the caches, and of arrays as large as the layer; the
    second holds where layer, gradient and moments fit into the last cache.
    """
    array_bytes = BYTES * row["weights"] * row["hidden"] // (row["hidden"] + 1)
    streams, in_cache = bandwidth(256 << 20), bandwidth(array_bytes)
    passes = FORWARD_PASSES + BACKWARD_PASSES + OPTIMISER_PASSES
    return {
        "size": row["size"],
        "hidden": row["hidden"],
        "layer_MB": array_bytes / 1e6,
        "forward_MB": FORWARD_PASSES * array_bytes / 1e6,
        "backward_MB": BACKWARD_PASSES * array_bytes / 1e6,
        "optimiser_MB": OPTIMISER_PASSES * array_bytes / 1e6,
        "memory_GB_per_s": streams / 1e9,
        "layer_GB_per_s": in_cache / 1e9,
        "floor_ms": 1e3 * passes * array_bytes / streams,
        "floor_at_layer_size_ms": 1e3 * passes * array_bytes / in_cache,
        "floor_optimiser_ms": 1e3 * OPTIMISER_PASSES * array_bytes / streams,
        "extra_optimiser_ms": row["extra_optimiser_ms"],
        "extra_ms": row["extra_ms"],
        "extra_page_faults": row["extra_page_faults"],
    }


def bandwidth(array_bytes: int) -> float:
    """Bytes per second of a += 0.5 b over arrays of that size, at best: two reads, one write.

    In place, as an optimiser writes: the lines that are written have been read before.
    """
    a, b = (torch.rand(array_bytes // BYTES) for _ in range(2))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        a.add_(b, alpha=0.5)
        seconds.append(time.perf_counter() - start)
    return 3 * array_bytes / min(seconds)
