import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from explorer.measurements import (
    FIXED_FIELDS,
    KEY,
    SAMPLE_FIELDS,
    SAMPLE_KEY,
    join_tables,
    measurements_of,
    measurements_table,
    samples_table,
    setting_id,
)
from explorer.store import TableStore, read_json, write_json, write_lock
from search_spaces.errors import InputError, RunError
from tests.conftest import measured

ROOT = Path(__file__).parents[2]


def make_table(*phis, **metrics):
    return measurements_table(
        [
            measured(phi, 1 - phi, **({"metrics": metrics} if metrics else {}), costs={})
            for phi in phis
        ]
    )


@pytest.fixture
def store_dir(tmp_path):
    return tmp_path / "demo-1" / "measurements"


@pytest.fixture
def store(store_dir):
    return TableStore(str(store_dir))


def phis(store):
    return store.load()["conditioning/phi"].to_pylist()


def edit_manifest(store_dir, **changes):
    path = store_dir / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- append and load


def test_load_returns_what_was_appended(store):
    first, second = make_table(0.1, 0.2), make_table(0.3)
    store.append(first)
    store.append(second)
    reopened = TableStore(store.path)
    assert measurements_of(reopened.load(verify=True)) == measurements_of(
        join_tables([first, second])
    )
    assert str(store.path) in repr(reopened)


def test_load_of_an_empty_store_has_the_fixed_fields(store):
    assert store.load().schema == FIXED_FIELDS
    assert store.load(["seed"]).num_rows == 0
    assert store.keys() == set()


def test_load_makes_absent_columns_null(store):
    store.append(make_table(0.1, nsd=0.5))
    store.append(make_table(0.2, auc=0.7))
    table = store.load()
    assert table["metric/nsd"].to_pylist() == [0.5, None]
    assert table["metric/auc"].to_pylist() == [None, 0.7]
    assert store.load(["metric/auc"]).to_pydict() == {"metric/auc": [None, 0.7]}


def test_load_of_some_columns_keeps_their_order(store):
    store.append(make_table(0.25))
    table = store.load(["metric/dice", "seed", "conditioning/phi"])
    assert table.to_pydict() == {"metric/dice": [0.75], "seed": [0], "conditioning/phi": [0.25]}


def test_load_without_some_columns_leaves_the_others_as_they_were(store):
    store.append(make_table(0.25, nsd=0.5))
    store.append(make_table(0.5))
    without = {"time", "setting_id", "trial_id"}
    kept = [name for name in store.load().column_names if name not in without]
    assert store.load(without=without).equals(store.load().select(kept))


def test_version_changes_with_what_is_published(store):
    versions = [store.version()]
    for phi in (0.1, 0.2):
        store.append(make_table(phi))
        versions.append(store.version())
        assert TableStore(store.path).version() == versions[-1]
    store.append(make_table(0.3), part="000001")  # published already
    assert store.version() == versions[-1]
    store.compact()
    versions.append(store.version())
    assert len(set(versions)) == 4
    assert versions[0] == ""


def test_load_refuses_an_unknown_column(store):
    store.append(make_table(0.1))
    with pytest.raises(InputError, match=r"unknown column 'metric/nsd'; known: .*metric/dice"):
        store.load(["metric/nsd"])


def test_append_of_a_published_name_does_nothing(store):
    store.append(make_table(0.1), part="batch-0")
    store.append(make_table(0.9), part="batch-0")
    store.append(make_table(0.2), part="batch-1")
    assert phis(store) == [0.1, 0.2]


def test_append_numbers_parts_around_given_names(store):
    store.append(make_table(0.1), part="000001")
    store.append(make_table(0.2))
    store.append(make_table(0.3))
    assert phis(store) == [0.1, 0.2, 0.3]


def test_append_refuses_a_table_without_the_fixed_fields(store):
    table = make_table(0.1)
    with pytest.raises(ValueError, match="expected a column seed of type int64"):
        store.append(table.drop_columns(["seed"]))
    with pytest.raises(ValueError, match="expected a column time of type double"):
        store.append(table.set_column(table.column_names.index("time"), "time", [["noon"]]))


@pytest.mark.parametrize("part", ["", "../x", "a/b", ".hidden"])
def test_append_refuses_a_name_that_is_no_file_name(store, part):
    with pytest.raises(ValueError, match="a part's name is of letters"):
        store.append(make_table(0.1), part=part)


