"""Explorations that are killed, interrupted, starved of disk or damaged, and carried on."""

import json
import os
import resource
import shutil
import signal
import time
from contextlib import suppress

import numpy as np
import pytest

pytestmark = pytest.mark.slow

# long enough to be caught in the middle: checkpoints and chunks come several times a second
LONG = (
    "train.epochs=240",
    "train.checkpoint_every=2",
    "explore.num_points=41",
    "explore.batch_size=1",
)


def arguments(tiny_spec, runs_dir):
    changes = [part for change in LONG for part in ("--set", change)]
    return ["run", tiny_spec, *changes, "--runs-dir", runs_dir, "--json"]


@pytest.fixture(scope="module")
def expected(explorer, tiny_spec, table_rows, tmp_path_factory):
    """The table of an uninterrupted run."""
    runs_dir = tmp_path_factory.mktemp("uninterrupted")
    ended = explorer(*arguments(tiny_spec, runs_dir))
    assert ended.code == 0, ended.stderr
    return table_rows(runs_dir / "tiny-1")


def wait_for(process, condition, what, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.001)


def state_of(folder):
    return json.loads((folder / "state.json").read_text())


def epoch_of(trial):
    """Of the last checkpoint; 0 while one takes the place of another."""
    try:
        return json.loads((trial / "checkpoint" / "state.json").read_text())["epoch"]
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return 0


def num_parts(folder, pattern="part-val-*.parquet"):
    return len(list((folder / "measurements").glob(pattern)))


