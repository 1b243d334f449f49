"""The projection of explorations into MLflow: one parent run each, child runs for what it holds.

The table is the truth and MLflow a view of it, so `Tracker.project` may be called at any time and
as often as one likes: one search finds the runs of an exploration, those that are missing are
created, values that differ are logged, and projecting the same record twice changes nothing. A
server that was away, broke off or answered too late is caught up with in the same way.

    kind=exploration  tag exploration_id; params = the spec; metrics over num_measurements; the
                      table, figures and the page
    kind=training     tags mlflow.parentRunId, trial_id; curves over epochs
    kind=point        tags mlflow.parentRunId, measurement_id, frontier=true|false; params = method
                      and conditioning; metrics dice, dice/LABEL, test_dice, macs, flops, ...

All of them carry the tag exploration_uid. A request that was given up may still be carried out
while its repetition is, so that a run can come to be twice: the next projection deletes the later
one. A child costs three requests, which is the least: MLflow takes no values when a run is
created, and no status with the values. A server gets those of several children at a time: one that
`mlflow server` starts takes 10 ms of a processor for a request, but answers after 50 ms (its
sockets hold an answer's body back until its head is acknowledged). A database gets one after the
other: it has one writer.

Importing this module sets those of MLflow's environment variables that the user has not set:
no telemetry, a quiet console (its links would spoil `--json`), and one attempt per request (a
repeated "create" could make two runs). mlflow reads some of them when it is first imported.
"""

from __future__ import annotations

import json
import math
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

import numpy as np
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from explorer.places import Place
from search_spaces.errors import InputError, RunError

Status = Literal["running", "finished", "failed", "interrupted"]
Kind = Literal["exploration", "training", "point"]
History: TypeAlias = Sequence[Mapping[str, float]]
Item = TypeVar("Item")

_RUN_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_KEY_TAG: dict[str, str] = {
    "exploration": "exploration_id",
    "training": "trial_id",
    "point": "measurement_id",
}
_UID_TAG = "exploration_uid"
_PARENT_TAG = "mlflow.parentRunId"
_DATABASES = ("postgresql", "mysql", "mssql")
_CONTACT_TIMEOUT_S = 2.0
_NUM_THREADS = 8  # fewer than the connections that mlflow keeps
_TABLE_FILE = "table.json"


class TrackingUnavailableError(RunError):
    """MLflow could not be reached or refused; nothing is lost, `Tracker.project` it later."""


@dataclass(frozen=True)
class TrackedPoint:
    """A point of the JSON contract, with what makes it one run.

    Attributes:
        measurement_id: identity among the points of the exploration, the same at every projection.
        point: mapping with method, conditioning, metrics, costs, test_metrics, num_seeds.
        is_on_frontier: whether nothing dominates it now.
    """

    measurement_id: str
    point: Mapping[str, Any]
    is_on_frontier: bool


@dataclass(frozen=True)
class TrackedTraining:
    """A trial's curves: `history` as in `ExplorationRecord`, by epoch."""

    trial_id: str
    params: Mapping[str, Any]
    history: History


@dataclass(frozen=True)
class ExplorationRecord:
    """All that MLflow shall show of one exploration.

    Attributes:
        exploration_id: name of the parent run.
        uid: identity of the exploration among all that share the server.
        status: in our words; an interrupted one can be resumed.
        created: when it began, in seconds since 1970.
        params: the spec; nested mappings become dotted names.
        tags: of the parent run.
        metrics: of the parent run, such as elapsed seconds.
        history: the parent's curves: rows of values by ascending `step`, with or without the
            `time` in seconds since 1970. A step that was sent is never sent again.
        trainings: the trials that trained.
        points: every frontier point and every trained baseline, complete: the others leave the
            front. None while the front is not known, which leaves the points as they are.
        table: measurement table as columns, or None to leave it out.
        files: existing files, logged under their own names.
    """

    exploration_id: str
    uid: str
    status: Status
    created: float
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    history: History = ()
    trainings: Sequence[TrackedTraining] = ()
    points: Sequence[TrackedPoint] | None = None
    table: Mapping[str, NDArray[Any]] | None = None
    files: Sequence[Path] = ()


def tracking_uri(runs_dir: Place) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, otherwise the SQLite file of the runs directory.

    Raises:
        InputError: the runs directory is remote, where SQLite cannot live, and no URI is set.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    if not isinstance(runs_dir, Path):
        raise InputError(
            f"tracking: MLflow's SQLite file cannot lie in {runs_dir}; set MLFLOW_TRACKING_URI to "
            f"a server, or run with --set tracking=false"
        )
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


