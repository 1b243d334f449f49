"""Explorations in MLflow: each run exactly once, however often and however late it is sent."""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from explorer.tracking import (
    ExplorationRecord,
    TrackedPoint,
    TrackedTraining,
    Tracker,
    TrackingUnavailableError,
    deliver,
    tracking_uri,
)
from search_spaces.errors import InputError

# The first touch of an SQLite file creates all of MLflow's tables.
pytestmark = pytest.mark.timeout(60)
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return Tracker(uri, experiment="explorer")


@pytest.fixture(scope="module")
def new_id() -> Iterator[str]:
    return (f"exploration-{number}" for number in itertools.count())


@pytest.fixture
def record(new_id: Iterator[str], tmp_path: Path) -> ExplorationRecord:
    page = tmp_path / "frontier.html"
    page.write_text("<html></html>", encoding="utf-8")
    history = [
        {"epoch": 0, "train_loss": 1.0, "dice": float("nan")},
        {"epoch": 1, "train_loss": 0.5, "dice": 0.8},
    ]
    return ExplorationRecord(
        exploration_id=next(new_id),
        status="finished",
        params={"method": "sshn", "train": {"epochs": 2}},
        tags={"code_version": "abc"},
        metrics={"hypervolume": 0.7},
        points=[tracked(0.2), tracked(0.4), tracked(0.4, method="fixed", is_on_frontier=False)],
        trainings=[TrackedTraining("sshn-0", {"seed": 0}, history)],
        table={"method": np.array(["sshn"], dtype=object), "metric/dice": np.array([np.nan])},
        files=[page],
    )


def tracked(
    phi: float, *, method: str = "sshn", dice: float = 0.9, is_on_frontier: bool = True
) -> TrackedPoint:
    point = {
        "conditioning": {"phi": phi},
        "metrics": {"dice": dice, "dice/nucleus": 0.95},
        "standard_errors": {},
        "seed_sd": {},
        "num_seeds": 3,
        "costs": {"macs": 1e8 * phi, "flops": 2e8 * phi},
        "test_metrics": {"dice": 0.88},
        "method": method,
        "trial_ids": [f"{method}-0"],
    }
    return TrackedPoint(f"{method}/{phi}", point, is_on_frontier)


def runs_of(tracker: Tracker, exploration_id: str) -> tuple[list[Run], dict[str, Run]]:
    """Parent runs, and children by run name."""
    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name(tracker.experiment)
    ids = [experiment.experiment_id]
    parents = client.search_runs(ids, f"tags.exploration_id = '{exploration_id}'")
    where = f"tags.mlflow.parentRunId = '{parents[0].info.run_id}'"
    children = list(client.search_runs(ids, where))
    by_name = {run.info.run_name: run for run in children}
    assert len(by_name) == len(children)
    return list(parents), by_name


