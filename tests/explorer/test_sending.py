"""What MLflow is shown of a folder, and the process that sends it while a run goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from explorer.measurements import Measurement, measurements_table
from explorer.progress import ProgressReport
from explorer.projecting import record_of
from explorer.sending import Sender, send, tracked
from explorer.specs import load_spec
from explorer.store import measurements_store, read_json, set_state, write_json, write_text
from search_spaces.errors import RunError
from tests.conftest import measured

# Seconds each on an idle machine; a process that imports mlflow starves on a busy one.
PATIENCE_S = 500
pytestmark = pytest.mark.timeout(600)
OBJECTIVES = [
    {"name": "dice", "direction": "maximize", "unit": ""},
    {"name": "macs", "direction": "minimize", "unit": "MAC"},
]


def row(phi: float, dice: float, **changes: Any) -> Measurement:
    time, metrics, costs = 1000.0 + phi, {"dice": dice}, {"macs": 1e6 * phi}
    return measured(phi, dice, time=time, metrics=metrics, costs=costs, **changes)


@dataclass
class Folder:
    """An exploration as its folder says it, without anything that computes."""

    path: Path

    def append(self, *rows: Measurement) -> None:
        measurements_store(self.path).append(measurements_table(rows))

    def trained(self, trial_id: str, **changes: Any) -> None:
        trial = {"trial_id": trial_id, "method": "sshn", "seed": 0, "learning_rate": 0.01}
        history = [{"epoch": 5, "train_loss": 0.4, "val": 0.6}]
        record = {"trial": {**trial, "settled": {}}, "status": "ok", "history": history}
        write_json(self.path / "trials" / trial_id / "trial.json", record | changes)

    def runs(self) -> tuple[Run, dict[str, Run]]:
        """The parent, and the points by name."""
        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        ids = [client.get_experiment_by_name("explorations").experiment_id]
        (parent,) = client.search_runs(ids, "tags.exploration_id = 'tiny-1'")
        where = f"tags.mlflow.parentRunId = '{parent.info.run_id}' and tags.kind = 'point'"
        children = list(client.search_runs(ids, where))
        by_name = {run.info.run_name: run for run in children}
        assert len(by_name) == len(children)
        return parent, by_name

    def front(self) -> set[str]:
        return {n for n, run in self.runs()[1].items() if run.data.tags["frontier"] == "true"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file that holds MLflow's tables and nothing else."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, tiny_spec: Path, database: Path) -> Folder:
    shutil.copy(database, tmp_path / "mlflow.db")
    path = tmp_path / "runs" / "tiny-1"
    spec = load_spec(tiny_spec, ["tracking=true", "train.seeds=[0,1]", "explore.num_points=100"])
    write_text(path / "spec.yaml", spec.to_yaml())
    state = {
        "status": "running",
        "spec_digest": spec.digest,
        "data_digest": "d",
        "code_version": "c",
        "created": 900.0,
        "num_measurements": 0,
        "elapsed_s": {},
        "objectives": OBJECTIVES,
    }
    write_json(path / "state.json", state)
    return Folder(path)


def until(condition: Any, timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pairs(phi: float, dice: Sequence[float], **changes: Any) -> list[Measurement]:
    return [row(phi, value, seed=seed, **changes) for seed, value in enumerate(dice)]


def test_history_says_how_far_it_had_come(folder: Folder) -> None:
    folder.append(*pairs(0.25, [0.4, 0.6]), *pairs(0.5, [0.2, 0.4]))
    folder.append(*pairs(0.1, [0.1, 0.3]), row(0.1, 0.7, method="fixed"))
    # every second row is a step: 100 settings on two seeds in 100 steps
    assert record_of(folder.path).history == [
        {"step": 2, "time": 1000.25, "num_measurements": 2, "best_dice": 0.5, "hypervolume": 0.0},
        # reference point (0.3, 0.5M)
        {
            "step": 4,
            "time": 1000.5,
            "num_measurements": 4,
            "best_dice": 0.5,
            "hypervolume": pytest.approx(0.2 * 0.25e6),
        },
        # (0.2, 0.5M): the new point itself gives nothing
        {
            "step": 6,
            "time": 1000.5,
            "num_measurements": 6,
            "best_dice": 0.5,
            "hypervolume": pytest.approx(0.3 * 0.25e6),
        },
    ]
    set_state(folder.path, status="finished")
    assert [row["step"] for row in record_of(folder.path).history] == [2, 4, 6, 7]


def test_history_is_the_same_whenever_it_is_read(folder: Folder) -> None:
    rng = np.random.default_rng(0)
    read: list[dict[str, float]] = []
    for phi in rng.permutation(40) / 40:
        folder.append(*pairs(float(phi), rng.random(2).tolist()))
        history = [*record_of(folder.path).history]
        assert history[: len(read)] == read
        read = history
    volumes = [row["hypervolume"] for row in read]
    assert volumes == sorted(volumes)
    assert len(read) == 40


def test_front_is_shown_when_exploring_is_over(folder: Folder) -> None:
    folder.append(row(0.25, 0.5), row(0.5, 0.4), row(0.4, 0.6, method="fixed"))
    assert record_of(folder.path).points is None
    folder.append(row(0.25, 0.45, split="test"))
    points = record_of(folder.path).points
    assert points is not None
    assert {p.measurement_id: p.is_on_frontier for p in points} == {
        "tiny-1/sshn/phi=0.25": True,
        "tiny-1/fixed/phi=0.4": True,
    }


def test_training_is_shown_when_it_has_ended_well(folder: Folder) -> None:
    folder.trained("sshn-s0")
    folder.trained("sshn-s1", status="failed", history=[])
    (training,) = record_of(folder.path).trainings
    assert training.trial_id == "sshn-s0"
    assert training.history == [{"step": 5, "train_loss": 0.4, "dice": 0.6}]


def test_folder_is_shown_as_it_is_now(folder: Folder) -> None:
    assert send(folder.path) is None
    parent, points = folder.runs()
    assert (parent.info.status, parent.info.start_time, points) == ("RUNNING", 900_000, {})
    folder.append(row(0.25, 0.5), row(0.5, 0.6))
    set_state(folder.path, status="interrupted")
    assert send(folder.path) is None
    assert folder.runs()[0].info.status == "KILLED"
    assert folder.front() == {"sshn phi=0.25", "sshn phi=0.5"}
    folder.append(row(0.3, 0.7))  # moves the front
    set_state(folder.path, status="finished")
    assert send(folder.path) is None
    parent, points = folder.runs()
    assert parent.info.status == "FINISHED"
    assert len(points) == 3
    assert folder.front() == {"sshn phi=0.25", "sshn phi=0.3"}
    stored = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert pq.read_table(stored / "measurements.parquet").num_rows == 3
    assert not (folder.path / "measurements.parquet").exists()


def test_run_in_progress_is_shown_while_it_runs_and_at_its_end(folder: Folder) -> None:
    sender = Sender(folder.path, every_s=0.05)
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    until(lambda: len(client.search_experiments()) == 2)
    until(lambda: client.search_runs(["1"], "attributes.status = 'RUNNING'"))
    folder.append(*pairs(0.25, [0.4, 0.6]))
    set_state(folder.path, status="finished")
    assert sender.finish(PATIENCE_S) is None
    parent, points = folder.runs()
    assert parent.data.metrics["best_dice"] == 0.5
    assert set(points) == {"sshn phi=0.25"}


def test_tracking_that_is_away_leaves_a_mark_and_a_resumed_run_delivers(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("explorer.sending._LEAST_LIMIT_S", PATIENCE_S)
    here = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    spec, progress = load_spec(folder.path / "spec.yaml"), ProgressReport()
    with tracked(folder.path, spec, progress):
        assert read_json(folder.path / "state.json")["tracking"] == "pending"
        folder.append(row(0.25, 0.5))
        set_state(folder.path, status="finished")
    assert read_json(folder.path / "state.json")["tracking"] == "pending"
    assert "explorer resume tiny-1 sends it: tracking: MLflow at" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    with tracked(folder.path, spec, progress):
        set_state(folder.path, status="running")
        set_state(folder.path, status="finished")
    assert read_json(folder.path / "state.json")["tracking"] == "delivered"
    assert folder.front() == {"sshn phi=0.25"}


def test_failed_run_keeps_its_error(folder: Folder) -> None:
    spec = load_spec(folder.path / "spec.yaml")

    def fail() -> None:
        with tracked(folder.path, spec, ProgressReport(quiet=True)):
            set_state(folder.path, status="failed", error="disk full")
            raise RunError("disk full")

    with pytest.raises(RunError, match="disk full"):
        fail()
    assert read_json(folder.path / "state.json")["error"] == "disk full"


def test_nothing_is_started_where_tracking_is_off(folder: Folder) -> None:
    spec = load_spec(folder.path / "spec.yaml", ["tracking=false"])
    with tracked(folder.path, spec, ProgressReport(quiet=True)):
        pass
    assert "tracking" not in read_json(folder.path / "state.json")


def test_broken_sender_is_said(folder: Folder) -> None:
    (folder.path / "state.json").write_text('{"status": "finished"}\n')
    reason = Sender(folder.path).finish(PATIENCE_S)
    assert reason is not None
    assert reason.startswith("the sending process failed: KeyError")


def test_sender_that_takes_too_long_is_ended(folder: Folder) -> None:
    sender = Sender(folder.path)
    assert sender.finish(0.0) == "not sent within 0 s"
    assert sender.process.returncode == -signal.SIGKILL


def test_sender_dies_with_the_run(folder: Folder) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from explorer.sending import Sender;"
        "print(Sender(Path(sys.argv[1])).process.pid, flush=True); time.sleep(600)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    run.stdout.close()
    run.kill()
    run.wait()
    until(lambda: not _is_running(pid))


def _is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