def test_keys_are_those_of_all_rows(store):
    store.append(make_table(0.1))
    store.append(make_table(0.2))
    expected = {("sshn-s0", "val", setting_id({"phi": phi})) for phi in (0.1, 0.2)}
    assert store.keys() == expected
    assert store.key == KEY


def test_samples_are_kept_under_their_own_key(tmp_path):
    store = TableStore(tmp_path / "samples", fields=SAMPLE_FIELDS, key=SAMPLE_KEY)
    table = samples_table(
        trial_id="sshn-0",
        method="sshn",
        seed=0,
        split="test",
        conditioning={"phi": 0.5},
        sample_ids=["a", "b"],
        metrics={"dice": np.array([0.5, np.nan])},
    )
    store.append(table)
    assert store.load().equals(table)
    key = ("sshn-0", "test", setting_id({"phi": 0.5}))
    assert store.keys() == {(*key, "a"), (*key, "b")}
    with pytest.raises(InputError, match=r"manifest.json: expected rows with key .*'setting_id'\)"):
        TableStore(tmp_path / "samples").load()


# --- crashes


def test_part_without_manifest_entry_is_ignored_and_overwritten(store, store_dir, monkeypatch):
    store.append(make_table(0.1))

    def die(self, parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TableStore, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            store.append(make_table(0.9))
    assert (store_dir / "part-000001.parquet").exists()
    assert phis(store) == [0.1]
    store.append(make_table(0.2))
    assert phis(store) == [0.1, 0.2]
    assert store.load(verify=True).num_rows == 2


def test_writer_killed_in_the_middle_leaves_whole_batches(store, store_dir):
    code = (
        "import sys; from tests.explorer.test_store import TableStore, make_table\n"
        "store = TableStore(sys.argv[1])\n"
        "for i in range(10**6):\n"
        "    store.append(make_table(i / 10**6, 0.9), part=f'b{i}'); print(i, flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(store_dir)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    reported = [int(writer.stdout.readline()) for _ in range(5)]
    os.kill(writer.pid, signal.SIGKILL)
    reported += [int(line) for line in writer.communicate()[0].split()]
    num_rows = store.load(verify=True).num_rows
    # The batch being written when the signal came may be in or out, but never cut.
    assert num_rows in (2 * len(reported), 2 * len(reported) + 2)
    store.compact()
    assert store.load(verify=True).num_rows == num_rows


# --- compaction


def test_compact_merges_all_parts_and_removes_debris(store, store_dir):
    for i in range(4):
        store.append(make_table(i / 10), part=f"batch-{i}")
    (store_dir / "part-debris.parquet").write_bytes(b"x")
    (store_dir / ".manifest.json.0.tmp").write_bytes(b"x")
    before = store.load()
    store.compact()
    assert store.load(verify=True).equals(before)
    assert {path.name for path in store_dir.iterdir()} == {"manifest.json", "merged-4.parquet"}


def test_compact_leaves_few_parts_alone(store, store_dir):
    for i in range(3):
        store.append(make_table(i / 10))
    store.compact(above=3)
    assert len(list(store_dir.glob("*.parquet"))) == 3
    store.compact(above=2)
    assert len(list(store_dir.glob("*.parquet"))) == 1


def test_compact_keeps_appends_idempotent(store):
    for i in range(3):
        store.append(make_table(i / 10), part=f"batch-{i}")
    store.compact()
    store.append(make_table(0.1), part="batch-1")
    store.append(make_table(0.3), part="batch-3")
    store.compact()
    store.compact()
    assert phis(store) == [0.0, 0.1, 0.2, 0.3]


def test_compact_that_dies_before_publishing_changes_nothing(store, monkeypatch):
    for i in range(3):
        store.append(make_table(i / 10))

    def die(self, parts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TableStore, "_publish", die)
        with pytest.raises(KeyboardInterrupt):
            store.compact()
    assert phis(store) == [0.0, 0.1, 0.2]
    store.compact()
    assert phis(store) == [0.0, 0.1, 0.2]


def test_compact_of_an_empty_store_does_nothing(store, store_dir):
    store.compact()
    assert not store_dir.exists()


def test_compact_refuses_a_part_with_other_content(store, store_dir):
    store.append(make_table(0.1))
    store.append(make_table(0.2))
    part = store_dir / "part-000001.parquet"
    content = bytearray(part.read_bytes())
    content[10] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=r"part-000001.parquet: expected .* got other content"):
        store.compact()
    with pytest.raises(InputError, match="got other content"):
        store.load(verify=True)


def test_load_while_the_writer_compacts_reads_the_new_part(store, monkeypatch):
    store.append(make_table(0.1))
    store.append(make_table(0.2))
    read = TableStore._read
    calls = []

    def compact_first(self, parts, columns, **options):
        calls.append(len(parts))
        if len(calls) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(TableStore, "_read", read)
                TableStore(self.path).compact()
        return read(self, parts, columns, **options)

    monkeypatch.setattr(TableStore, "_read", compact_first)
    assert phis(store) == [0.1, 0.2]
    assert calls == [2, 1]


# --- damage


def test_load_refuses_a_truncated_part(store, store_dir):
    store.append(make_table(0.1, 0.2))
    part = store_dir / "part-000000.parquet"
    size = part.stat().st_size
    os.truncate(part, 100)
    message = (
        f"{part}: expected {size} bytes with 2 rows, got 100 bytes; restore it from a backup, or "
        "delete it and run `explorer resume demo-1`, which measures its rows again"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        store.load()


def test_load_refuses_a_missing_part_until_it_is_dropped(store, store_dir):
    store.append(make_table(0.1, 0.2), part="batch-0")
    store.append(make_table(0.3), part="batch-1")
    (store_dir / "part-batch-0.parquet").unlink()
    with pytest.raises(InputError, match=r"part-batch-0.parquet: expected .* got no file"):
        store.load()
    assert store.drop_missing() == 2
    assert store.drop_missing() == 0
    assert phis(store) == [0.3]
    store.append(make_table(0.1, 0.2), part="batch-0")
    assert phis(store) == [0.3, 0.1, 0.2]


def test_load_refuses_a_part_of_garbage(store, store_dir):
    store.append(make_table(0.1))
    part = store_dir / "part-000000.parquet"
    part.write_bytes(b"\0" * part.stat().st_size)
    with pytest.raises(InputError, match=r"part-000000.parquet: .* got a file that cannot be read"):
        store.load()


def test_load_refuses_a_part_with_another_number_of_rows(store, store_dir):
    store.append(make_table(0.1))
    [part] = json.loads((store_dir / "manifest.json").read_text())["parts"]
    edit_manifest(store_dir, parts=[{**part, "rows": 7}])
    with pytest.raises(InputError, match=r"part-000000.parquet: .* with 7 rows, got 1 rows"):
        store.load()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "expected JSON"),
        ('{"schema_version": 1, "key": ["tri', "expected JSON"),
        ("\ufffd", "expected JSON"),
        ("[]", "expected a list of parts"),
        ("null", "expected a list of parts"),
        ('{"schema_version": 1, "key": 3, "parts": []}', "expected a list of parts"),
        ('{"schema_version": "x", "key": [], "parts": []}', "expected a list of parts"),
    ],
)
def test_load_and_append_refuse_a_damaged_manifest(store, store_dir, content, problem):
    store.append(make_table(0.1))
    (store_dir / "manifest.json").write_text(content)
    message = f"manifest.json is damaged: {problem}.*backup.*`explorer resume demo-1`"
    with pytest.raises(InputError, match=message):
        store.load()
    with pytest.raises(InputError, match=message):
        store.append(make_table(0.2))


