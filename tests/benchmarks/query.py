"""A query on a million stored rows; front and hypervolume of 50,000 points over moocore's own."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from explorer.exploration import Exploration
from explorer.frontiers import Frontier, hypervolume
from explorer.measurements import FIXED_FIELDS
from explorer.points import FIXED_COLUMNS
from explorer.queries import Bound
from explorer.specs import load_spec
from explorer.store import measurements_store, write_json, write_text
from search_spaces.problem import Objective

NUM_ROWS = 1_000_000
# Seeds, decimals that dice is rounded to (None: all values differ), parts on the disk.
TABLES: tuple[tuple[int, int | None, int], ...] = (
    (1, None, 1),
    (3, None, 1),
    (1, 2, 1),
    (3, 2, 50),
)
NUM_QUERIES = 100  # of each kind
NUM_LOADS = 5
NUM_POINTS = 50_000
NUM_ROUNDS = 41
LOAD_TARGET_S, MEMORY_TARGET_GB, QUERY_TARGET_MS, RATIO_TARGET = 1.0, 1.0, 10.0, 1.2
DICE, MACS = Objective("dice", "maximize"), Objective("macs", "minimize", "MAC")


def measure() -> dict[str, list[dict[str, Any]]]:
    """Load at most 1 s and 1 GB, query p99 at most 10 ms, front and hypervolume at most 1.2."""
    loads, queries = [], []
    for num_seeds, decimals, num_parts in TABLES:
        with tempfile.TemporaryDirectory() as folder:
            store_table(Path(folder), num_seeds, decimals, num_parts)
            # A process of its own: the memory of one table is not that of the next.
            done = subprocess.run(
                [sys.executable, __file__, folder],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                cwd=Path(__file__).parents[2],
            )
        table = {
            "rows": NUM_ROWS,
            "seeds": num_seeds,
            "values": "distinct" if decimals is None else "tied",
            "parts": num_parts,
        }
        found = json.loads(done.stdout)
        loads.append(table | found["load"])
        queries += [table | row for row in found["queries"]]
    return {"load": loads, "query": queries, "front": front_rows()}


def store_table(folder: Path, num_seeds: int, decimals: int | None, num_parts: int) -> None:
    """An exploration of three conditionings with `NUM_ROWS` rows of 25 columns."""
    spec = load_spec("demo")
    write_text(folder / "spec.yaml", spec.to_yaml())
    objectives = [{"name": o.name, "direction": o.direction, "unit": o.unit} for o in (DICE, MACS)]
    write_json(folder / "state.json", {"status": "finished", "objectives": objectives})
    store = measurements_store(folder)
    table = random_table(num_seeds, decimals)
    step = -(-NUM_ROWS // num_parts)
    for start in range(0, NUM_ROWS, step):
        store.append(table.slice(start, step))


def random_table(num_seeds: int, decimals: int | None) -> pa.Table:
    rng = np.random.default_rng(0)
    num_settings = NUM_ROWS // num_seeds
    phis = rng.random((num_settings, 3))
    shares = 1 - phis
    macs = np.round(2e7 + 3e8 * (shares**2 @ [0.5, 0.3, 0.2]))
    quality = 0.95 - 0.4 * np.exp(-macs / 6e7) - 0.05 * (phis[:, 0] - phis[:, 2]) ** 2
    ids = np.array([f"{number:012x}" for number in rng.integers(2**48, size=num_settings)])
    n = num_settings * num_seeds
    seeds = np.repeat(np.arange(num_seeds), num_settings)

    def text(value: str) -> pa.Array:
        return pa.repeat(pa.scalar(value), n)

    def metric(offset: float) -> np.ndarray:
        values = np.tile(quality + offset, num_seeds) + 0.01 * rng.standard_normal(n)
        return values if decimals is None else np.round(values, decimals)

    columns: dict[str, Any] = {
        "exploration_id": text("bench-1"),
        "trial_id": pa.array([f"sshn-s{seed}" for seed in seeds.tolist()]),
        "method": text("sshn"),
        "seed": seeds,
        "split": text("val"),
        "data_digest": text(64 * "0"),
        "code_version": text("1.0+0000000"),
        "setting_id": pa.array(np.tile(ids, num_seeds).tolist()),
        "num_samples": np.full(n, 51),
        "evaluation_s": rng.random(n),
        "time": 1.7e9 + 0.02 * np.arange(n),
    }
    for index in range(3):
        columns[f"conditioning/phi_{index}"] = np.tile(phis[:, index], num_seeds)
    for index, name in enumerate(("dice", "dice/cytoplasm", "dice/nucleus", "surface_dice")):
        columns[f"metric/{name}"] = metric(0.01 * index)
        if index < 3:
            columns[f"se/{name}"] = 0.01 * rng.random(n)
    for name, factor in (("macs", 1.0), ("parameters", 1e-3), ("activation_bytes", 3e-2)):
        columns[f"cost/{name}"] = np.round(factor * np.tile(macs, num_seeds))
    columns["cost/train_s"] = np.full(n, 60.0)
    table = pa.table(columns)
    assert table.num_columns == 25
    return table


def measure_table(folder: Path) -> dict[str, Any]:
    """Load and query the exploration in a folder; in a process that did nothing else before."""
    reset_peak()
    before = memory_gb("VmRSS")
    times, cpu_times = [], []
    for _ in range(NUM_LOADS):
        exploration = Exploration(folder)
        cpu_start, start = time.process_time(), time.perf_counter()
        table = exploration.points()
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
        if len(times) == 1:
            memory = memory_gb("VmHWM") - before
    load = {
        "points": len(table),
        "load_s": min(times),
        "load_cpu_s": min(cpu_times),
        "floor_read_s": min(read_s(folder) for _ in range(NUM_LOADS)),
        "memory_GB": memory,
        "target_s": LOAD_TARGET_S,
        "is_met": min(times) <= LOAD_TARGET_S and memory <= MEMORY_TARGET_GB,
    }
    return {"load": load, "queries": query_rows(exploration)}


def read_s(folder: Path) -> float:
    """Reading the columns that a query needs, with nothing done to them."""
    files = sorted((folder / "measurements").glob("*.parquet"))
    names = pq.read_schema(files[0]).names
    needed = [name for name in names if name in FIXED_COLUMNS or name not in FIXED_FIELDS.names]
    start = time.perf_counter()
    for file in files:
        pq.read_table(file, columns=needed)
    return time.perf_counter() - start


def query_rows(exploration: Exploration) -> list[dict[str, Any]]:
    """Times of every kind of query, kinds in turn, and of all together."""
    rng = np.random.default_rng(1)
    kinds: dict[str, Callable[[], tuple[list[Bound], Objective]]] = {
        "no bound": lambda: ([], DICE),
        "budget": lambda: ([Bound("macs", "max", rng.uniform(5e7, 3e8))], DICE),
        "cheapest": lambda: ([Bound("dice", "min", rng.uniform(0.7, 0.95))], MACS),
        "label, in flops": lambda: (
            [Bound("dice/nucleus", "min", rng.uniform(0.7, 0.9))],
            Objective("flops", "minimize"),
        ),
        "three bounds": lambda: (
            [
                Bound("macs", "max", rng.uniform(1e8, 3e8)),
                Bound("dice/nucleus", "min", rng.uniform(0.8, 0.9)),
                Bound("dice/cytoplasm", "min", rng.uniform(0.8, 0.9)),
            ],
            Objective("surface_dice", "maximize"),
        ),
        "infeasible": lambda: ([Bound("dice", "min", rng.uniform(1.1, 2.0))], MACS),
        "infeasible pair": lambda: (
            [
                Bound("macs", "max", rng.uniform(3e7, 6e7)),
                Bound("dice", "min", rng.uniform(0.9, 0.95)),
            ],
            DICE,
        ),
        "infeasible three": lambda: (
            [
                Bound("activation_bytes", "max", rng.uniform(1e6, 1.5e6)),
                Bound("dice", "min", rng.uniform(0.85, 0.95)),
                Bound("dice/nucleus", "min", rng.uniform(0.85, 0.9)),
            ],
            MACS,
        ),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    num_feasible = dict.fromkeys(kinds, 0)
    for _ in range(NUM_QUERIES):
        for name, kind in kinds.items():
            bounds, objective = kind()
            start, cpu_start = time.perf_counter(), time.thread_time()
            answer = exploration.query(bounds, objective=objective)
            end, cpu_end = time.perf_counter(), time.thread_time()
            times[name].append((1e3 * (end - start), 1e3 * (cpu_end - cpu_start)))
            num_feasible[name] += answer.feasible
    column = exploration.points().values("dice")
    pass_ms = 1e3 * min(seconds_of(lambda: column <= 0.5) for _ in range(NUM_QUERIES))
    rows = []
    for name, own in [*times.items(), ("all", list(chain(*times.values())))]:
        wall, cpu = np.array(own).T
        median, rare = np.quantile(wall, [0.5, 0.99]).tolist()
        rows.append(
            {
                "kind": name,
                "queries": len(own),
                "feasible": num_feasible.get(name, sum(num_feasible.values())),
                "median_ms": median,
                "p99_ms": rare,
                "max_ms": float(wall.max()),
                "p99_cpu_ms": float(np.quantile(cpu, 0.99)),  # without other processes' turns
                "max_cpu_ms": float(cpu.max()),
                "floor_one_pass_ms": pass_ms,
                "target_ms": QUERY_TARGET_MS,
                "is_met": rare <= QUERY_TARGET_MS,
            }
        )
    return rows


def front_by_moocore(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    front: NDArray[np.float64] = losses[moocore.is_nondominated(losses, keep_weakly=True)]
    return front


def front_rows() -> list[dict[str, Any]]:
    """Ours over moocore's in alternating turns, on the same arrays; all our checks included."""
    rng = np.random.default_rng(2)
    steps = np.arange(float(NUM_POINTS))
    staircase = np.stack([steps, steps[::-1]], axis=1)
    clouds = {
        "random": rng.random((NUM_POINTS, 2)) * NUM_POINTS,
        "random, 3 objectives": rng.random((NUM_POINTS, 3)) * NUM_POINTS,
        "staircase": staircase,
        "staircase, shuffled": rng.permutation(staircase),
    }
    ids = np.arange(NUM_POINTS)
    rows = []
    for name, losses in clouds.items():
        ref = np.full(losses.shape[1], float(NUM_POINTS))
        num_front = len(Frontier.of(losses, ids))
        assert hypervolume(losses, ref) == moocore.hypervolume(losses, ref=ref)
        pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "front": (partial(Frontier.of, losses, ids), partial(front_by_moocore, losses)),
            "hypervolume of all points": (
                partial(hypervolume, losses, ref),
                partial(moocore.hypervolume, losses, ref=ref),
            ),
        }
        rows += [front_row(name, what, num_front, *pair) for what, pair in pairs.items()]
    return rows


def front_row(
    name: str, what: str, num_front: int, ours: Callable[[], Any], theirs: Callable[[], Any]
) -> dict[str, Any]:
    own, floor = np.array(
        [
            # Of this thread, in which all of it runs: without other processes' turns.
            [seconds_of(work, time.thread_time) for work in (ours, theirs)]
            for _ in range(NUM_ROUNDS)
        ]
    ).T
    low, ratio, high = np.quantile(own / floor, [0.25, 0.5, 0.75]).tolist()
    return {
        "points": name,
        "on the front": num_front,
        "what": what,
        "ratio": ratio,
        "quartiles": [low, high],
        "ours_cpu_ms": 1e3 * float(np.median(own)),
        "floor_moocore_cpu_ms": 1e3 * float(np.median(floor)),
        "target": RATIO_TARGET,
        "is_met": ratio <= RATIO_TARGET,
    }


def seconds_of(
    function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    start = clock()
    function()
    return clock() - start


def memory_gb(field: str) -> float:
    """A field of this process' memory, Linux only: VmRSS now, VmHWM at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e6


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    print(json.dumps(measure_table(Path(sys.argv[1]))))