class Tracker:
    """Writes explorations into one MLflow experiment; created without touching the server.

    Args:
        uri: tracking URI.
        experiment: name of the MLflow experiment, created on first use.
        artifacts_dir: where artifacts lie when a database is written to directly; a SQLite file
            has them beside it in `mlartifacts/`, a server in its own place.
    """

    def __init__(self, uri: str, *, experiment: str, artifacts_dir: Place | None = None) -> None:
        self.uri = uri
        self.experiment = experiment
        self.artifacts_dir = artifacts_dir

    def project(self, record: ExplorationRecord) -> str:
        """Make MLflow show exactly this record; returns the parent's run id.

        Whatever is missing is created and whatever differs is updated.

        Raises:
            TrackingUnavailableError: MLflow is away or refuses; what was sent so far stays.
            ValueError: a file does not exist.
        """
        missing = [str(path) for path in record.files if not path.is_file()]
        if missing:
            raise ValueError(f"expected existing files, missing: {', '.join(missing)}")
        with self.connected() as client:
            experiment_id = self._experiment_id(client)
            projection = _Projection(client, experiment_id, record, _num_threads(self.uri))
            projection.send()
            return projection.parent.info.run_id  # type: ignore[no-any-return]

    def parent_run(self, client: MlflowClient, uid: str) -> Run | None:
        """The run of an exploration, by the `uid` of its record; None where it is not shown yet."""
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return None
        wanted = f"tags.{_UID_TAG} = '{uid}' and tags.kind = 'exploration'"
        found = client.search_runs([experiment.experiment_id], wanted, max_results=1)
        return found[0] if found else None

    @contextmanager
    def connected(self) -> Iterator[MlflowClient]:
        """A client, whose failures become a `TrackingUnavailableError` in one line."""
        try:
            _contact(self.uri)
            yield MlflowClient(self.uri)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrackingUnavailableError(
                f"tracking: MLflow at {_without_login(self.uri)}: {reason}"
            ) from error

    def _experiment_id(self, client: MlflowClient) -> str:
        known = client.get_experiment_by_name(self.experiment)
        if known is not None:
            return str(known.experiment_id)
        place = _artifact_uri(self.uri, self.artifacts_dir)
        kind = {"mlflow.experimentKind": "custom_model_development"}  # how its pages look
        return str(client.create_experiment(self.experiment, place, tags=kind))


class _Projection:
    """One record on its way into MLflow, and the runs that were found there."""

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        record: ExplorationRecord,
        num_threads: int,
    ) -> None:
        self.client, self.experiment_id, self.record = client, experiment_id, record
        self.num_threads = num_threads
        self.known = self._search()
        self.parent = self._run("exploration", record.exploration_id, record.exploration_id)

    def send(self) -> None:
        record = self.record
        self._write(
            self.parent,
            params=_flat(record.params),
            tags=record.tags,
            history=record.history,
        )
        self._for_each(record.trainings, self._send_training)
        if record.points is not None:
            self._send_points(record.points)
        run_id, tags = self.parent.info.run_id, {}
        if record.table is not None:
            self.client.log_text(run_id, _table_json(record.table), _TABLE_FILE)
            # what MLflow's table view looks for
            tags["mlflow.loggedArtifacts"] = json.dumps([{"path": _TABLE_FILE, "type": "table"}])
        for path in record.files:
            self.client.log_artifact(run_id, str(path))
        status = _RUN_STATUS[record.status]
        self._write(self.parent, metrics=record.metrics, tags=tags, status=status)

    def _send_training(self, training: TrackedTraining) -> None:
        run = self._run("training", training.trial_id, training.trial_id)
        self._write(run, params=training.params, history=training.history, status="FINISHED")

    def _send_points(self, points: Sequence[TrackedPoint]) -> None:
        shown = {tracked.measurement_id for tracked in points}
        left = [
            run for (kind, key), run in self.known.items() if kind == "point" and key not in shown
        ]
        self._for_each(points, self._send_point)
        self._for_each(left, lambda run: self._write(run, tags={"frontier": "false"}))

    def _send_point(self, tracked: TrackedPoint) -> None:
        tags = {
            "frontier": str(tracked.is_on_frontier).lower(),
            "num_seeds": str(tracked.point["num_seeds"]),
        }
        run = self._run("point", tracked.measurement_id, _run_name(tracked.point), tags=tags)
        self._write(
            run,
            params={"method": tracked.point["method"], **tracked.point["conditioning"]},
            metrics=_point_metrics(tracked.point),
            tags=tags,
            status="FINISHED",
        )

    def _for_each(self, items: Iterable[Item], send: Callable[[Item], None]) -> None:
        """Send children side by side; the first failure is raised, and no more are begun."""
        if self.num_threads == 1:
            for item in items:
                send(item)
            return
        pool = ThreadPoolExecutor(self.num_threads)
        try:
            for _ in pool.map(send, items):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def _search(self) -> dict[tuple[str, str], Run]:
        """The exploration's runs by kind and key; of those that are there twice, the first."""
        found: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.{_UID_TAG} = '{self.record.uid}'",
                max_results=1000,
                page_token=token,
            )
            found += page
            token = page.token
            if not token:
                break
        known: dict[tuple[str, str], Run] = {}
        for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)):
            kind = run.data.tags["kind"]
            if known.setdefault((kind, run.data.tags[_KEY_TAG[kind]]), run) is not run:
                self.client.delete_run(run.info.run_id)
        return known

    def _run(
        self, kind: Kind, key: str, name: str, *, tags: Mapping[str, str] | None = None
    ) -> Run:
        """The run that is there, otherwise a new one."""
        identity = {_UID_TAG: self.record.uid, "kind": kind, _KEY_TAG[kind]: key}
        is_parent = kind == "exploration"
        if not is_parent:
            identity[_PARENT_TAG] = self.parent.info.run_id
        run = self.known.get((kind, key))
        if run is None:
            return self.client.create_run(
                self.experiment_id,
                start_time=int(1000 * self.record.created) if is_parent else None,
                tags={**(tags or {}), **identity},
                run_name=name,
            )
        # A parent that was there twice may have left its children with the one that is deleted.
        self._write(run, tags=identity)
        return run

    def _write(
        self,
        run: Run,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        history: History = (),
        status: str | None = None,
    ) -> None:
        """Bring a run up to date; asks the server for nothing when it already is.

        Parameters cannot be changed once logged: those that the run has are left alone.
        """
        now_ms = int(time.time() * 1000)
        new_params = [
            Param(tag_name(name), str(value))
            for name, value in _flat(params or {}).items()
            if tag_name(name) not in run.data.params
        ]
        new_metrics = [
            Metric(tag_name(name), float(value), now_ms, 0)
            for name, value in (metrics or {}).items()
            if _is_finite(value) and run.data.metrics.get(tag_name(name)) != float(value)
        ]
        new_metrics += _new_steps(run, history)
        tags = {**(tags or {}), **({"last_step": _last_step(history)} if history else {})}
        new_tags = [
            RunTag(name, value) for name, value in tags.items() if run.data.tags.get(name) != value
        ]
        parts = zip_longest(_parts(new_metrics, 800), _parts(new_params, 100), fillvalue=())
        *first, (last_metrics, last_params) = [*parts] or [((), ())]
        for some_metrics, some_params in first:
            self.client.log_batch(run.info.run_id, some_metrics, some_params)
        # with the last values: `last_step` says that all are there
        if last_metrics or last_params or new_tags:
            self.client.log_batch(run.info.run_id, last_metrics, last_params, new_tags)
        if status == "RUNNING" != run.info.status:
            self.client.update_run(run.info.run_id, status=status)
        elif status is not None and status != run.info.status:
            self.client.set_terminated(run.info.run_id, status)


