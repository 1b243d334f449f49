"""The services of deploy/docker-compose.yaml, run as processes: one exploration through them."""

import json
import shutil
import tempfile
import urllib.error
import urllib.request

import pytest
from mlflow.tracking import MlflowClient

from tests.conftest import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def keys_of(stored, bucket):
    pages = stored.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def require_tracked(services, stored, exploration_id, front):
    """The front is in MLflow, each of its points once, and the files are in the bucket."""
    client = MlflowClient(services.environment("ray-head")["MLFLOW_TRACKING_URI"])
    (parent,) = client.search_runs(["1"], f"tags.exploration_id = '{exploration_id}'")
    assert parent.info.status == "FINISHED"
    children = (
        f"tags.mlflow.parentRunId = '{parent.info.run_id}' AND tags.frontier = 'true' "
        f"AND params.method = '{front[0]['method']}'"
    )
    found = sorted(
        (float(run.data.params["phi"]), run.data.metrics["dice"], run.data.metrics["macs"])
        for run in client.search_runs(["1"], children)
    )
    expected = sorted(
        (point["conditioning"]["phi"], point["metrics"]["dice"], point["costs"]["macs"])
        for point in front
    )
    assert found == [pytest.approx(point) for point in expected]
    listed = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"table.json", "measurements.parquet", "frontier.html"} <= listed
    prefix = parent.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    assert {f"{prefix}/{name}" for name in listed} <= keys_of(stored, "mlflow")


def test_front_is_tracked_once_on_postgresql_and_object_store(
    services, stored, explorer, tiny_spec, tmp_path
):
    environment = {
        "MLFLOW_TRACKING_URI": services.environment("ray-head")["MLFLOW_TRACKING_URI"],
        "EXPLORER_RUNS_DIR": str(tmp_path),
    }
    changes = ("--set", "tracking=true", "--set", "name=tracked")
    ended = explorer("run", tiny_spec, *changes, "--json", **environment)
    assert ended.code == 0, ended.stderr
    told = json.loads(ended.stdout)
    require_tracked(services, stored, told["exploration_id"], told["frontier"])


@pytest.fixture(scope="module")
def cluster(services):
    """The services with their Ray head and a worker."""
    head, dashboard, agents = free_port(), free_port(), [free_port(), free_port()]
    services.replace(
        {
            "ray-head:6379": f"127.0.0.1:{head}",
            "--port=6379": f"--port={head}",
            "ray-head:8265": f"127.0.0.1:{dashboard}",
            "--dashboard-port=8265": f"--dashboard-port={dashboard}",
            "--dashboard-host=0.0.0.0": "--dashboard-host=127.0.0.1",
        }
    )
    folders = [tempfile.mkdtemp(prefix="ray_", dir="/tmp") for _ in agents]  # sockets: short names
    for name, agent, folder in zip(("ray-head", "ray-worker"), agents, folders, strict=True):
        listen = "--dashboard-agent-listen-port"
        services.replace(
            {
                f"{listen}=52365": f"{listen}={agent}",
                "127.0.0.1:52365": f"127.0.0.1:{agent}",
            }
        )
        # what containers have of their own: address, folder, ports, memory
        process = services.start(
            name,
            "--node-ip-address=127.0.0.1",
            f"--temp-dir={folder}",
            f"--metrics-export-port={free_port()}",
            "--object-store-memory=150000000",
        )
        services.wait_until_healthy(name, process)
    yield services
    services.stop()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def test_submitted_job_leaves_its_results_in_the_stores(cluster, stored, explorer, tiny_spec):
    environment = cluster.environment("ray-head")
    sets = ("--set", "tracking=true", "--set", "name=submitted")
    ended = explorer("submit", tiny_spec, *sets, "--wait", "--json", **environment)
    assert ended.code == 0, ended.stderr
    job = json.loads(ended.stdout)
    assert (job["status"], job["runs_dir"]) == ("SUCCEEDED", "s3://explorer/runs")
    exploration_id = job["exploration_id"]
    assert f"runs/{exploration_id}/state.json" in keys_of(stored, "explorer")
    asked = explorer("frontier", exploration_id, "--json", **environment)
    assert asked.code == 0, asked.stderr
    front = json.loads(asked.stdout)["frontier"]
    require_tracked(cluster, stored, exploration_id, front)


def test_http_service_answers_from_the_object_store(services, explorer, tiny_spec, secrets_dir):
    environment = services.environment("explorer")
    runs_dir = ("--runs-dir", "s3://explorer/runs")
    ended = explorer("run", tiny_spec, "--set", "name=served", *runs_dir, **environment)
    assert ended.code == 0, ended.stderr
    port = free_port()
    services.replace(
        {
            "--port=8080": f"--port={port}",
            "127.0.0.1:8080": f"127.0.0.1:{port}",
            "--host=0.0.0.0": "--host=127.0.0.1",
        }
    )
    services.wait_until_healthy("explorer", services.start("explorer"))
    token = (secrets_dir / "service_token").read_text()
    url = f"http://127.0.0.1:{port}/explorations"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=30)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        told = json.load(answer)
    assert "served-1" in [row["exploration_id"] for row in told]
