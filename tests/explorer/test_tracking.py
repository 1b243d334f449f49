"""Explorations in MLflow: each run exactly once, however often and however late it is sent."""

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

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
    _artifact_uri,
    _num_threads,
    _Projection,
    tracking_uri,
)

# The first touch of an SQLite file creates all of MLflow's tables.
pytestmark = pytest.mark.timeout(120)
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
        {"step": 0, "train_loss": 1.0, "dice": float("nan")},
        {"step": 1, "train_loss": 0.5, "dice": 0.8},
    ]
    exploration_id = next(new_id)
    return ExplorationRecord(
        exploration_id=exploration_id,
        uid=f"{exploration_id}@1",
        status="finished",
        created=1.0,
        params={"method": "sshn", "train": {"epochs": 2}},
        tags={"code_version": "abc"},
        metrics={"total_s": 0.7},
        history=[{"step": 5, "time": 2.0, "hypervolume": 0.6}],
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
    assert parent.data.metrics == {"total_s": 0.7, "hypervolume": 0.6}
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


def test_front_that_is_not_known_yet_leaves_the_points_as_they_are(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    tracker.project(record)
    tracker.project(replace(record, status="running", points=None))
    children = runs_of(tracker, record.exploration_id)[1]
    assert children["sshn phi=0.2"].data.tags["frontier"] == "true"


def test_curves_grow_without_repeating_steps(tracker: Tracker, record: ExplorationRecord) -> None:
    (training,) = record.trainings
    longer = [*training.history, {"step": 2, "train_loss": 0.25, "dice": 0.9}]
    last = {"step": 7, "time": 3.0, "hypervolume": 0.8}
    for history, of_parent in (
        (training.history, record.history),
        (training.history, record.history),
        (longer, [*record.history, last]),
    ):
        trainings = [replace(training, history=history)]
        tracker.project(replace(record, trainings=trainings, history=of_parent))
    ((parent,), children) = runs_of(tracker, record.exploration_id)
    client = MlflowClient(tracker.uri)
    for run, name, curve in (
        (children["sshn-0"], "train_loss", [(0, 1.0), (1, 0.5), (2, 0.25)]),
        (children["sshn-0"], "dice", [(1, 0.8), (2, 0.9)]),
        (parent, "hypervolume", [(5, 0.6), (7, 0.8)]),
    ):
        logged = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in logged] == curve
    logged = client.get_metric_history(parent.info.run_id, "hypervolume")
    assert [metric.timestamp for metric in logged] == [2000, 3000]


def test_many_values_are_sent_in_batches_that_mlflow_takes(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    params = {f"p{index}": index for index in range(230)}
    history = [{"step": step, "train_loss": 1.0 + step} for step in range(1500)]
    training = TrackedTraining("sshn-0", {}, history)
    tracker.project(replace(record, params=params, trainings=[training]))
    ((parent,), children) = runs_of(tracker, record.exploration_id)
    assert len(parent.data.params) == 230
    assert children["sshn-0"].data.metrics == {"train_loss": 1500.0}


class CountedClient(MlflowClient):
    """Counts the requests that write."""

    calls: ClassVar[Counter[str]] = Counter()

    def create_run(self, *args: Any, **kwargs: Any) -> Run:
        self.calls["create_run"] += 1
        return super().create_run(*args, **kwargs)

    def log_batch(self, *args: Any, **kwargs: Any) -> Any:
        self.calls["log_batch"] += 1
        return super().log_batch(*args, **kwargs)

    def set_terminated(self, *args: Any, **kwargs: Any) -> None:
        self.calls["set_terminated"] += 1
        super().set_terminated(*args, **kwargs)

    def search_runs(self, *args: Any, **kwargs: Any) -> Any:
        self.calls["search_runs"] += 1
        return super().search_runs(*args, **kwargs)


def test_child_costs_three_requests_and_a_known_one_none(
    tracker: Tracker, record: ExplorationRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("explorer.tracking.MlflowClient", CountedClient)
    monkeypatch.setattr(CountedClient, "calls", Counter())
    points = [tracked(phi / 100) for phi in range(20)]
    record = replace(record, points=points, trainings=[], table=None, files=[])
    tracker.project(record)
    parent = {"create_run": 1, "log_batch": 2, "set_terminated": 1, "search_runs": 1}
    children = {"create_run": 20, "log_batch": 20, "set_terminated": 20}
    assert CountedClient.calls == Counter(parent) + Counter(children)
    CountedClient.calls.clear()
    tracker.project(record)
    assert CountedClient.calls == {"search_runs": 1}


def test_children_go_to_a_server_side_by_side_and_to_a_database_one_by_one(
    tracker: Tracker, record: ExplorationRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _num_threads("https://host") > _num_threads(tracker.uri) == 1
    monkeypatch.setattr("explorer.tracking._num_threads", lambda uri: 2)
    write, together = _Projection._send_point, threading.Barrier(2, timeout=60)

    def send(self: _Projection, point: TrackedPoint) -> None:
        together.wait()
        write(self, point)

    monkeypatch.setattr(_Projection, "_send_point", send)
    tracker.project(replace(record, points=[tracked(phi / 100) for phi in range(20)]))
    children = runs_of(tracker, record.exploration_id)[1]
    assert sum(run.data.tags["kind"] == "point" for run in children.values()) == 20


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


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("sqlite:////data/mlflow.db", "file:///data/mlartifacts"),
        ("postgresql+psycopg2://login@host/mlflow", "file:///runs/mlartifacts"),
        ("http://host:5000", None),
    ],
)
def test_databases_are_told_where_artifacts_lie(uri: str, place: str | None) -> None:
    assert _artifact_uri(uri, Path("/runs/mlartifacts")) == place


def test_resumed_exploration_runs_again_and_ends_anew(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    for status, shown in (
        ("running", "RUNNING"),
        ("interrupted", "KILLED"),
        ("running", "RUNNING"),
        ("failed", "FAILED"),
    ):
        tracker.project(replace(record, status=status))
        ((parent,), _) = runs_of(tracker, record.exploration_id)
        assert parent.info.status == shown


def test_explorations_of_one_name_are_apart(tracker: Tracker, record: ExplorationRecord) -> None:
    first = tracker.project(record)
    second = tracker.project(replace(record, uid=f"{record.uid}.5", points=[tracked(0.3)]))
    client = MlflowClient(tracker.uri)
    ids = [client.get_experiment_by_name(tracker.experiment).experiment_id]
    for run_id, num_points in ((first, 3), (second, 1)):
        where = f"tags.mlflow.parentRunId = '{run_id}' and tags.kind = 'point'"
        runs = client.search_runs(ids, where)
        assert len(runs) == num_points
        assert {run.data.tags["frontier"] for run in runs} <= {"true", "false"}
        assert sum(run.data.tags["frontier"] == "true" for run in runs) == min(2, num_points)


def test_runs_that_came_to_be_twice_are_one_after_the_next_projection(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    """As when a "create" that was given up is carried out after its repetition."""
    parent_id = tracker.project(record)
    client = MlflowClient(tracker.uri)
    ids = [client.get_experiment_by_name(tracker.experiment).experiment_id]
    uid = f"tags.exploration_uid = '{record.uid}'"
    twins = [
        client.create_run(ids[0], start_time=start_time, tags=dict(run.data.tags))
        for run in client.search_runs(ids, uid)
        for start_time in [1 if run.info.run_id == parent_id else None]
    ]
    tracker.project(record)
    parents, children = runs_of(tracker, record.exploration_id)
    assert [run.info.run_id for run in parents] == [twins[-1].info.run_id]
    assert len(children) == 4
    assert {run.info.status for run in [*parents, *children.values()]} == {"FINISHED"}
    assert len(client.search_runs(ids, uid)) == 5


def test_label_that_mlflow_refuses_is_renamed(tracker: Tracker, record: ExplorationRecord) -> None:
    point = tracked(0.2)
    named = {**point.point, "metrics": {"dice/white matter (left)": 0.5}}
    tracker.project(replace(record, points=[replace(point, point=named)]))
    run = runs_of(tracker, record.exploration_id)[1]["sshn phi=0.2"]
    assert run.data.metrics["dice/white matter _left_"] == 0.5


def test_unreachable_server_is_said_at_once_and_caught_up_with_later(
    tracker: Tracker, record: ExplorationRecord
) -> None:
    away = Tracker(UNREACHABLE, experiment="explorer")
    began = time.perf_counter()
    with pytest.raises(TrackingUnavailableError, match=f"MLflow at {UNREACHABLE}: "):
        away.project(record)
    assert time.perf_counter() - began < 3
    tracker.project(record)
    assert len(runs_of(tracker, record.exploration_id)[1]) == 4


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize("accepted", [False, True])
@pytest.mark.parametrize("name", ["create_run", "log_batch", "set_terminated", "log_artifact"])
def test_projection_broken_off_anywhere_is_completed_without_doubles(
    tracker: Tracker,
    record: ExplorationRecord,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    accepted: bool,
    num_threads: int,
) -> None:
    """Every request of a kind fails once, refused or after it was carried out."""
    monkeypatch.setattr("explorer.tracking._num_threads", lambda uri: num_threads)
    send, broken = getattr(MlflowClient, name), set()

    def break_off(self: MlflowClient, *args: Any, **kwargs: Any) -> Any:
        request = str((args, sorted(kwargs.get("tags", {}).items())))
        request = re.sub("timestamp=[0-9]*|<[^>]*>|/[^']*/", "", request)
        if request in broken:
            return send(self, *args, **kwargs)
        broken.add(request)
        if accepted:
            send(self, *args, **kwargs)
        raise ConnectionResetError("connection reset")

    monkeypatch.setattr(MlflowClient, name, break_off)
    num_failed = 0
    while num_failed < 100:
        try:
            tracker.project(record)
            break
        except TrackingUnavailableError:
            num_failed += 1
    assert 0 < num_failed < 100
    parents, children = runs_of(tracker, record.exploration_id)
    assert len(parents) == 1
    assert len(children) == 4
    assert all(run.data.metrics and run.data.params for run in children.values())
    assert {run.info.status for run in [*parents, *children.values()]} == {"FINISHED"}
    client = MlflowClient(tracker.uri)
    curve = client.get_metric_history(children["sshn-0"].info.run_id, "train_loss")
    assert [metric.step for metric in curve] == [0, 1]


def test_message_does_not_show_a_login(record: ExplorationRecord) -> None:
    away = Tracker("http://user:secret@127.0.0.1:9", experiment="explorer")
    with pytest.raises(TrackingUnavailableError) as caught:
        away.project(record)
    assert "secret" not in str(caught.value)


def test_missing_file_is_refused(tracker: Tracker, record: ExplorationRecord) -> None:
    with pytest.raises(ValueError, match=r"missing: .*none\.png"):
        tracker.project(replace(record, files=[Path("none.png")]))


def test_tracking_uri_is_the_runs_directory_unless_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(tmp_path) == "http://tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_nothing_reaches_the_console(tmp_path: Path) -> None:
    code = (
        "import sys; from explorer.tracking import ExplorationRecord, Tracker;"
        "record = ExplorationRecord('e', 'e@1', 'finished', 1.0);"
        "Tracker(sys.argv[1], experiment='explorer').project(record)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'mlflow.db'}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
