"""The projection of explorations into MLflow: one parent run each, child runs for what it holds.

The table is the truth and MLflow a view of it, so all of this may be sent again at any time: runs
are looked up by their tags before they are created, values are compared before they are logged,
and projecting the same record twice changes nothing. A server that was away is caught up with in
the same way: `project` the record once more, with a new `Tracker`.

    kind=exploration  tag exploration_id; params = the spec; the table, figures and the page
    kind=training     tags mlflow.parentRunId, trial_id; curves over epochs
    kind=point        tags mlflow.parentRunId, measurement_id, frontier=true|false; params = method
                      and conditioning; metrics dice, dice/LABEL, test_dice, macs, flops, ...

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

import numpy as np
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from search_spaces.errors import InputError, RunError

Status = Literal["running", "finished", "failed", "interrupted"]
Item = TypeVar("Item")

_RUN_STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}
_KEY_TAG = {"exploration": "exploration_id", "training": "trial_id", "point": "measurement_id"}
_PARENT_TAG = "mlflow.parentRunId"
_CONTACT_TIMEOUT_S = 2.0
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
    """A trial's curves: `history` holds its reports in order, with `epoch` as the step."""

    trial_id: str
    params: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class ExplorationRecord:
    """All that MLflow shall show of one exploration.

    Attributes:
        exploration_id: identity of the parent run.
        status: in our words; an interrupted one can be resumed.
        params: the spec; nested mappings become dotted names.
        tags: of the parent run.
        metrics: of the parent run, such as hypervolume or elapsed seconds.
        points: every frontier point and every trained baseline, complete.
        trainings: the trials that trained.
        table: measurement table as columns, or None to leave it out.
        files: existing files, logged under their own names.
    """

    exploration_id: str
    status: Status
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    points: Sequence[TrackedPoint] = ()
    trainings: Sequence[TrackedTraining] = ()
    table: Mapping[str, NDArray[Any]] | None = None
    files: Sequence[Path] = ()


