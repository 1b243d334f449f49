"""An exported network in MLflow's registry, served by MLflow and asked over HTTP."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from explorer.networks import load_network

pytestmark = [pytest.mark.slow, pytest.mark.ray]  # the shared exploration is made by a Ray


@pytest.fixture
def runs_dir(finished, tmp_path):
    """A copy of the shared exploration, which the test's own MLflow knows nothing of yet."""
    shutil.copytree(finished.folder, tmp_path / "own" / finished.id)
    return tmp_path / "own"


@pytest.fixture
def told(explorer, runs_dir, tmp_path):
    """An export whose answer is JSON and that has to go well."""

    def export(*arguments):
        ended = explorer("export", "tiny-1", *arguments, "--runs-dir", runs_dir, "--json")
        assert ended.code == 0, ended.stderr
        return json.loads(ended.stdout)

    return export


@pytest.fixture
def serve():
    """Start `mlflow models serve` on a model; its address once it answers."""
    started = []

    def start(uri):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri]
        command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
        beside = str(Path(sys.executable).parent)  # where uvicorn lies
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": os.pathsep.join([beside, os.environ["PATH"]])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        started.append(process)
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while True:
            try:
                with urlopen(f"{address}/ping", timeout=5):
                    return address
            except (URLError, OSError):
                assert process.poll() is None, "mlflow models serve ended"
                assert time.monotonic() < deadline, "mlflow models serve does not answer"
                time.sleep(0.5)

    yield start
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_registered_network_is_served_and_is_the_exported_one(told, serve, tmp_path):
    budget = told(
        "--max", "macs=1G", "--output", tmp_path / "budget", "--format", "onnx",
        "--register", "cells",
    )  # fmt: skip
    assert budget["registered"] == {
        "name": "cells",
        "version": "1",
        "alias": "macs-1G",
        "uri": "models:/cells@macs-1G",
    }
    setting = told("--at", "phi=0.33", "--output", tmp_path / "setting", "--register", "cells")
    assert setting["registered"]["uri"] == "models:/cells@phi-0_33"
    assert_registry_tells(budget, setting)

    images = 2 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 1
    body = json.dumps({"inputs": images.tolist()}).encode()
    address = serve(setting["registered"]["uri"])
    request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        served = np.array(json.load(answer)["predictions"], dtype=np.float32)
    with torch.inference_mode():
        expected, other = (
            load_network(tmp_path / name)(images).numpy() for name in ("setting", "budget")
        )
    np.testing.assert_allclose(served, expected, rtol=0, atol=1e-5)
    assert abs(served - other).max() > 1e-3


def assert_registry_tells(budget, setting):
    """Both versions are there, of the exploration's parent run, with what is known of them."""
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    first, second = (
        client.get_model_version_by_alias("cells", document["registered"]["alias"])
        for document in (budget, setting)
    )
    assert (int(first.version), int(second.version)) == (1, 2)
    parent = client.get_run(first.run_id)
    assert parent.data.tags["exploration_id"] == "tiny-1"
    assert parent.data.tags["kind"] == "exploration"
    assert parent.info.status == "FINISHED"
    assert second.run_id == first.run_id
    point = budget["point"]
    assert first.tags["exploration_id"] == "tiny-1"
    assert float(first.tags["conditioning/phi"]) == point["conditioning"]["phi"]
    assert float(first.tags["val/dice"]) == point["metrics"]["dice"]
    assert float(first.tags["test/dice"]) == point["test_metrics"]["dice"]
    assert float(first.tags["macs"]) == point["costs"]["macs"]
    assert (second.tags["conditioning/phi"], "val/dice" in second.tags) == ("0.33", False)
    assert first.description.startswith("# tiny-1: segmentation at phi = ")
    assert "Not a medical device" in first.description
    assert len(first.description) <= 5000


def test_registry_that_is_away_leaves_the_exported_folder(explorer, runs_dir, tmp_path):
    ended = explorer(
        "export", "tiny-1", "--output", tmp_path / "o", "--register", "cells",
        "--runs-dir", runs_dir,
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
    )  # fmt: skip
    assert ended.code == 1
    assert "MLflow at http://127.0.0.1:9" in ended.error
    assert load_network(tmp_path / "o").factors
