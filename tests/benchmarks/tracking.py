"""What tracking adds to an exploration; a shorter one: `python tests/benchmarks/tracking.py 4000`.

The exploration is real (sampler, plan, Ray Tune, record, tables, sending process; validation, then
the test pass), the evaluation is scripted: it takes 20 ms and puts 200 settings on the front.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from explorer.exploring import Chunk, Evaluation, Plan, explore
from explorer.progress import ProgressReport
from explorer.sending import Sender
from explorer.session import Session, check_spec
from explorer.specs import ExplorationSpec, load_spec
from explorer.splits import load_data
from explorer.store import set_state, write_json, write_text
from explorer.training import Trial, TrialRecord, ray_session

BATCH_SIZE = 25
EVALUATION_S = 0.02
TARGET_PERCENT = 5.0
LABELS = ("dice", "dice/nucleus", "dice/cytoplasm")


@dataclass(frozen=True)
class Size:
    """How much is explored, and by whom; without workers in this process."""

    num_settings: int = 10_000
    num_front: int = 200
    num_workers: int = 2
    is_spinning: bool = False


def measure(size: Size = Size()) -> dict[str, list[dict[str, Any]]]:
    """Tracking against none, on SQLite and on a server of this machine; target: 5 %."""
    session = ray_session() if size.num_workers else nullcontext()
    with tempfile.TemporaryDirectory(prefix="bench_") as name, session:
        folder = Path(name)
        arms = [explored(folder / "off", size, uri=None)]
        arms += [explored(folder / "sqlite", size, uri="")]
        with mlflow_server(folder) as uri:
            arms += [explored(folder / "server", size, uri=uri)]
    base = arms[0]["explore_s"]
    for row in arms:
        row["overhead_percent"] = 100 * ((row["explore_s"] + row["delivery_s"]) / base - 1)
        row["target_percent"] = TARGET_PERCENT
    return {"tracking": arms}


def explored(runs: Path, size: Size, *, uri: str | None) -> dict[str, Any]:
    """Carry one exploration out; `uri` is None for no tracking, empty for SQLite."""
    settings = [f"explore.num_points={size.num_settings}", f"explore.batch_size={BATCH_SIZE}"]
    spec = load_spec("demo", settings)
    session = new_session(runs / "bench-1", spec)
    sizes = {split: len(ids) for split, ids in session.sample_ids.items()}
    models: Any = ScriptedModels(spec, size, sizes)
    os.environ["MLFLOW_TRACKING_URI"] = uri or ""
    cpu_before, begin = children_cpu_s(), time.perf_counter()
    sender = None if uri is None else Sender(session.folder)
    explored = session._validation_units(runs / "bench-1" / "study.journal")
    for split in ("val", "test"):
        plan = Plan(
            explored if split == "val" else session._test_units(explored),
            batch_size=BATCH_SIZE,
            window=max(1, size.num_workers),
            recorded=session.recorded,
            recorded_values={},
        )
        quiet = ProgressReport(quiet=True)
        explore(plan, models, session._record, quiet, num_workers=size.num_workers)
    explored_at = time.perf_counter()
    set_state(session.folder, status="finished")
    pending = sender.finish(None) if sender else None
    assert pending is None, pending
    return {
        "tracking": runs.name,
        "settings": size.num_settings,
        "front": size.num_front,
        "evaluation": "spins" if size.is_spinning else "sleeps",
        "num_workers": size.num_workers,
        "num_threads": 1,
        "explore_s": explored_at - begin,
        "delivery_s": time.perf_counter() - explored_at,
        "sender_cpu_s": children_cpu_s() - cpu_before,
    }


class ScriptedModels:
    """Answers as a model would, after a time that is given."""

    def __init__(self, spec: ExplorationSpec, size: Size, num_images: Mapping[str, int]) -> None:
        self.spec, self.size, self.num_images = spec, size, num_images

    def evaluate(self, chunk: Chunk) -> Iterator[Evaluation]:
        num_settings, num_front = self.size.num_settings, self.size.num_front
        for setting in chunk.settings:
            if self.size.is_spinning:
                end = time.process_time() + EVALUATION_S
                while time.process_time() < end:
                    pass
            else:
                time.sleep(EVALUATION_S)
            phi = float(setting["phi"]) / self.spec.train.prior["phi"][1]
            index = round(phi * (num_settings - 1))
            on_front = index * num_front % num_settings < num_front
            quality = 0.5 + 0.4 * phi - (0.0 if on_front else 0.45)
            spread = np.linspace(-0.01, 0.01, self.num_images[chunk.split])
            values = dict.fromkeys(LABELS, quality + spread)
            costs = {"macs": 1e6 * (1 + phi), "parameters": 1e5, "activation_bytes": 1e6}
            yield Evaluation(
                trial_id=chunk.trial_ids[0],
                split=chunk.split,
                setting=setting,
                values=values,
                sample_indices=np.arange(self.num_images[chunk.split]),
                is_complete=True,
                costs=costs,
                evaluation_s=EVALUATION_S,
                time=time.time(),
            )


def new_session(folder: Path, spec: ExplorationSpec) -> Session:
    folder.mkdir(parents=True)
    objectives, dataset = check_spec(spec), load_data(spec)
    write_text(folder / "spec.yaml", spec.to_yaml())
    state = {
        "status": "running",
        "spec_digest": spec.digest,
        "data_digest": dataset.digest,
        "code_version": "benchmark",
        "created": time.time(),
        "num_measurements": 0,
        "elapsed_s": {},
        "objectives": [asdict(objective) for objective in objectives],
    }
    write_json(folder / "state.json", state)
    session = Session(folder, spec, objectives, dataset, ProgressReport(quiet=True))
    record = TrialRecord(Trial("sshn-s0", spec.method, 0, 1e-3), "ok")
    write_json(folder / "trials" / "sshn-s0" / "trial.json", asdict(record))
    session.records = {"sshn-s0": record}
    return session


def children_cpu_s() -> float:
    """Processor seconds of the processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    server = subprocess.Popen(
        command,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not answers(f"{uri}/health"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("num_settings", type=int, nargs="?", default=Size.num_settings)
    parser.add_argument("--front", type=int, default=Size.num_front, help="settings on the front")
    parser.add_argument("--workers", type=int, default=Size.num_workers, help="0: in this process")
    parser.add_argument("--spin", action="store_true", help="evaluations keep a core busy")
    options = parser.parse_args(arguments)
    size = Size(options.num_settings, options.front, options.workers, options.spin)
    tables = measure(size)
    for row in tables["tracking"]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
