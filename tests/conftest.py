"""Fixtures and settings that all tests share."""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from explorer.measurements import Measurement

# Read when ray and mlflow are imported or started, so set before any test module is.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers step back behind every other process by default: on a busy machine they starve.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Given here, Ray does not write a token of its own under the user's home.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

settings.register_profile("tests", derandomize=True, database=None, deadline=None)
settings.load_profile("tests")

# Tests without any of these markers have the default of pyproject.toml.
TIMEOUT_S = {"slow": 1800, "cluster": 600, "ray": 400, "gpu": 180, "browser": 60}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        limits = [limit for name, limit in TIMEOUT_S.items() if item.get_closest_marker(name)]
        if limits and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(max(limits)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def isolate_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs and tracking in the test's own folder, and never join a running cluster.

    Decoded images are not kept.
    """
    monkeypatch.setenv("EXPLORER_CACHE_DIR", "")
    monkeypatch.setenv("EXPLORER_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The endpoint of an object store of this process's own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(object_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://NAME of a new bucket, which the AWS_* variables lead to."""
    import boto3

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": object_store,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{secrets.token_hex(4)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real data sets; skips where none is named, fails where it is missing."""
    name = os.environ.get("EXPLORER_DATA_DIR")
    if not name:
        pytest.skip("real data: EXPLORER_DATA_DIR is not set")
    path = Path(name)
    if not path.is_dir():
        pytest.fail(f"EXPLORER_DATA_DIR: expected a folder, {path} is none")
    return path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The one local Ray cluster that all tests marked `ray` share."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def row(
    phi: float | None,
    dice: float | None,
    macs: float | None = None,
    *,
    method: str = "sshn",
    seed: int = 0,
    split: str = "val",
    **changes: Any,
) -> dict[str, Any]:
    """A row of a table of measurements, by column; multiply-adds rise with phi unless given."""
    return {
        "trial_id": f"{method}-s{seed}",
        "method": method,
        "seed": seed,
        "split": split,
        "setting_id": f"phi{phi}",
        "evaluation_s": 0.5,
        "conditioning/phi": phi,
        "metric/dice": dice,
        "se/dice": 0.01,
        "cost/macs": 1e6 * (1 + (phi or 0)) if macs is None else macs,
        "cost/train_s": 10.0,
    } | changes


def columns_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Rows as one array per column, as `measurements.columns_of` gives them."""
    columns = {}
    for name in dict.fromkeys(name for each in rows for name in each):
        values = [each.get(name) for each in rows]
        if any(isinstance(value, str) for value in values):
            columns[name] = np.array(values, dtype=object)
        else:
            columns[name] = np.array([np.nan if v is None else v for v in values], dtype=float)
    return columns


def measured(
    phi: float,
    dice: float,
    *,
    method: str = "sshn",
    seed: int = 0,
    split: str = "val",
    **changes: Any,
) -> "Measurement":
    """The measurement of a setting of `asked-1`; one label lies 0.1 lower."""
    from explorer.measurements import Measurement, setting_id

    fields = {
        "exploration_id": "asked-1",
        "trial_id": f"{method}-s{seed}",
        "method": method,
        "seed": seed,
        "split": split,
        "data_digest": "0",
        "code_version": "0",
        "setting_id": setting_id({"phi": phi}),
        "num_samples": 8,
        "evaluation_s": 0.1,
        "time": 0.0,
        "conditioning": {"phi": phi},
        "metrics": {"dice": dice, "dice/region1": dice - 0.1},
        "costs": {"macs": 1e6 * (1 + phi), "train_s": 1.0},
    }
    return Measurement(**{**fields, **changes})


TINY_SPEC = """\
name: tiny
dataset: {name: synthetic, size: [16, 16], options: {num_images: 40}}
model: {width: 4, stages: 3}
train: {epochs: 2, batch_size: 8, learning_rate: 1.0e-2}
explore: {num_points: 5, batch_size: 2}
baselines: [{method: fixed, grid: {phi: [0.125, 0.4]}}]
tracking: false
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line that a user's mistake gives, after lines of progress."""
        assert "Traceback" not in self.stderr, self.stderr
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert lines == self.stderr.splitlines()[-1:], self.stderr
        return lines[0].removeprefix("error: ")