def resume(explorer, runs_dir, name="tiny-1"):
    ended = explorer("resume", name, "--runs-dir", runs_dir, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["status"] == "finished"


def test_killed_in_training_mid_checkpoint_and_in_exploration(
    explorer, tiny_spec, expected, table_rows, tmp_path
):
    runs_dir, folder = tmp_path, tmp_path / "tiny-1"
    trial = folder / "trials" / "sshn-s0"
    process = explorer.start(*arguments(tiny_spec, runs_dir))
    wait_for(process, (trial / "checkpoint" / "state.json").exists, "checkpoint")
    explorer.kill(process)
    assert state_of(folder)["status"] == "running"
    assert not (trial / "trial.json").exists()

    reached = epoch_of(trial)
    process = explorer.start("resume", "tiny-1", "--runs-dir", runs_dir)
    wait_for(process, lambda: epoch_of(trial) > reached, "checkpoint of the resumed training")
    explorer.kill(process)
    # killed mid-checkpoint, for certain: the old one moved away, the new one written in part
    if (trial / "checkpoint").exists():
        shutil.rmtree(trial / "checkpoint.old", ignore_errors=True)
        (trial / "checkpoint").rename(trial / "checkpoint.old")
    (trial / "checkpoint.new").mkdir(exist_ok=True)
    (trial / "checkpoint.new" / "last.safetensors").write_bytes(b"\0" * 7)
    (trial / "checkpoint.new" / "state.json").unlink(missing_ok=True)

    process = explorer.start("resume", "tiny-1", "--runs-dir", runs_dir)
    wait_for(process, lambda: num_parts(folder) >= 3, "third chunk")
    explorer.kill(process)
    recorded = table_rows(folder)
    assert 0 < len(recorded) < len(expected)
    trained = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*/trial.json")}
    assert len(trained) == 3

    process = explorer.start("resume", "tiny-1", "--runs-dir", runs_dir)
    wait_for(process, lambda: num_parts(folder, "part-test-*") >= 3, "third chunk on test")
    explorer.kill(process)
    manifest = json.loads((folder / "measurements" / "manifest.json").read_text())
    parts = [folder / "measurements" / part["file"] for part in manifest["parts"]]
    times = trained | {path: path.stat().st_mtime_ns for path in parts}

    resume(explorer, runs_dir)
    assert table_rows(folder) == expected
    # nothing recorded was computed again
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_killed_at_twenty_random_moments(explorer, tiny_spec, expected, table_rows, tmp_path):
    """After each kill all that was recorded is there, as written, and is never computed again."""
    rng = np.random.default_rng(0)
    number, num_kills, written = 1, 0, {}
    while num_kills < 20:
        folder = tmp_path / f"tiny-{number}"
        command = ["resume", folder.name, "--runs-dir", tmp_path, "--json"]
        if not (folder / "state.json").exists():
            command, written = arguments(tiny_spec, tmp_path), {}
        before = newest(folder)
        process = explorer.start(*command)
        # some while it starts, most once it works
        if rng.random() < 0.8:
            while newest(folder) <= before and process.poll() is None:
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 2))
        has_ended = process.poll() is not None
        explorer.kill(process)
        num_kills += not has_ended
        if not (folder / "state.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # killed before it had begun
            continue
        recorded = table_rows(folder)
        assert all(expected[key] == row for key, row in recorded.items())
        assert {path: path.stat().st_mtime_ns for path in written} == written
        manifest = folder / "measurements" / "manifest.json"
        parts = json.loads(manifest.read_text())["parts"] if manifest.exists() else []
        files = [manifest.with_name(part["file"]) for part in parts]
        files += folder.glob("trials/*/trial.json")
        written = {path: path.stat().st_mtime_ns for path in files}
        if has_ended:
            assert recorded == expected
            number += 1
    if (tmp_path / f"tiny-{number}").exists():
        resume(explorer, tmp_path, f"tiny-{number}")
        assert table_rows(tmp_path / f"tiny-{number}") == expected


def newest(folder):
    """When something in a folder was written last."""
    times = [0.0]
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def test_killed_worker_loses_its_chunk_to_another(
    explorer, tiny_spec, expected, table_rows, tmp_path
):
    folder = tmp_path / "tiny-1"
    process = explorer.start(*arguments(tiny_spec, tmp_path))
    killed = []
    for num in (3, 9):
        wait_for(process, lambda num=num: num_parts(folder) >= num, f"chunk {num}")
        workers = explorer.members(process, title="ray::ImplicitFunc")
        assert workers
        killed.append(next(iter(workers)))
        os.kill(killed[-1], signal.SIGKILL)
    ended = explorer.finish(process)
    assert ended.code == 0, ended.stderr
    assert len(set(killed)) == 2
    assert table_rows(folder) == expected


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_interrupted_exits_130_and_names_what_to_resume(
    explorer, tiny_spec, expected, table_rows, tmp_path, signal_name
):
    folder = tmp_path / "tiny-1"
    process = explorer.start(*arguments(tiny_spec, tmp_path))
    if signal_name == "SIGINT":
        wait_for(process, (folder / "trials/sshn-s0/checkpoint/state.json").exists, "checkpoint")
    else:
        wait_for(process, lambda: num_parts(folder) >= 3, "third chunk")
    process.send_signal(signal.Signals[signal_name])
    ended = explorer.finish(process, timeout_s=60)
    assert (ended.code, ended.stdout) == (130, "")
    assert "tiny-1 is interrupted; carry it on with explorer resume tiny-1" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert state_of(folder)["status"] == "interrupted"
    again = explorer(*arguments(tiny_spec, tmp_path))
    assert (again.code, again.stdout) == (2, "")
    assert "tiny-1 has the same spec and is interrupted" in again.error
    resume(explorer, tmp_path)
    assert table_rows(folder) == expected


def test_full_disk_ends_the_run_in_one_line_and_loses_nothing(
    explorer, tiny_spec, expected, table_rows, tmp_path
):
    folder = tmp_path / "tiny-1"
    process = explorer.start(*arguments(tiny_spec, tmp_path))
    wait_for(process, lambda: num_parts(folder) >= 3, "third chunk")
    # no file of the driver may grow beyond this any more, as on a full disk; Ray's own may
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, hard))
    ended = explorer.finish(process, timeout_s=120)
    assert (ended.code, ended.stdout) == (1, "")
    assert "disk full" in ended.error
    assert "free some space" in ended.error
    recorded = table_rows(folder)
    assert recorded
    assert all(expected[key] == row for key, row in recorded.items())
    resume(explorer, tmp_path)
    assert table_rows(folder) == expected


