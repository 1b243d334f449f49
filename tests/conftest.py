"""Fixtures and settings that all tests share."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Read when ray and mlflow are imported or started, so set before any test module is.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Given here, Ray does not write a token of its own under the user's home.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

settings.register_profile("tests", derandomize=True, database=None, deadline=None)
settings.load_profile("tests")

# Tests without any of these markers have the default of pyproject.toml.
TIMEOUT_S = {"slow": 1800, "cluster": 600, "ray": 180, "gpu": 180, "browser": 60}


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
    """Keep runs and tracking in the test's own folder, and never join a running cluster."""
    monkeypatch.setenv("EXPLORER_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


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