def test_load_refuses_a_damaged_manifest_entry(store, store_dir):
    store.append(make_table(0.1))
    edit_manifest(store_dir, parts=[{"file": "part-000000.parquet"}])
    with pytest.raises(InputError, match=r"manifest.json is damaged: expected a list of parts"):
        store.load()


def test_load_and_append_refuse_a_missing_manifest_beside_parts(store, store_dir):
    store.append(make_table(0.1))
    (store_dir / "manifest.json").unlink()
    for use in (store.load, lambda: store.append(make_table(0.2))):
        with pytest.raises(InputError, match=r"manifest.json is missing, but its parts are there"):
            use()
    assert (store_dir / "part-000000.parquet").exists()


def test_load_refuses_a_newer_schema(store, store_dir):
    store.append(make_table(0.1))
    edit_manifest(store_dir, schema_version=2, key="of another form")
    with pytest.raises(InputError, match=r"manifest.json has schema version 2, expected at most 1"):
        store.load()


def test_load_refuses_a_manifest_that_cannot_be_read(store, store_dir):
    (store_dir / "manifest.json").mkdir(parents=True)
    with pytest.raises(InputError, match=r"manifest.json cannot be read \(.*; make it readable"):
        store.load()


# --- disk full, not writable


@contextmanager
def file_size_limit(num_bytes):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_append_on_a_full_disk_leaves_the_table_as_it_was(store, store_dir):
    store.append(make_table(0.1))
    with (
        file_size_limit(1000),
        pytest.raises(
            RunError, match=r"part-000001.parquet: disk full .*nothing recorded was lost"
        ),
    ):
        store.append(make_table(0.2))
    assert phis(store) == [0.1]
    assert {path.name for path in store_dir.iterdir()} == {"manifest.json", "part-000000.parquet"}
    store.append(make_table(0.2))
    assert phis(store) == [0.1, 0.2]


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full"),
        (errno.EROFS, "not writable"),
        (errno.EACCES, "not writable"),
        (errno.EIO, "not writable"),
    ],
)
def test_append_whose_manifest_cannot_be_replaced(store, monkeypatch, number, problem):
    store.append(make_table(0.1))
    replace = Path.replace

    def fail(path, target):
        if "manifest" in path.name:
            raise OSError(number, os.strerror(number))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RunError, match=rf"manifest.json: {problem} \({os.strerror(number)}\)"):
        store.append(make_table(0.2))
    assert phis(store) == [0.1]