def test_damaged_parts_and_trials_are_named_and_made_again(
    explorer, finished, table_rows, tmp_path
):
    from explorer.store import samples_store

    shutil.copytree(finished.folder, tmp_path / "tiny-1")
    folder = tmp_path / "tiny-1"
    samples = samples_store(folder).load()
    runs = ("--runs-dir", tmp_path)
    parts = {
        "samples/part-test-sshn-00000.parquet": ["frontier", "--compare"],
        "measurements/part-val-sshn-00001.parquet": ["query"],
        "measurements/part-test-fixed-phi0.4-00000.parquet": ["query"],
    }
    for part, (command, *options) in parts.items():
        path = folder / part
        path.write_bytes(path.read_bytes()[:-10])
        ended = explorer(command, "tiny-1", *options, *runs, "--json")
        assert (ended.code, ended.stdout) == (2, "")
        assert "delete it and run `explorer resume tiny-1`" in ended.error
        assert str(folder / part.partition("/")[0]) in ended.error
    for part in parts:
        (folder / part).unlink()
    weights = folder / "trials/fixed-phi0.125-s0/checkpoint/best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    ended = explorer("resume", "tiny-1", *runs)
    assert ended.code == 2
    assert ended.error.startswith(f"{weights}: expected weights with sha256")
    shutil.rmtree(weights.parents[1])
    resume(explorer, tmp_path)
    assert table_rows(folder) == table_rows(finished.folder)
    again = samples_store(folder).load()
    order = [("trial_id", "ascending"), ("setting_id", "ascending"), ("sample_id", "ascending")]
    assert again.sort_by(order) == samples.sort_by(order)


# One spec, one table


def test_two_runs_and_any_number_of_workers_give_one_table(
    explorer, finished, tiny_spec, table_rows
):
    expected = table_rows(finished.folder)
    for number, changes in enumerate((["explore.num_workers=2"], ["explore.num_workers=0"]), 2):
        sets = [part for change in changes for part in ("--set", change)]
        ended = explorer("run", tiny_spec, *sets, "--runs-dir", finished.runs_dir.parent / "again")
        assert ended.code == 0, ended.stderr
        assert table_rows(finished.runs_dir.parent / "again" / f"tiny-{number - 1}") == expected


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_learning_samplers_give_one_table_too(explorer, tiny_spec, table_rows, tmp_path, sampler):
    changes = [f"explore.sampler={sampler}", "explore.num_points=14", "baselines=[]"]
    sets = [part for change in changes for part in ("--set", change)]
    for _ in range(2):
        ended = explorer("run", tiny_spec, *sets, "--runs-dir", tmp_path)
        assert ended.code == 0, ended.stderr
    first, second = table_rows(tmp_path / "tiny-1"), table_rows(tmp_path / "tiny-2")
    assert len(first) == 28
    assert first == second


def test_two_workers_of_ray_train_equal_one(explorer, tiny_spec, table_rows, tmp_path):
    sets = ["--set", "train.epochs=6", "--set", "train.precision=float32"]
    for num_workers in (0, 2):
        more = ["--set", f"train.num_workers={num_workers}"]
        ended = explorer("run", tiny_spec, *sets, *more, "--runs-dir", tmp_path)
        assert ended.code == 0, ended.stderr
    one, two = table_rows(tmp_path / "tiny-1"), table_rows(tmp_path / "tiny-2")
    assert one.keys() == two.keys()
    losses = [
        [json.loads(path.read_text())["history"] for path in sorted(tmp_path.glob(pattern))]
        for pattern in ("tiny-1/trials/*/trial.json", "tiny-2/trials/*/trial.json")
    ]
    # gradients are summed in another order: float32, 18 steps of Adam
    for alone, together in zip(*losses, strict=True):
        np.testing.assert_allclose(
            [row["train_loss"] for row in alone],
            [row["train_loss"] for row in together],
            rtol=1e-3,
        )
    for key, row in one.items():
        # a pixel on the boundary between two labels may change sides: 8 images of 256 pixels
        assert two[key]["metric/dice"] == pytest.approx(row["metric/dice"], abs=0.02)
        assert two[key]["cost/macs"] == row["cost/macs"]
