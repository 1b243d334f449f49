"""An object store as the place of explorations, without the work of one."""

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from explorer.measurements import measurements_table
from explorer.objectstore import ObjectStore
from explorer.places import fetched, mark_of, place_of, runs_place, written_locally
from explorer.store import (
    TableStore,
    create_folder,
    read_json,
    set_state,
    write_bytes,
    write_json,
    write_lock,
)
from explorer.tracking import tracking_uri
from search_spaces.errors import InputError, RunError
from tests.conftest import measured


@pytest.fixture
def folder(bucket: str):
    return place_of(f"{bucket}/runs/tiny-1")


@pytest.fixture(autouse=True)
def fresh_clients() -> Iterator[None]:
    """Settings are read when a client is made, and clients are kept."""
    ObjectStore.clear_instance_cache()
    yield
    ObjectStore.clear_instance_cache()


def make_table(phi: float):
    return measurements_table([measured(phi, phi)])


def phis(store: TableStore) -> list[float]:
    return store.load(["conditioning/phi"])["conditioning/phi"].to_pylist()


def test_table_is_appended_read_verified_and_compacted(folder):
    store = TableStore(folder / "measurements")
    assert (store.load().num_rows, store.version()) == (0, "")
    versions = {""}
    for phi in (0.1, 0.2, 0.3):
        store.append(make_table(phi), part=f"val-{phi}")
        versions.add(store.version())
    store.append(make_table(0.3), part="val-0.3")  # is there
    assert len(versions) == 4
    again = TableStore(str(folder / "measurements"))
    assert phis(again) == [0.1, 0.2, 0.3]
    store.compact()
    assert sorted(path.name for path in (folder / "measurements").iterdir()) == [
        "manifest.json",
        "merged-3.parquet",
    ]
    assert phis(again) == [0.1, 0.2, 0.3]
    assert again.load(verify=True).num_rows == 3


def test_deleted_part_is_named_and_forgotten(folder):
    store = TableStore(folder / "measurements")
    for phi in (0.1, 0.2):
        store.append(make_table(phi), part=f"val-{phi}")
    (folder / "measurements" / "part-val-0.1.parquet").unlink()
    match = r"s3://.*part-val-0.1.parquet: expected .* got no file.*resume tiny-1"
    with pytest.raises(InputError, match=match):
        store.load()
    assert store.drop_missing() == 1
    assert phis(store) == [0.2]


def test_state_is_written_and_read(folder):
    with pytest.raises(InputError, match=r"s3://.*state\.json is missing"):
        read_json(folder / "state.json")
    write_json(folder / "state.json", {"status": "running", "a": 1})
    set_state(folder, status="finished")
    assert read_json(folder / "state.json") == {"status": "finished", "a": 1}


def test_mark_tells_writings_of_one_second_apart(folder):
    marks = set()
    for number in range(3):
        write_json(folder / "state.json", number)
        marks |= {mark_of(folder / "state.json"), mark_of(folder / "state.json")}
    assert len(marks) == 3


def test_folder_is_taken_once(folder):
    create_folder(folder)
    with pytest.raises(FileExistsError):
        create_folder(folder)
    other = folder.parent / "tiny-2"
    write_bytes(other / "state.json", b"{}")  # of another machine, without a lock
    with pytest.raises(FileExistsError):
        create_folder(other)


def test_one_of_many_takes_a_folder(folder):
    taken = []

    def take() -> None:
        try:
            create_folder(folder)
        except FileExistsError:
            return
        taken.append(1)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [1]


def test_lock_keeps_writers_of_this_machine_out(folder):
    with (
        write_lock(folder / "lock"),
        pytest.raises(InputError, match="tiny-1 is being written by process"),
        write_lock(folder / "lock"),
    ):
        pass
    with write_lock(folder / "lock"):
        assert not (folder / "lock").exists()


def test_files_of_libraries_come_and_go(folder, tmp_path):
    data = np.random.default_rng(0).bytes(300_000)
    with written_locally(folder / "figures" / "a.png") as path:
        path.write_bytes(data)
    assert not path.exists()
    assert fetched(folder / "figures" / "a.png", tmp_path).read_bytes() == data
    with written_locally(folder / "none") as path:
        pass
    assert not (folder / "none").exists()


def test_sqlite_is_refused(folder, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(InputError, match="set MLFLOW_TRACKING_URI to a server, or run with --set"):
        tracking_uri(folder.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(folder.parent) == "http://tracking:5000"


# What goes wrong is said in one line


def test_empty_prefix_of_a_bucket_will_do(bucket):
    assert str(runs_place(f"{bucket}/nothing/yet")) == f"{bucket}/nothing/yet"


@pytest.mark.parametrize("name", ["none-such", "not a name"])
def test_missing_bucket_is_said(bucket, name):
    with pytest.raises(InputError, match=f"s3://{name}/runs: no bucket '{name}'"):
        runs_place(f"s3://{name}/runs")


def test_missing_credentials_are_said(bucket, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=r"object store: .*credentials; set AWS_ACCESS_KEY_ID"):
        runs_place(f"{bucket}/runs")


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>unknown key</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def test_wrong_credentials_are_said(bucket, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            with pytest.raises(InputError, match=r"no access \(unknown key\); check AWS_ACCESS"):
                runs_place(f"{bucket}/runs")
        finally:
            server.shutdown()
            thread.join()


def test_store_that_is_away_is_said_soon_wherever_it_is_asked(bucket, monkeypatch):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        place = place_of(f"{bucket}/runs")
        asks = [
            lambda: runs_place(place),
            lambda: write_json(place / "state.json", 1),
            lambda: list(place.glob("*/state.json")),
        ]
        for ask in asks:
            with pytest.raises(RunError, match=r"Could not connect.*; check AWS_ENDPOINT_URL"):
                ask()


def test_client_takes_the_environment_of_the_command(bucket):
    assert place_of(bucket).fs.s3.meta.endpoint_url == os.environ["AWS_ENDPOINT_URL"]