def _new_steps(run: Run, history: History) -> list[Metric]:
    """Rows that the run does not have yet.

    Their times depend on the rows alone: a row that is sent twice is stored once.
    """
    last_step = int(run.data.tags.get("last_step", "-1"))
    return [
        Metric(tag_name(name), float(value), time_ms, int(row["step"]))
        for index, row in enumerate(history)
        if row["step"] > last_step
        for time_ms in [int(1000 * row["time"]) if "time" in row else run.info.start_time + index]
        for name, value in row.items()
        if name not in ("step", "time") and _is_finite(value)
    ]


def _last_step(history: History) -> str:
    return str(int(history[-1]["step"]))


def _contact(uri: str) -> None:
    """Ask a server for any answer at all, so that one that is away costs no more than this.

    Raises:
        OSError: it is away.
    """
    if not _is_server(uri):
        return
    try:
        request = Request(_without_login(uri), method="HEAD")
        with urlopen(request, timeout=_CONTACT_TIMEOUT_S):
            pass
    except HTTPError:
        pass
    except URLError as error:
        # A certificate that only MLflow's own settings accept is an answer too.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _num_threads(uri: str) -> int:
    return _NUM_THREADS if _is_server(uri) else 1


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def _artifact_uri(uri: str, artifacts_dir: Place | None) -> str | None:
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        artifacts_dir = database.parent / "mlartifacts"
    elif not uri.startswith(_DATABASES):
        return None
    return artifacts_dir.resolve().as_uri() if artifacts_dir else None


def _point_metrics(point: Mapping[str, Any]) -> dict[str, float]:
    tested = {f"test_{name}": value for name, value in point["test_metrics"].items()}
    return {**point["metrics"], **tested, **point["costs"]}


def _run_name(point: Mapping[str, Any]) -> str:
    values = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in point["conditioning"].items()
    )
    return " ".join([point["method"], *values])


def _flat(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def tag_name(name: str) -> str:
    """A name with the characters that MLflow refuses replaced."""
    return re.sub(r"[^\w/.:\- ]", "_", name)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _parts(items: list[Item], size: int) -> list[list[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _table_json(table: Mapping[str, NDArray[Any]]) -> str:
    """Columns and rows as pandas' "split" layout has them; null for NaN."""
    columns = (np.asarray(values).tolist() for values in table.values())
    rows = [
        [None if isinstance(value, float) and not math.isfinite(value) else value for value in row]
        for row in zip(*columns, strict=True)
    ]
    return json.dumps({"columns": list(table), "data": rows})