def test_two_projections_show_every_run_exactly_once(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    first = tracker.project(record)
    parents, before = runs_of(tracker, record.exploration_id)
    assert tracker.project(record) == first
    parents, after = runs_of(tracker, record.exploration_id)
    assert [run.info.run_id for run in parents] == [first]
    assert set(after) == {"sshn phi=0.2", "sshn phi=0.4", "fixed phi=0.4", "sshn-0"}
    assert {name: run.to_dictionary() for name, run in after.items()} == {
        name: run.to_dictionary() for name, run in before.items()
    }


def test_parent_holds_spec_status_and_metrics(tracker: Tracker, record: ExplorationRecord) -> None:
    tracker.project(record)
    ((parent,), _) = runs_of(tracker, record.exploration_id)
    assert parent.data.params == {"method": "sshn", "train.epochs": "2"}
    assert parent.data.metrics == {"hypervolume": 0.7}
    assert parent.data.tags["code_version"] == "abc"
    assert parent.info.status == "FINISHED"


def test_point_is_a_child_with_its_setting_metrics_and_tags(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    tracker.project(record)
    run = runs_of(tracker, record.exploration_id)[1]["fixed phi=0.4"]
    assert run.data.params == {"method": "fixed", "phi": "0.4"}
    assert run.data.metrics == {
        "dice": 0.9,
        "dice/nucleus": 0.95,
        "test_dice": 0.88,
        "macs": 4e7,
        "flops": 8e7,
    }
    assert run.data.tags["frontier"] == "false"
    assert run.data.tags["measurement_id"] == "fixed/0.4"
    assert run.info.status == "FINISHED"


def test_moved_front_is_tagged_anew(tracker: Tracker, record: ExplorationRecord) -> None:
    tracker.project(record)
    moved = [tracked(0.2, is_on_frontier=False, dice=0.91), tracked(0.3)]
    tracker.project(replace(record, points=moved))
    children = runs_of(tracker, record.exploration_id)[1]
    frontier = {name: run.data.tags.get("frontier") for name, run in children.items()}
    assert frontier == {
        "sshn phi=0.2": "false",
        "sshn phi=0.3": "true",
        "sshn phi=0.4": "false",
        "fixed phi=0.4": "false",
        "sshn-0": None,
    }
    assert children["sshn phi=0.2"].data.metrics["dice"] == 0.91


def test_curves_grow_without_repeating_steps(tracker: Tracker, record: ExplorationRecord) -> None:
    tracker.start(record.exploration_id, {}, {})
    (training,) = record.trainings
    longer = [*training.history, {"epoch": 2, "train_loss": 0.25, "dice": 0.9}]
    for history in (training.history, training.history, longer):
        tracker.log_training(record.exploration_id, "sshn-0", history)
    run = runs_of(tracker, record.exploration_id)[1]["sshn-0"]
    client = MlflowClient(tracker.uri)
    for name, curve in (
        ("train_loss", [(0, 1.0), (1, 0.5), (2, 0.25)]),
        ("dice", [(1, 0.8), (2, 0.9)]),
    ):
        logged = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in logged] == curve


def test_many_values_are_sent_in_batches_that_mlflow_takes(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    params = {f"p{index}": index for index in range(230)}
    tracker.start(record.exploration_id, params, {})
    history = [{"epoch": epoch, "train_loss": 1.0 + epoch} for epoch in range(1500)]
    tracker.log_training(record.exploration_id, "sshn-0", history)
    ((parent,), children) = runs_of(tracker, record.exploration_id)
    assert len(parent.data.params) == 230
    assert children["sshn-0"].data.metrics == {"train_loss": 1500.0}


def test_artifacts_lie_beside_the_database(
    tracker: Tracker, record: ExplorationRecord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for _ in range(2):
        tracker.project(record)
    ((parent,), _) = runs_of(tracker, record.exploration_id)
    stored = Path(parent.info.artifact_uri.removeprefix("file://"))
    assert stored.is_relative_to(Path(tracker.uri.removeprefix("sqlite:///")).parent)
    assert sorted(path.name for path in stored.iterdir()) == ["frontier.html", "table.json"]
    table = json.loads((stored / "table.json").read_text(encoding="utf-8"))
    assert table == {"columns": ["method", "metric/dice"], "data": [["sshn", None]]}
    assert not list(here.iterdir())


def test_resumed_exploration_runs_again_and_ends_interrupted(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    run_id = tracker.start(record.exploration_id, {"a": 1}, {})
    tracker.finish(record.exploration_id, "interrupted", {})
    assert runs_of(tracker, record.exploration_id)[0][0].info.status == "KILLED"
    assert tracker.start(record.exploration_id, {"a": 1}, {}) == run_id
    assert runs_of(tracker, record.exploration_id)[0][0].info.status == "RUNNING"


def test_label_that_mlflow_refuses_is_renamed(tracker: Tracker, record: ExplorationRecord) -> None:
    point = tracked(0.2)
    named = {**point.point, "metrics": {"dice/white matter (left)": 0.5}}
    tracker.project(replace(record, points=[replace(point, point=named)]))
    run = runs_of(tracker, record.exploration_id)[1]["sshn phi=0.2"]
    assert run.data.metrics["dice/white matter _left_"] == 0.5


def test_unreachable_server_is_pending_at_once_and_delivered_later(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    away = Tracker(UNREACHABLE, experiment="explorer")
    began = time.perf_counter()
    reasons = {deliver(lambda: away.project(record)) for _ in range(100)}
    assert time.perf_counter() - began < 3
    (reason,) = reasons
    assert reason is not None
    assert reason.startswith(f"tracking: MLflow at {UNREACHABLE}: ")
    assert deliver(lambda: tracker.project(record)) is None
    assert len(runs_of(tracker, record.exploration_id)[1]) == 4


def test_projection_broken_off_half_way_is_completed_without_doubles(
    tracker: Tracker, record: ExplorationRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, calls = MlflowClient.log_batch, itertools.count()

    def break_off(self: MlflowClient, *args: object, **kwargs: object) -> None:
        if next(calls) == 2:
            raise ConnectionResetError("connection reset")
        send(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", break_off)
    with pytest.raises(TrackingUnavailableError, match="connection reset"):
        tracker.project(record)
    monkeypatch.undo()
    with pytest.raises(TrackingUnavailableError, match="connection reset"):
        tracker.project(record)
    Tracker(tracker.uri, experiment=tracker.experiment).project(record)
    children = runs_of(tracker, record.exploration_id)[1]
    assert len(children) == 4
    assert all(run.data.metrics and run.data.params for run in children.values())


def test_message_does_not_show_a_login() -> None:
    away = Tracker("http://user:secret@127.0.0.1:9", experiment="explorer")
    assert "secret" not in str(deliver(lambda: away.start("e", {}, {})))


def test_unknown_exploration_is_refused(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="'nothing' is not tracked yet"):
        tracker.finish("nothing", "finished", {})


def test_missing_file_is_refused(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match=r"missing: .*none\.png"):
        tracker.log_artifacts("e", [Path("none.png")])


def test_tracking_uri_is_the_runs_directory_unless_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(tmp_path) == "http://tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI"):
        tracking_uri("s3://bucket/runs")


def test_nothing_reaches_the_console(tmp_path: Path) -> None:
    code = (
        "import sys; from explorer.tracking import Tracker;"
        "t = Tracker(sys.argv[1], experiment='explorer');"
        "t.start('e', {}, {}); t.finish('e', 'finished', {})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'mlflow.db'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