def tracking_uri(runs_dir: str | Path) -> str:
    """`MLFLOW_TRACKING_URI` where it is set, otherwise the SQLite file of the runs directory.

    Raises:
        InputError: the runs directory is remote, where SQLite cannot live, and no URI is set.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    if "://" in str(runs_dir):
        raise InputError(
            f"tracking: SQLite cannot live in {runs_dir}; set MLFLOW_TRACKING_URI to a server"
        )
    return f"sqlite:///{Path(runs_dir).resolve() / 'mlflow.db'}"


def deliver(send: Callable[[], object]) -> str | None:
    """Run a delivery; None when it went through, otherwise in one line why it is pending."""
    try:
        send()
    except TrackingUnavailableError as error:
        return str(error)
    return None


class Tracker:
    """Writes explorations into one MLflow experiment; created without touching the server.

    Every method raises `TrackingUnavailableError` when MLflow is away or refuses. After the first
    such failure this object raises at once, without asking again, so that a run is held up once
    only; a new object tries again.

    Args:
        uri: tracking URI. Beside a SQLite file, artifacts lie in `mlartifacts/`; a server has
            its own place.
        experiment: name of the MLflow experiment, created on first use.
    """

    def __init__(self, uri: str, *, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._failure: str | None = None

    def project(self, record: ExplorationRecord) -> str:
        """Make MLflow show exactly this record; returns the parent's run id.

        Whatever is missing is created and whatever differs is updated: the one entry point for
        final results and for catching up.
        """
        exploration_id = record.exploration_id
        with self._delivery() as client:
            parent = self._find(client, exploration_id) or self._create_parent(
                client, exploration_id
            )
            _write(client, parent, params=_flat(record.params), tags=record.tags)
        self.log_points(exploration_id, record.points)
        for training in record.trainings:
            self.log_training(
                exploration_id, training.trial_id, training.history, params=training.params
            )
        if record.table is not None:
            self.log_table(exploration_id, record.table)
        self.log_artifacts(exploration_id, record.files)
        self.finish(exploration_id, record.status, record.metrics)
        return str(parent.info.run_id)

    def start(self, exploration_id: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
        """Mark an exploration as running, a new or a resumed one; returns the parent's run id."""
        with self._delivery() as client:
            parent = self._find(client, exploration_id) or self._create_parent(
                client, exploration_id
            )
            _write(client, parent, params=_flat(params), tags=tags, status="RUNNING")
            return str(parent.info.run_id)

    def log_points(self, exploration_id: str, points: Sequence[TrackedPoint]) -> None:
        """One child run per point; points tracked before and not among these leave the front."""
        with self._delivery() as client:
            parent = self._parent(client, exploration_id)
            known = self._children(client, parent, "point")
            for tracked in points:
                tags = {
                    "frontier": str(tracked.is_on_frontier).lower(),
                    "num_seeds": str(tracked.point["num_seeds"]),
                }
                key, name = tracked.measurement_id, _run_name(tracked.point)
                run = known.pop(key, None) or self._create_child(
                    client, parent, "point", key, name=name, tags=tags
                )
                params = {"method": tracked.point["method"], **tracked.point["conditioning"]}
                metrics = _point_metrics(tracked.point)
                _write(client, run, params=params, metrics=metrics, tags=tags, status="FINISHED")
            for run in known.values():
                _write(client, run, tags={"frontier": "false"})

    def log_training(
        self,
        exploration_id: str,
        trial_id: str,
        history: Sequence[Mapping[str, float]],
        *,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """One child run per trial; reports that it already holds are not sent again."""
        with self._delivery() as client:
            parent = self._parent(client, exploration_id)
            run = self._children(client, parent, "training").get(trial_id) or self._create_child(
                client, parent, "training", trial_id, name=trial_id
            )
            num_logged = int(run.data.tags.get("num_reports", "0"))
            # A timestamp that depends on the row alone: a report sent twice is stored once.
            metrics = [
                Metric(_key(name), float(value), run.info.start_time + row, int(report["epoch"]))
                for row, report in enumerate(history)
                for name, value in report.items()
                if row >= num_logged and name != "epoch" and _is_finite(value)
            ]
            for part in _parts(metrics, 1000):
                client.log_batch(run.info.run_id, metrics=part)
            tags = {"num_reports": str(max(num_logged, len(history)))}
            _write(client, run, params=_flat(params or {}), tags=tags, status="FINISHED")

    def log_table(self, exploration_id: str, table: Mapping[str, NDArray[Any]]) -> None:
        """The table as an artifact that MLflow's own table view opens; replaces the former one."""
        with self._delivery() as client:
            parent = self._parent(client, exploration_id)
            client.log_text(parent.info.run_id, _table_json(table), _TABLE_FILE)
            listing = json.dumps([{"path": _TABLE_FILE, "type": "table"}])
            _write(client, parent, tags={"mlflow.loggedArtifacts": listing})

    def log_artifacts(self, exploration_id: str, files: Sequence[Path]) -> None:
        """Files under their own names; one of the same name is replaced.

        Raises:
            ValueError: a file does not exist.
        """
        missing = [str(path) for path in files if not path.is_file()]
        if missing:
            raise ValueError(f"expected existing files, missing: {', '.join(missing)}")
        with self._delivery() as client:
            parent = self._parent(client, exploration_id)
            for path in files:
                client.log_artifact(parent.info.run_id, str(path))

    def finish(self, exploration_id: str, status: Status, metrics: Mapping[str, float]) -> None:
        """Final status and metrics of the parent run."""
        with self._delivery() as client:
            parent = self._parent(client, exploration_id)
            _write(client, parent, metrics=metrics, status=_RUN_STATUS[status])

    @contextmanager
    def _delivery(self) -> Iterator[MlflowClient]:
        if self._failure is not None:
            raise TrackingUnavailableError(self._failure)
        try:
            _contact(self.uri)
            yield self._connected()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._failure = f"tracking: MLflow at {_without_login(self.uri)}: {reason}"
            raise TrackingUnavailableError(self._failure) from error

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = MlflowClient(self.uri)
            known = client.get_experiment_by_name(self.experiment)
            self._experiment_id = (
                known.experiment_id
                if known is not None
                else client.create_experiment(self.experiment, _artifact_uri(self.uri))
            )
            self._client = client
        return self._client

    def _find(self, client: MlflowClient, exploration_id: str) -> Run | None:
        runs = self._search(client, f"tags.exploration_id = '{exploration_id}'", "exploration")
        return runs.get(exploration_id)

    def _parent(self, client: MlflowClient, exploration_id: str) -> Run:
        run = self._find(client, exploration_id)
        if run is None:
            raise ValueError(f"exploration {exploration_id!r} is not tracked yet; call start first")
        return run

    def _children(self, client: MlflowClient, parent: Run, kind: str) -> dict[str, Run]:
        return self._search(client, f"tags.{_PARENT_TAG} = '{parent.info.run_id}'", kind)

    def _search(self, client: MlflowClient, where: str, kind: str) -> dict[str, Run]:
        """Runs of one kind by the tag that identifies them."""
        found: dict[str, Run] = {}
        token: str | None = None
        while True:
            page = client.search_runs(
                [self._experiment_id],
                f"{where} and tags.kind = '{kind}'",
                max_results=1000,
                page_token=token,
            )
            found |= {run.data.tags[_KEY_TAG[kind]]: run for run in page}
            token = page.token
            if not token:
                return found

    def _create_parent(self, client: MlflowClient, exploration_id: str) -> Run:
        tags = {"kind": "exploration", "exploration_id": exploration_id}
        return client.create_run(self._experiment_id, tags=tags, run_name=exploration_id)

    def _create_child(
        self,
        client: MlflowClient,
        parent: Run,
        kind: str,
        key: str,
        *,
        name: str,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        identity = {_PARENT_TAG: parent.info.run_id, "kind": kind, _KEY_TAG[kind]: key}
        return client.create_run(
            self._experiment_id, tags={**(tags or {}), **identity}, run_name=name
        )


def _write(
    client: MlflowClient,
    run: Run,
    *,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    status: str | None = None,
) -> None:
    """Bring a run up to date; asks the server for nothing when it already is.

    Parameters cannot be changed once logged: those that the run has are left alone.
    """
    now_ms = int(time.time() * 1000)
    new_params = [
        Param(_key(name), str(value))
        for name, value in (params or {}).items()
        if _key(name) not in run.data.params
    ]
    new_metrics = [
        Metric(_key(name), float(value), now_ms, 0)
        for name, value in (metrics or {}).items()
        if _is_finite(value) and run.data.metrics.get(_key(name)) != float(value)
    ]
    new_tags = [
        RunTag(name, value)
        for name, value in (tags or {}).items()
        if run.data.tags.get(name) != value
    ]
    batches = zip_longest(
        _parts(new_metrics, 800), _parts(new_params, 100), _parts(new_tags, 100), fillvalue=()
    )
    for some_metrics, some_params, some_tags in batches:
        client.log_batch(run.info.run_id, some_metrics, some_params, some_tags)
    if status == "RUNNING" != run.info.status:
        client.update_run(run.info.run_id, status=status)
    elif status is not None and status != run.info.status:
        client.set_terminated(run.info.run_id, status)


def _contact(uri: str) -> None:
    """Ask a server for any answer at all, so that one that is away costs no more than this.

    Raises:
        OSError: it is away.
    """
    if not uri.startswith(("http://", "https://")):
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


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def _artifact_uri(uri: str) -> str | None:
    if not uri.startswith("sqlite:///"):
        return None
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    return (database.resolve().parent / "mlartifacts").as_uri()


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


def _key(name: str) -> str:
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
