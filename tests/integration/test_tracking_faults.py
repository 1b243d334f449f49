"""A real tracking server that is away, killed, failing or too late: every point is there once."""

import itertools
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from explorer.measurements import measurements_table
from explorer.progress import ProgressReport
from explorer.sending import Sender, send, tracked
from explorer.specs import load_spec
from explorer.store import measurements_store, read_json, set_state, write_json, write_text
from tests.conftest import measured

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NUM_POINTS = 12


class Server:
    """`mlflow server` on a port and a database of its own; it can be started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.process = subprocess.Popen(
            command,
            cwd=self.folder,
            # seven processes less, for jobs that nobody gives it
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self._answers, timeout_s=300)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            return _forward(self.port, "GET", "/health", {}, b"")[0] == 200
        except OSError:
            return False

    def runs(self, kind: str) -> list[Any]:
        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name("explorations")
        if experiment is None:
            return []
        return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))

    def points(self) -> Counter[str]:
        return Counter(run.data.tags["measurement_id"] for run in self.runs("point"))


Fault = Callable[[str, str], str]  # method and path to "", "500" or "silence"


class Proxy(ThreadingHTTPServer):
    """Stands before a server, and answers some requests with an error or not at all."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = port
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.fault: Fault = lambda method, path: ""
        self.is_over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _answer(self) -> None:
        fault = self.server.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, kind, answer = 500, "application/json", b'{"error_code": "INTERNAL_ERROR"}'
        if fault != "500":
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            try:
                status, kind, answer = _forward(
                    self.server.behind, self.command, self.path, headers, body
                )
            except OSError:
                return  # closes the connection
        if fault == "silence":
            self.server.is_over.wait(60)
            return
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = _answer  # noqa: N815 - as http.server calls

    def log_message(self, *_: Any) -> None:
        """Nothing: stderr is the test's."""