class Command:
    """A console script, in processes of their own."""

    def __init__(self, name: str = "explorer") -> None:
        self.path = Path(sys.executable).with_name(name)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
        """Start it as the leader of a session of its own, which `kill` ends as a whole."""
        unset = ("RAY_ADDRESS", "COLUMNS", "RAY_AUTH_MODE")  # as a user has them
        env = {k: v for k, v in os.environ.items() if k not in unset}
        process = subprocess.Popen(
            [str(self.path), *map(str, arguments)],
            env=env | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # in the background of a shell, Ctrl-C is ignored, and that is inherited
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout_s: float = 600) -> Ended:
        """Wait for it; nothing of it is left behind."""
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            self.kill(process)
        return Ended(process.returncode, stdout, stderr)

    def __call__(self, *arguments: Any, **environment: str) -> Ended:
        return self.finish(self.start(*arguments, **environment))

    def members(self, process: subprocess.Popen[str], title: str) -> dict[int, str]:
        """Processes that it started, by number, whose command line begins with a title."""
        lines = {pid: _command_line(pid) for pid in _session_members(process.pid)}
        return {pid: line for pid, line in lines.items() if line.startswith(title)}

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill the process and whatever it started, at once, and wait until all are gone."""
        if process not in self.started:
            return  # gone already; its number may be another's by now
        deadline = time.monotonic() + 30
        while members := _session_members(process.pid):
            assert time.monotonic() < deadline, f"still there: {members}"
            for pid in members:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.poll()
            time.sleep(0.05)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        self.started.remove(process)


def _command_line(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _session_members(session: int) -> list[int]:
    """Running processes of a session, its leader among them."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            members.append(int(entry.name))
    return members


# columns that tell one run of a spec from another, and the version of the code
VOLATILE = ("exploration_id", "code_version", "evaluation_s", "time", "cost/train_s")


def rows_of(folder: Any) -> dict[tuple[str, ...], dict[str, Any]]:
    """The table of an exploration by key, without what may differ between runs of one spec."""
    from explorer.store import measurements_store

    rows = {}
    for row in measurements_store(folder).load().to_pylist():
        kept = {name: value for name, value in row.items() if name not in VOLATILE}
        rows[row["trial_id"], row["split"], row["setting_id"]] = kept
    return rows


@pytest.fixture(scope="session")
def explorer() -> Iterator[Command]:
    command = Command()
    yield command
    for process in [*command.started]:
        command.kill(process)


@pytest.fixture(scope="session")
def ray_command() -> Iterator[Command]:
    command = Command("ray")
    yield command
    for process in [*command.started]:
        command.kill(process)


@pytest.fixture(scope="session")
def table_rows() -> Callable[[Path], dict[tuple[str, ...], dict[str, Any]]]:
    return rows_of


@pytest.fixture(scope="session")
def tiny_spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec that trains three models and explores one in seconds."""
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    path.write_text(TINY_SPEC)
    return path


@dataclass(frozen=True)
class Finished:
    """The exploration that all tests share; they leave it as it is."""

    runs_dir: Path
    ended: Ended
    id: str = "tiny-1"

    @property
    def folder(self) -> Path:
        return self.runs_dir / self.id


@pytest.fixture(scope="session")
def finished(
    explorer: Command, tiny_spec: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    runs_dir = tmp_path_factory.mktemp("finished") / "runs"
    uri = f"sqlite:///{runs_dir}/mlflow.db"
    ended = explorer(
        "run",
        tiny_spec,
        "--runs-dir",
        runs_dir,
        "--set",
        "tracking=true",
        "--json",
        MLFLOW_TRACKING_URI=uri,
    )
    assert ended.code == 0, ended.stderr
    return Finished(runs_dir, ended)
