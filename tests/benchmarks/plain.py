"""The trainings of an exploration on a machine that has torch and this repository, but no Ray.

    python tests/benchmarks/plain.py write SPEC JOBS.json [--set PATH=VALUE ...]
    python tests/benchmarks/plain.py run JOBS.json ... OUT --root DIR [--processes N] [--seeds N ..]
        [--rates METHOD=RATE ...]
    python tests/benchmarks/plain.py keep JOBS.json OUT RUN

`write` lists the trainings of a specification of segmentation with all that decides them, `run`
makes them there in the plain training context, several side by side, and `keep` puts them into the
folder RUN of an exploration that was started and interrupted: `explorer resume` goes on with it.
A training that is there already is not made again. Where a specification has several learning
rates, make those of its first seed, then the other seeds' at the rates whose mean is best. Both
narrow what is asked for, and a method that `--rates` does not name keeps all of its rates.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from trainables.base import Arrays, TrainConfig
from trainables.datasets.base import split_indices
from trainables.datasets.sources import DATASETS
from trainables.methods import TRAINABLES
from trainables.networks.architectures import NETWORKS
from trainables.train_loop import PlainContext, TrainResult, train

_DATA: dict[str, Mapping[str, Arrays]] = {}  # of each file of jobs; filled before the forks


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("write")
    command.add_argument("spec")
    command.add_argument("jobs", type=Path)
    command.add_argument("--set", action="append", default=[])
    command = commands.add_parser("run")
    command.add_argument("jobs", type=Path, nargs="+")
    command.add_argument("out", type=Path)
    command.add_argument("--root")
    # asked before the forks, CUDA would not start in them
    command.add_argument("--device", default="cuda")
    command.add_argument("--processes", type=int, default=1)
    command.add_argument("--seeds", type=int, nargs="+", help="of them alone")
    command.add_argument("--rates", nargs="+", default=[], help="METHOD=RATE: of it alone")
    command.add_argument("--seconds", type=float, default=1e9, help="after which it gives up")
    command = commands.add_parser("keep")
    command.add_argument("jobs", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("run", type=Path)
    options = vars(parser.parse_args(arguments))
    work: dict[str, Callable[..., None]] = {"write": write, "run": run, "keep": keep}
    work[options.pop("command")](**options)


def write(spec: str, jobs: Path, set: Sequence[str]) -> None:
    """List the trainings of a specification; this needs the whole package."""
    from explorer.models import build_trainable
    from explorer.specs import load_spec
    from explorer.training import rates_of, train_config, trials_of

    read = load_spec(spec, set)
    methods = [read.method, *(baseline.method for baseline in read.baselines)]
    rates = {method: rates_of(read, method) for method in methods}
    listed = []
    for trial in trials_of(read, seeds=read.train.seeds, rates=rates):
        trainable: Any = build_trainable(read, trial.method, trial.settled)
        model = asdict(trainable.model)
        del model["network"]
        config = asdict(train_config(read, trainable, trial))
        listed.append({"trial": asdict(trial), "model": model, "config": config})
    section = read.dataset
    dataset = {
        "name": section.name,
        "size": section.size,
        "options": section.options,
        "split_seed": section.split_seed,
    }
    jobs.write_text(json.dumps({"dataset": dataset, "jobs": listed}, indent=1) + "\n")
    print(f"{jobs}: {len(listed)} trainings")


def run(
    jobs: Sequence[Path],
    out: Path,
    root: str | None,
    device: str,
    processes: int,
    seeds: Sequence[int] | None,
    rates: Sequence[str],
    seconds: float,
) -> None:
    """Make the trainings, the longest first, and leave OUT/FILE/TRIAL.safetensors of each.

    Exits with 1 unless all of them are there.
    """
    start = time.perf_counter()
    only = {method: float(rate) for method, rate in (text.split("=") for text in rates)}
    work: list[tuple[str, dict[str, Any], Path, str]] = []
    asked: list[tuple[str, dict[str, Any], Path]] = []
    for path in jobs:
        written = json.loads(path.read_text())
        _DATA[path.stem] = _data(written["dataset"], root)
        for job in written["jobs"]:
            trial = job["trial"]
            if seeds is not None and trial["seed"] not in seeds:
                continue
            if trial["learning_rate"] != only.get(trial["method"], trial["learning_rate"]):
                continue
            target = out / path.stem / f"{trial['trial_id']}.safetensors"
            asked.append((path.stem, job, target))
            if _trained(target, job) is None:
                work.append((path.stem, {**job, "processes": processes}, target, device))
    if not asked:
        sys.exit("expected seeds, methods and rates of the listed trainings: none is left")
    work.sort(key=lambda one: -_size(one[1]))
    print(f"{len(work)} trainings, data read in {time.perf_counter() - start:.1f} s", flush=True)
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        results = pool.imap_unordered(_train, work)
        for number in range(1, len(work) + 1):
            left = start + seconds - time.perf_counter()
            try:
                note = results.next(timeout=max(0.1, left))
            except multiprocessing.TimeoutError:
                print(f"given up: {len(work) - number + 1} trainings are left", flush=True)
                break
            print(f"{time.perf_counter() - start:6.1f} s  {number}/{len(work)} {note}", flush=True)
    metrics: dict[str, list[float]] = {}
    for name, job, target in asked:
        told = _trained(target, job)
        group = f"{name}: {job['trial']['method']}, rate {job['trial']['learning_rate']:g}"
        metrics.setdefault(group, []).append(math.nan if told is None else told["best_metric"])
    for group, values in metrics.items():
        print(f"{group}: mean on validation {sum(values) / len(values):.4f} of {len(values)}")
    if any(math.isnan(value) for values in metrics.values() for value in values):
        sys.exit(1)


def keep(jobs: Path, out: Path, run: Path) -> None:
    """Put what was trained into an exploration; this needs the whole package."""
    from explorer.training import Trial, keep_record

    for job in json.loads(jobs.read_text())["jobs"]:
        trial = Trial(**job["trial"])
        path = out / jobs.stem / f"{trial.trial_id}.safetensors"
        told = _trained(path, job)
        if told is None:
            print(f"{path}: missing, or of another specification")
            continue
        if told.pop("processes") > 1:
            print(f"{path}: trained beside others, its seconds are theirs too")
        folder = run / "trials" / trial.trial_id
        folder.mkdir(parents=True, exist_ok=True)
        keep_record(trial, TrainResult(best=load_file(path), **told), folder)
        print(f"{folder}: {told['best_metric']:.4f} in epoch {told['best_epoch']}")


def _trained(path: Path, job: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a whole file tells of its training; None where there is none of this very job."""
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata()
    except (OSError, SafetensorError):
        return None
    result: dict[str, Any] | None = json.loads(told["result"])
    return result if told["job"] == _digest(job) else None


