"""What exploring costs beside the evaluations: a slope over the number of settings."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from explorer.exploring import Chunk, Evaluation, Plan, Unit, chunk_size, explore
from explorer.measurements import Measurement, measurements_table, setting_id
from explorer.progress import ProgressReport
from explorer.samplers import SAMPLERS
from explorer.sampling import SamplingTask
from explorer.specs import load_spec
from explorer.store import TableStore
from explorer.training import ray_session
from search_spaces.problem import Objective
from search_spaces.rescaling import rescaling_space

NUM_WORKERS = 2
EVALUATION_S = 0.02
NUM_SETTINGS = (500, 4500)  # nearer ones tell less than this machine changes by itself
NUM_REUSED = (100, 300)
NUM_DEFAULT = (4, 12)
SPEC = load_spec("demo", [f"explore.num_workers={NUM_WORKERS}", "explore.num_points=4500"])


def measure() -> dict[str, Sequence[Mapping[str, Any]]]:
    """Overhead = (wall x 2 workers - evaluation seconds) / evaluation seconds, 20 ms a setting."""
    with ray_session():
        warm_up()
        rows = [
            row("two processes, no Ray: what the machine gives", bare, NUM_SETTINGS, repeats=3),
            row(
                "explorer: chunks through Ray Tune",
                through_explorer,
                NUM_SETTINGS,
                repeats=3,
                target=0.05,
            ),
            row(
                "Ray Tune, a trial per setting, actors reused",
                one_per_trial(True),
                NUM_REUSED,
                repeats=3,
            ),
            row("Ray Tune, a trial per setting, defaults", one_per_trial(False), NUM_DEFAULT),
            row("bare actors, one call per setting", through_actors, (500, 1500)),
        ]
    return {"overhead": rows, "sampler": [sampler_row(name) for name in ("grid", "sobol", "nsga2")]}


def spin() -> float:
    """Keep a processor busy for 20 ms; returns the processor seconds that it took."""
    start = time.process_time()
    while time.process_time() - start < EVALUATION_S:
        pass
    return time.process_time() - start


class SpinningModels:
    """In the place of frozen models: every evaluation takes its time and knows its answer."""

    spec = SPEC

    def evaluate(self, chunk: Chunk) -> Iterator[Evaluation]:
        for setting in chunk.settings:
            spent, phi = spin(), float(setting["phi"])
            yield Evaluation(
                trial_id=chunk.trial_ids[0],
                split=chunk.split,
                setting=setting,
                values={"dice": np.full(50, phi)},
                sample_indices=np.arange(50),
                is_complete=True,
                costs={"macs": phi},
                evaluation_s=spent,
                time=time.time(),
            )


def through_explorer(num_settings: int) -> float:
    """Explore a grid as a run does, every chunk recorded; returns the evaluation seconds."""
    sampler = SAMPLERS["grid"](SamplingTask(rescaling_space(), (), num_settings))
    units = [Unit("sshn", "val", ("sshn-s0",), sampler)]
    plan = Plan(
        units,
        batch_size=chunk_size([sampler], NUM_WORKERS),
        window=NUM_WORKERS,
        recorded={},
        recorded_values={},
    )
    spent = 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = TableStore(str(Path(folder) / "measurements"))

        def record(chunk: Chunk, evaluations: Sequence[Evaluation]) -> list[Measurement]:
            nonlocal spent
            spent += sum(one.evaluation_s for one in evaluations)
            rows = [measurement(one) for one in evaluations]
            store.append(measurements_table(rows), part=chunk.name)
            return rows

        models: Any = SpinningModels()
        explore(plan, models, record, ProgressReport(quiet=True), num_workers=NUM_WORKERS)
    return spent


def measurement(one: Evaluation) -> Measurement:
    return Measurement(
        exploration_id="overhead",
        trial_id=one.trial_id,
        method="sshn",
        seed=0,
        split=one.split,
        data_digest="",
        code_version="",
        setting_id=setting_id(one.setting),
        num_samples=50,
        evaluation_s=one.evaluation_s,
        time=one.time,
        conditioning=one.setting,
        metrics={"dice": float(one.values["dice"].mean())},
        costs=one.costs,
    )


def one_per_trial(reuse_actors: bool) -> Callable[[int], float]:
    def work(config: dict[str, Any]) -> None:
        tune.report({"evaluation_s": spin()})

    def run(num_settings: int) -> float:
        with tempfile.TemporaryDirectory() as storage:
            results = tune.Tuner(
                tune.with_resources(work, {"cpu": 1}),
                param_space={"phi": tune.grid_search(np.linspace(0, 1, num_settings).tolist())},
                tune_config=tune.TuneConfig(reuse_actors=reuse_actors),
                run_config=tune.RunConfig(storage_path=storage, verbose=0),
            ).fit()
            ended = [results[k].metrics or {} for k in range(len(results))]
            return float(sum(metrics["evaluation_s"] for metrics in ended))

    return run


def through_actors(num_settings: int) -> float:
    class Worker:
        def evaluate(self, phi: float) -> float:
            return spin()

    actor: Any = ray.remote(num_cpus=1)(Worker)
    pool = ray.util.ActorPool([actor.remote() for _ in range(NUM_WORKERS)])
    phis = np.linspace(0, 1, num_settings).tolist()
    return float(sum(pool.map_unordered(lambda worker, phi: worker.evaluate.remote(phi), phis)))


def bare(num_settings: int) -> float:
    with ProcessPoolExecutor(NUM_WORKERS, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(spin_often, [num_settings // NUM_WORKERS] * NUM_WORKERS))


def spin_often(count: int) -> float:
    return sum(spin() for _ in range(count))


def warm_up() -> None:
    through_explorer(4)


def row(
    name: str,
    run: Callable[[int], float],
    counts: tuple[int, int],
    *,
    repeats: int = 1,
    target: float | None = None,
) -> dict[str, Any]:
    """The slope between two numbers of settings: the median of so many, and their range."""
    slopes, starts = [], []
    for _ in range(repeats):
        walls, spents = [], []
        for count in counts:
            start = time.perf_counter()
            spents.append(run(count))
            walls.append(time.perf_counter() - start)
        wall, spent = np.diff(walls)[0], np.diff(spents)[0]
        slopes.append((wall * NUM_WORKERS - spent) / spent)
        starts.append(walls[0] - counts[0] * wall / (counts[1] - counts[0]))
    overhead = float(np.median(slopes))
    result = {
        "way": name,
        "settings": "-".join(map(str, counts)),
        "overhead": round(overhead, 4),
        "range": f"{min(slopes):.4f}..{max(slopes):.4f}",
        "start_up_s": round(float(np.median(starts)), 2),
    }
    return result | ({"target": target, "is_met": bool(overhead <= target)} if target else {})


def sampler_row(name: str) -> dict[str, Any]:
    """Seconds in `ask` and `tell` alone."""
    objectives = (Objective("dice", "maximize"), Objective("macs", "minimize"))
    sampler = SAMPLERS[name](SamplingTask(rescaling_space(), objectives, NUM_SETTINGS[1]))
    start, count = time.perf_counter(), 0
    while batch := sampler.ask(50):
        phis = [float(one["phi"]) for one in batch]
        sampler.tell(batch, [{"dice": phi, "macs": phi**2} for phi in phis])
        count += len(batch)
    spent = time.perf_counter() - start
    return {"sampler": name, "settings": count, "ms_per_setting": round(1000 * spent / count, 3)}
