"""Explorations as jobs of a Ray cluster of three nodes, some of which are lost."""

import json
import os
import secrets
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

import explorer as package
from tests.conftest import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# long enough to be caught in the middle: checkpoints and chunks come several times a second
LONG = (
    "train.epochs=240",
    "train.checkpoint_every=2",
    "explore.num_points=41",
    "explore.batch_size=1",
)
TRIAL = "ray::ImplicitFunc"  # a Ray Tune trial's process


class Nodes:
    """Raylets with one processor each: the head, and others that come and go."""

    def __init__(self, ray_command):
        self.ray = ray_command
        self.token = secrets.token_hex(32)
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard_port}"
        self.others, self.folders = [], []
        here = str(self.ray.path.parent)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
        }
        self.head = self._start(
            "--head",
            f"--port={self.port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
        )

    def join(self):
        """One more node, once the cluster knows it."""
        node = self._start(f"--address=127.0.0.1:{self.port}")
        self.others.append(node)
        return node

    def lose(self, node):
        """Kill a node with everything on it."""
        self.others.remove(node)
        self.ray.kill(node)

    def busy(self):
        """Nodes beside the head on which a trial runs."""
        return [node for node in self.others if self.ray.members(node, title=TRIAL)]

    def _start(self, *arguments):
        before = self._num_alive()
        # of its own: a node that has no more use for a working directory deletes its copy
        folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # short: names of sockets are
        self.folders.append(folder)
        node = self.ray.start(
            "start",
            "--block",
            "--num-cpus=1",
            "--object-store-memory=150000000",
            "--node-ip-address=127.0.0.1",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--metrics-export-port={free_port()}",
            f"--temp-dir={folder}",
            *arguments,
            **self.environment,
        )
        wait_for(lambda: self._num_alive() > before, "a new node", node)
        return node

    def _num_alive(self):
        request = urllib.request.Request(
            f"{self.address}/api/v0/nodes", headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                nodes = json.load(answer)["data"]["result"]["result"]
        except OSError:
            return 0  # no dashboard yet
        return sum(node["state"] == "ALIVE" for node in nodes)


def wait_for(condition, what, process=None, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended before {what}: {process.communicate()}")
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def nodes(ray_command):
    nodes = Nodes(ray_command)
    for _ in range(2):
        nodes.join()
    yield nodes
    for node in [*nodes.others, nodes.head]:
        ray_command.kill(node)
    for folder in nodes.folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def client(explorer, nodes):
    """The command line of somebody who has the token."""

    def call(*arguments, **environment):
        return explorer(
            *arguments,
            **{"RAY_API_SERVER_ADDRESS": nodes.address, **nodes.environment},
            **environment,
        )

    return call


@pytest.fixture(scope="module")
def expected(explorer, tiny_spec, table_rows, tmp_path_factory):
    """The table of the long spec, undisturbed, on this machine alone."""
    runs_dir = tmp_path_factory.mktemp("undisturbed")
    ended = explorer("run", tiny_spec, *sets(LONG), "--runs-dir", runs_dir)
    assert ended.code == 0, ended.stderr
    return table_rows(runs_dir / "tiny-1")


def sets(changes):
    return [part for change in changes for part in ("--set", change)]


def submit(client, spec, runs_dir, *arguments):
    ended = client("submit", spec, "--runs-dir", runs_dir, "--json", *arguments)
    assert ended.code == 0, ended.stderr
    return json.loads(ended.stdout)


def num_parts(folder):
    return len(list((folder / "measurements").glob("part-val-*.parquet")))


def is_training(folder):
    return any(folder.glob("trials/*/checkpoint/state.json"))


def test_submitted_listed_followed_and_fetched(client, explorer, finished, table_rows, tmp_path):
    spec = finished.folder / "spec.yaml"
    job = submit(client, spec, tmp_path)
    exploration_id = job["exploration_id"]
    assert exploration_id.startswith("tiny-")
    assert job["runs_dir"] == str(tmp_path)

    followed = client("jobs", "logs", "-f", exploration_id)
    assert followed.code == 0, followed.stderr
    assert "training: 3/3" in followed.stdout
    assert f"{exploration_id} is finished" in followed.stdout
    assert client("jobs", "logs", exploration_id).stdout == followed.stdout

    listed = json.loads(client("jobs", "list", "--json").stdout)
    assert exploration_id in [one["exploration_id"] for one in listed]
    status = json.loads(client("jobs", "status", exploration_id, "--json").stdout)
    assert (status["status"], status["job_id"]) == ("SUCCEEDED", exploration_id)
    assert status["began"] < status["ended"]
    result = json.loads(client("jobs", "result", exploration_id, "--json").stdout)
    assert result["exploration_id"] == exploration_id
    assert result["num_measurements"] == len(table_rows(tmp_path / exploration_id))

    # from here on without the cluster: a fresh process reads the shared storage
    assert table_rows(tmp_path / exploration_id) == table_rows(finished.folder)
    asked = explorer("query", exploration_id, "--runs-dir", tmp_path, "--json")
    assert json.loads(asked.stdout)["feasible"] is True


def test_code_of_the_working_directory_is_what_runs(client, finished, tmp_path):
    root = Path(package.__file__).parent.parent
    code = tmp_path / "code"
    for name in ("explorer", "trainables", "search_spaces"):
        shutil.copytree(root / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (code / "explorer" / "quantities.py").open("a") as file:
        file.write("# changed\n")
    spec = finished.folder / "spec.yaml"
    arguments = ("--working-dir", code, "--wait", "--set", "baselines=[]")
    job = submit(client, spec, tmp_path / "runs", *arguments)
    assert job["status"] == "SUCCEEDED"
    versions = [
        json.loads((folder / "state.json").read_text())["code_version"]
        for folder in (finished.folder, tmp_path / "runs" / job["exploration_id"])
    ]
    assert versions[0] != versions[1]


def test_stopped_job_is_carried_on_to_the_same_table(
    client, tiny_spec, expected, table_rows, tmp_path
):
    job = submit(client, tiny_spec, tmp_path, *sets(LONG))
    exploration_id = job["exploration_id"]
    folder = tmp_path / exploration_id
    early = client("jobs", "result", exploration_id)
    assert early.code == 1
    assert "there is no result yet" in early.error
    wait_for(lambda: is_training(folder), "checkpoint")
    stopped = json.loads(client("jobs", "stop", exploration_id, "--json").stdout)
    assert stopped["status"] == "STOPPED"
    again = client("jobs", "stop", exploration_id)
    assert (again.code, again.error) == (2, f"{exploration_id}: its job is STOPPED already")
    resumed = client("jobs", "resume", exploration_id, "--wait", "--json")
    assert resumed.code == 0, resumed.stderr
    job = json.loads(resumed.stdout)
    assert (job["status"], job["job_id"]) == ("SUCCEEDED", f"{exploration_id}-2")
    assert table_rows(folder) == expected


def test_nodes_lost_in_training_and_in_exploration_change_nothing(
    client, nodes, explorer, tiny_spec, expected, table_rows, tmp_path
):
    job = submit(client, tiny_spec, tmp_path, *sets(LONG), "--set", "explore.num_workers=3")
    folder = tmp_path / job["exploration_id"]
    wait_for(lambda: is_training(folder) and nodes.busy(), "training on a node")
    reached = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/trial.json")}
    nodes.lose(nodes.busy()[0])
    joined = nodes.join()
    wait_for(lambda: joined in nodes.busy(), "work on the node that joined")
    wait_for(lambda: num_parts(folder) >= 5 and nodes.busy(), "exploration on a node")
    nodes.lose(nodes.busy()[0])
    followed = client("jobs", "logs", "-f", job["exploration_id"])
    status = json.loads(client("jobs", "status", job["exploration_id"], "--json").stdout)
    assert status["status"] == "SUCCEEDED", followed.stdout
    assert table_rows(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in reached} == reached
    nodes.join()  # for the tests that follow


def test_node_lost_in_training_over_nodes_changes_nothing(
    client, nodes, explorer, tiny_spec, table_rows, tmp_path
):
    changes = (*LONG, "train.num_workers=2", "baselines=[]", "train.epochs=120")
    undisturbed = submit(client, tiny_spec, tmp_path, *sets(changes), "--wait")
    job = submit(client, tiny_spec, tmp_path, *sets(changes))
    folder = tmp_path / job["exploration_id"]
    workers = "ray::RayTrainWorker"

    def on_nodes():
        return [node for node in nodes.others if nodes.ray.members(node, title=workers)]

    wait_for(lambda: any(folder.glob("trials/*/ray_train/*/*checkpoint*")), "checkpoint")
    wait_for(on_nodes, "training on a node")
    nodes.lose(on_nodes()[0])
    nodes.join()
    followed = client("jobs", "logs", "-f", job["exploration_id"])
    status = json.loads(client("jobs", "status", job["exploration_id"], "--json").stdout)
    assert status["status"] == "SUCCEEDED", followed.stdout
    assert table_rows(folder) == table_rows(tmp_path / undisturbed["exploration_id"])


def test_exploration_of_another_cluster_is_carried_on(
    client, explorer, tiny_spec, table_rows, finished, tmp_path
):
    process = explorer.start("run", tiny_spec, "--runs-dir", tmp_path)
    folder = tmp_path / "tiny-1"
    wait_for(lambda: is_training(folder), "checkpoint", process)
    explorer.kill(process)
    unknown = client("jobs", "resume", "tiny-1")
    assert unknown.code == 2
    assert "--runs-dir says where it lives" in unknown.error
    resumed = client("jobs", "resume", "tiny-1", "--runs-dir", tmp_path, "--wait", "--json")
    assert resumed.code == 0, resumed.stderr
    assert json.loads(resumed.stdout)["job_id"] == "tiny-1"
    assert table_rows(folder) == table_rows(finished.folder)


def test_client_without_the_token_is_refused(explorer, nodes, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text(nodes.token)
    with_none = {"RAY_AUTH_TOKEN": "", "HOME": str(tmp_path)}
    for environment in (with_none, {"RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        refused = explorer("jobs", "list", "--address", nodes.address, **environment)
        assert refused.code == 1
        assert "give the cluster's token with --token-file" in refused.error
    arguments = ("--address", nodes.address, "--token-file", token_file, "--json")
    assert explorer("jobs", "list", *arguments, **with_none).code == 0


def test_what_is_no_job_and_no_cluster_is_told_in_a_line(client, explorer, finished, tmp_path):
    unknown = client("jobs", "status", "tiny-unknown")
    assert unknown.code == 2
    assert "no job on http://127.0.0.1:" in unknown.error
    nowhere = explorer("jobs", "list", "--address", f"http://127.0.0.1:{free_port()}")
    assert nowhere.code == 1
    assert "no Ray cluster answers there" in nowhere.error
    no_url = explorer("jobs", "list", "--address", "127.0.0.1:8265")
    assert no_url.code == 2
    assert "expected the URL of a cluster's dashboard" in no_url.error
    spec = finished.folder / "spec.yaml"
    relative = client("submit", spec, "--runs-dir", tmp_path, "--set", "dataset.root=images")
    assert relative.code == 2
    assert "dataset.root: expected an absolute path" in relative.error