def _digest(job: Mapping[str, Any]) -> str:
    named = {name: job[name] for name in ("trial", "model", "config")}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _data(dataset: Mapping[str, Any], root: str | None) -> dict[str, Arrays]:
    source = DATASETS[dataset["name"]]
    read = source.load(root, size=tuple(dataset["size"]), **dataset["options"])
    indices = split_indices(read, seed=dataset["split_seed"])
    return {name: Arrays(read.images[own], read.masks[own]) for name, own in indices.items()}


def _size(job: Mapping[str, Any]) -> float:
    """Proportional to how long a training takes, roughly: its steps."""
    config = job["config"]
    amortised = 1.3 if TRAINABLES[job["trial"]["method"]].is_amortised else 1.0
    return float(config["epochs"] / config["batch_size"] * amortised)


def _train(work: tuple[str, dict[str, Any], Path, str]) -> str:
    name, job, target, device = work
    torch.set_num_threads(1)
    trial, model = job["trial"], _tuples(job["model"])
    method = TRAINABLES[trial["method"]]
    described = method.described_by(network=NETWORKS[model["network_name"]], **model)
    trainable = method.construct(described, trial["settled"] or None)
    config = TrainConfig(**_tuples(job["config"]))
    context = PlainContext(target.with_suffix(""), device=device)
    try:
        result = train(trainable, _DATA[name], config, context)
    except Exception as error:  # noqa: BLE001 - the others go on
        return f"{name}/{trial['trial_id']}: {type(error).__name__}: {error}"
    told = {key: own for key, own in vars(result).items() if key != "best"}
    told["processes"] = job["processes"]
    written = target.with_suffix(".new")
    save_file(result.best, written, {"result": json.dumps(told), "job": _digest(job)})
    written.replace(target)
    return f"{name}/{trial['trial_id']}: val {result.best_metric:.4f}, {result.wall_s:.1f} s"


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(own) for key, own in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