def _forward(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, str, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read()
    finally:
        connection.close()


def until(condition: Callable[[], Any], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of the server, which runs; the address that explorations know."""
    server.start()
    proxy = Proxy(server.port)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    yield proxy
    proxy.is_over.set()
    proxy.shutdown()
    thread.join()
    proxy.server_close()


@pytest.fixture
def folder(tmp_path: Path, tiny_spec: Path) -> Path:
    """An exploration that is over, all of its points on the front."""
    folder = tmp_path / "runs" / "tiny-1"
    write_text(folder / "spec.yaml", load_spec(tiny_spec, ["tracking=true"]).to_yaml())
    state = {
        "status": "finished",
        **dict.fromkeys(("spec_digest", "data_digest", "code_version"), "x"),
        "created": time.time(),
        "elapsed_s": {},
        "objectives": [
            {"name": "dice", "direction": "maximize", "unit": ""},
            {"name": "macs", "direction": "minimize", "unit": "MAC"},
        ],
    }
    write_json(folder / "state.json", state)
    rows = [
        measured(phi, phi, time=time.time(), metrics={"dice": phi}, costs={"macs": 1e6 * (1 + phi)})
        for phi in (index / 100 for index in range(NUM_POINTS))
    ]
    measurements_store(folder).append(measurements_table(rows))
    return folder


def assert_exactly_once(server: Server) -> None:
    expected = {f"tiny-1/sshn/phi={index / 100}" for index in range(NUM_POINTS)}
    assert server.points() == Counter(expected)
    (parent,) = server.runs("exploration")
    points = server.runs("point")
    assert {run.info.status for run in [parent, *points]} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in points} == {parent.info.run_id}
    assert {run.data.tags["frontier"] for run in points} == {"true"}
    assert all(set(run.data.metrics) == {"dice", "macs", "flops"} for run in points)
    assert all(set(run.data.params) == {"method", "phi"} for run in points)
    artifacts = MlflowClient(server.uri).list_artifacts(parent.info.run_id)
    assert {file.path for file in artifacts} == {"table.json", "measurements.parquet"}


def test_server_killed_in_the_middle(server: Server, proxy: Proxy, folder: Path) -> None:
    """And away until the run is over; a resumed run delivers what is missing."""
    num_created = itertools.count()

    def kill_at_the_sixth(method: str, path: str) -> str:
        if path.endswith("runs/create") and next(num_created) == 5:
            server.kill()
        return ""

    proxy.fault = kill_at_the_sixth
    reason = Sender(folder).finish(300)
    assert reason is not None
    assert reason.startswith(f"tracking: MLflow at {proxy.uri}: ")
    server.start()
    assert server.points().total() < NUM_POINTS
    spec = load_spec(folder / "spec.yaml")
    with tracked(folder, spec, ProgressReport(quiet=True)):
        set_state(folder, status="finished")
    assert read_json(folder / "state.json")["tracking"] == "delivered"
    assert_exactly_once(server)


def test_server_that_answers_errors(server: Server, proxy: Proxy, folder: Path) -> None:
    """First to everything, then to every fifth request, then not any more."""
    proxy.fault = lambda method, path: "" if method == "HEAD" else "500"
    reason = Sender(folder).finish(120)
    assert reason is not None
    assert "500" in reason
    assert server.runs("exploration") == []
    requests = Counter[str]()

    def every_fifth(method: str, path: str) -> str:
        requests[method] += 1
        return "500" if method == "POST" and requests[method] % 5 == 0 else ""

    proxy.fault = every_fifth
    for _ in range(100):
        if send(folder) is None:
            break
    assert requests["POST"] > 5
    assert_exactly_once(server)


def test_server_that_is_too_late_after_having_accepted(
    server: Server, proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked of it for the first time is carried out and never answered."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    silent = Counter[str]()

    def every_fourth_write(method: str, path: str) -> str:
        name = path.rpartition("/")[2]
        if name not in ("create", "log-batch", "update"):
            return ""
        silent[name] += 1
        return "silence" if silent[name] % 4 == 1 else ""

    proxy.fault = every_fourth_write
    reasons = [send(folder)]
    while reasons[-1] is not None:
        assert "timed out" in reasons[-1].lower()
        assert len(reasons) < 50
        reasons.append(send(folder))
    assert len(reasons) > 2
    assert min(silent.values()) > 4  # so that each kind was met with silence more than once
    proxy.fault = lambda method, path: ""
    assert send(folder) is None
    assert_exactly_once(server)


@pytest.mark.ray
def test_server_that_is_away_for_a_whole_run(
    server: Server, explorer: Any, tiny_spec: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "away"
    arguments = ("--runs-dir", runs, "--json")
    ended = explorer(
        "run", tiny_spec, "--set", "tracking=true", *arguments, MLFLOW_TRACKING_URI=server.uri
    )
    assert ended.code == 0
    assert "explorer resume tiny-1 sends it" in ended.stderr
    assert read_json(runs / "tiny-1" / "state.json")["tracking"] == "pending"
    server.start()
    for _ in range(2):
        ended = explorer("resume", "tiny-1", *arguments, MLFLOW_TRACKING_URI=server.uri)
        assert ended.code == 0
        assert read_json(runs / "tiny-1" / "state.json")["tracking"] == "delivered"
        points = server.points()
        assert set(points.values()) == {1}
        assert len(server.runs("exploration")) == 1
        front = [run for run in server.runs("point") if run.data.params["method"] == "sshn"]
        assert all(run.data.tags["frontier"] == "true" for run in front)
        assert len(server.runs("training")) == 3


def test_database_that_another_process_has_locked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, then named in one line; the table is intact, and sent once it is free."""
    path = tmp_path / "locked.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE of_another (x)")
    database.commit()
    database.execute("BEGIN EXCLUSIVE")
    before = measurements_store(folder).version()
    reason = Sender(folder).finish(120)
    assert reason is not None
    assert "database is locked" in reason
    assert str(path) in reason
    assert measurements_store(folder).version() == before
    database.rollback()
    database.close()
    assert send(folder) is None
    client = MlflowClient(f"sqlite:///{path}")
    experiment = client.get_experiment_by_name("explorations")
    assert experiment is not None
    points = client.search_runs([experiment.experiment_id], "tags.kind = 'point'")
    assert len({run.data.tags["measurement_id"] for run in points}) == len(points) == NUM_POINTS
