"""Whole explorations under s3://, each command a process of its own, as on another machine."""

import json
import signal
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from explorer import open_exploration
from explorer.exporting import load_network
from explorer.places import place_of

pytestmark = pytest.mark.ray  # the explorations start Rays of their own


def names_in(folder, pattern):
    return sorted(path.name for path in folder.glob(pattern))


def test_exploration_in_an_object_store_is_that_of_a_disk(
    explorer, finished, tiny_spec, table_rows, bucket, tmp_path, monkeypatch
):
    runs_dir = f"{bucket}/some/runs"
    # evaluated by the driver, which is quicker and gives the same table
    changes = ("tracking=true", "train.checkpoint_every=1", "explore.num_workers=0")
    sets = [part for change in changes for part in ("--set", change)]
    ended = explorer("run", tiny_spec, *sets, "--runs-dir", runs_dir, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["exploration_id"] == "tiny-1"
    folder = place_of(runs_dir) / "tiny-1"
    assert table_rows(folder) == table_rows(finished.folder)
    assert names_in(folder, "*") == [
        "figures",
        "frontier.html",
        "lock",
        "measurements",
        "samples",
        "spec.yaml",
        "state.json",
        "trials",
    ]
    assert names_in(folder, "figures/*") == names_in(finished.folder, "figures/*")
    assert names_in(folder, "trials/*/*") == 3 * ["checkpoint"] + 3 * ["trial.json"]
    assert names_in(folder, "trials/*/checkpoint/*") == 3 * ["best.safetensors"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (parent,) = client.search_runs(["1"], "tags.kind = 'exploration'")
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    figures = names_in(folder, "figures/*.png")
    assert artifacts == {"table.json", "measurements.parquet", "frontier.html", *figures}

    monkeypatch.setenv("EXPLORER_RUNS_DIR", runs_dir)

    def told(command, *arguments, code=0):
        ended = explorer(command, *arguments, "--json")
        assert ended.code == code, ended.stderr
        return json.loads(ended.stdout)

    assert [row["exploration_id"] for row in told("list")] == ["tiny-1"]
    shown = told("show", "tiny-1")
    assert (shown["folder"], shown["tracking"]) == (str(folder), "delivered")
    assert {trial["status"] for trial in shown["trials"]} == {"ok"}
    local = open_exploration(finished.id, finished.runs_dir)
    drawn = tmp_path / "front.png"
    front = told("frontier", "tiny-1", "--compare", "--plot", drawn)["frontier"]
    assert drawn.stat().st_size > 1000
    expected = [point.to_json()["metrics"] for point in local.frontier()]
    assert [point["metrics"] for point in front] == expected
    assert told("query", "tiny-1", "--max", "macs=1", code=3)["feasible"] is False
    refined = told("query", "tiny-1", "--max", "macs=1G", "--refine", "4")
    assert refined["feasible"]
    assert told("show", "tiny-1")["num_measurements"] == shown["num_measurements"] + 4
    exported = told("export", "tiny-1", "--max", "macs=1G", "--output", tmp_path / "out")
    assert exported["point"] == refined["point"]
    assert load_network(tmp_path / "out")


# long enough to be caught in the middle: checkpoints and chunks come several times a second
LONG = (
    "train.epochs=120",
    "train.checkpoint_every=2",
    "explore.sampler=tpe",
    "explore.num_points=21",
    "explore.batch_size=1",
    "baselines=[]",
)


def wait_for(process, condition, what, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_interrupted_explorations_are_carried_on(
    explorer, tiny_spec, table_rows, bucket, tmp_path
):
    changes = [part for change in LONG for part in ("--set", change)]
    ended = explorer("run", tiny_spec, *changes, "--runs-dir", tmp_path)
    assert ended.code == 0, ended.stderr
    expected = table_rows(tmp_path / "tiny-1")

    folder = place_of(bucket) / "tiny-1"
    trial = folder / "trials" / "sshn-s0"
    process = explorer.start("run", tiny_spec, *changes, "--runs-dir", bucket)
    wait_for(process, (trial / "checkpoint.zip").exists, "checkpoint")
    explorer.kill(process)
    assert not (trial / "trial.json").exists()

    process = explorer.start("resume", "tiny-1", "--runs-dir", bucket)
    wait_for(process, lambda: len(names_in(folder, "measurements/part-val-*")) >= 3, "third chunk")
    process.send_signal(signal.SIGINT)
    ended = explorer.finish(process, timeout_s=60)
    assert ended.code == 130, ended.stderr
    assert "explorer resume tiny-1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (trial / "checkpoint.zip").exists()
    record = json.loads((trial / "trial.json").read_text())
    assert len(record["history"]) == 10  # none twice: it went on where it was

    ended = explorer("resume", "tiny-1", "--runs-dir", bucket, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["status"] == "finished"
    assert table_rows(folder) == expected
    assert (folder / "study.journal").stat().st_size > 0


@pytest.mark.slow
def test_ray_train_workers_leave_the_same(explorer, tiny_spec, bucket):
    sets = ("--set", "train.num_workers=1", "--set", "baselines=[]")
    ended = explorer("run", tiny_spec, *sets, "--runs-dir", bucket)
    assert ended.code == 0, ended.stderr
    trial = place_of(bucket) / "tiny-1" / "trials" / "sshn-s0"
    assert names_in(trial, "*") == ["checkpoint", "trial.json"]


def test_mistakes_are_one_line(explorer, tiny_spec, bucket, tmp_path):
    tracked = ("run", tiny_spec, "--set", "tracking=true")
    ended = explorer(*tracked, "--runs-dir", bucket, MLFLOW_TRACKING_URI="")
    assert (ended.code, ended.stdout) == (2, "")
    assert "MLflow's SQLite file cannot lie in s3://" in ended.error
    for command in (["run", tiny_spec], ["list"], ["query", "tiny-1"]):
        ended = explorer(*command, "--runs-dir", "s3://none-such/runs")
        assert (ended.code, ended.stdout) == (2, "")
        assert ended.error.startswith("s3://none-such/runs: no bucket 'none-such'")
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    ended = explorer("list", "--runs-dir", bucket, **away)
    assert (ended.code, ended.stdout) == (1, "")
    assert "Could not connect" in ended.error
    ended = explorer("query", "tiny-1", "--runs-dir", bucket)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.error.startswith("no exploration 'tiny-1' in s3://")
    assert not Path("s3:").exists()