# --- small files


def test_json_round_trip_creates_the_directory(tmp_path):
    path = tmp_path / "trials" / "sshn-0" / "trial.json"
    write_json(path, {"status": "running"})
    write_json(str(path), {"status": "done", "value": 0.1})
    assert read_json(path) == {"status": "done", "value": 0.1}
    assert list(path.parent.iterdir()) == [path]


def test_write_json_on_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})
    with file_size_limit(10), pytest.raises(RunError, match=r"state.json: disk full"):
        write_json(path, {"a": "x" * 100})
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_where_a_file_stands_for_a_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"state.json: not writable"):
        write_json(tmp_path / "file" / "state.json", {})


def test_write_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "state.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_read_json_refuses_a_damaged_or_missing_file(tmp_path):
    path = tmp_path / "state.json"
    with pytest.raises(InputError, match=r"state.json is missing: expected a JSON file"):
        read_json(path)
    path.write_text('{"a": ')
    with pytest.raises(InputError, match=r"state.json is damaged: expected JSON, got .*; restore"):
        read_json(path)


# --- the lock

HOLD = """
import sys, time
from explorer.store import write_lock
with write_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def lock_holder(path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_write_lock_names_the_process_that_holds_it(tmp_path):
    path = tmp_path / "demo-1" / "lock"
    with lock_holder(path) as holder:
        message = (
            rf"^exploration demo-1 is being written by process {holder.pid} "
            rf"on host {re.escape(os.uname().nodename)} "
            r"since \d{4}-\d\d-\d\dT\S+; wait for it or stop it$"
        )
        with pytest.raises(InputError, match=message), write_lock(path):
            pass


def test_write_lock_is_released_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "demo-1" / "lock"
    with lock_holder(path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with write_lock(path):
            assert f"process {os.getpid()} " in path.read_text()


def test_write_lock_is_released_at_the_end_and_after_an_error(tmp_path):
    path = tmp_path / "demo-1" / "lock"
    with pytest.raises(KeyError, match="x"), write_lock(path):
        raise KeyError("x")
    with (
        write_lock(path),
        pytest.raises(InputError, match=f"process {os.getpid()} "),
        write_lock(path),
    ):
        pass
    with write_lock(path):
        pass


def test_write_lock_refuses_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(RunError, match="lock: not writable"), write_lock(tmp_path / "lock"):
        pass


def test_write_lock_on_a_full_disk(tmp_path):
    path = tmp_path / "demo-1" / "lock"
    with file_size_limit(0), pytest.raises(RunError, match="lock: disk full"), write_lock(path):
        pass
