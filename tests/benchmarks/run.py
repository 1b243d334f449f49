"""Runs the benchmarks: `python tests/benchmarks/run.py [NAME...] [--output DIR]`.

Every benchmark returns tables: name to rows, each row a flat mapping from column to value. They
are printed, without details, and written to DIR/NAME.json together with what the machine was
doing. Times of a busy machine mean little, with two threads nothing: look at `load_average`.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import adapting
import cost
import evaluation
import loading
import numpy as np
import optimum
import overhead
import page
import query
import racing
import registration
import sampling
import serving
import step
import throughput
import torch
import tracking

Row = Mapping[str, Any]
BENCHMARKS: dict[str, Callable[[], Mapping[str, Sequence[Row]]]] = {
    "step": step.measure,
    "throughput": throughput.measure,
    "cost": cost.measure,
    "racing": racing.measure,
    "evaluation": evaluation.measure,
    "page": page.measure,
    "query": query.measure,
    "registration": registration.measure,
    "optimum": optimum.measure,
    "overhead": overhead.measure,
    "tracking": tracking.measure,
    "sampling": sampling.measure,
    "serving": serving.measure,
    "adapting": adapting.measure,
    "loading": loading.measure,
}
DETAILS = {"channels_last", "weights", "rounds", "ratio_of_sums", "first_ms", "calls"}  # JSON only
BUSY = 0.3  # load average per core from which the numbers are called provisional


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"unknown benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or BENCHMARKS:
        started = environment()
        print(f"{name}: {BENCHMARKS[name].__doc__}")
        for caveat in started["caveats"]:
            print(f"  caveat: {caveat}")
        begin = time.perf_counter()
        tables = BENCHMARKS[name]()
        document = {
            "benchmark": name,
            "environment": started,
            "elapsed_s": round(time.perf_counter() - begin, 1),
            "tables": tables,
        }
        path = options.output / f"{name}.json"
        path.write_text(json.dumps(document, indent=1) + "\n")
        for title, rows in tables.items():
            show(title, rows)
        print(f"  {path} ({document['elapsed_s']} s)\n", flush=True)


def environment() -> dict[str, Any]:
    """The machine and its load just before a benchmark."""
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()
    caveats = ["number of torch threads: the column num_threads of each row"]
    if load[0] > BUSY * (num_cpus or 1):
        caveats.append(
            f"the machine was busy (load average {load[0]:.2f} on {num_cpus} cores): "
            f"these numbers are provisional"
        )
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "num_cpus": num_cpus,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load_average": [round(value, 2) for value in load],
        "caveats": caveats,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "malloc_settings": {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC", "LD_PRELOAD"))
        },
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(title: str, rows: Sequence[Row]) -> None:
    columns = [name for name in dict.fromkeys(chain(*rows)) if name not in DETAILS]
    cells = [columns, *([readable(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"  {title}")
    for line in cells:
        print("   ", "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def readable(value: Any) -> str:
    if isinstance(value, list):
        return "..".join(readable(each) for each in value)
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
