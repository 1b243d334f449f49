"""Trials that train: which there are, how they end, and what a failed one does to the rest."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.train
import torch
from safetensors.torch import save_file

from explorer.extensions import Extensions
from explorer.models import build_trainable
from explorer.progress import ProgressReport
from explorer.specs import load_spec
from explorer.training import (
    Trial,
    TrialRecord,
    choose_rate,
    keep_record,
    read_record,
    read_weights,
    root_cause,
    settled_precision,
    starting_trials,
    train_all,
    train_config,
    trials_of,
)
from search_spaces.errors import InputError, RunError
from trainables.base import Arrays
from trainables.hypernetwork import ConditionedNetwork
from trainables.methods import Method
from trainables.scale_space import ScaleSpaceSegmentation
from trainables.train_loop import TrainResult

TINY = (
    "dataset.size=[16,16]",
    "model.width=2",
    "model.stages=2",
    "train.epochs=2",
    "train.batch_size=4",
    "train.precision=float32",
)
QUIET = ProgressReport(quiet=True)


def tiny_spec(*changes):
    return load_spec("demo", [*TINY, "baselines=[]", *changes])


def tiny_data(*, value=None):
    rng = np.random.default_rng(0)
    splits = {}
    for name, n in (("train", 8), ("val", 4)):
        images = rng.standard_normal((n, 1, 16, 16), dtype=np.float32)
        if value is not None:
            images[0] = value
        splits[name] = Arrays(images, rng.integers(0, 5, (n, 16, 16)).astype(np.uint8))
    return splits


def record(method, rate, metric, *, seed=0, status="ok", trial_id=""):
    trial = Trial(trial_id or f"{method}-lr{rate:g}-s{seed}", method, seed, rate)
    return TrialRecord(trial, status, "" if status == "ok" else "RunError: no", best_metric=metric)


# Which trials there are


def test_trials_are_the_method_and_its_baselines_by_grid_rate_and_seed():
    spec = load_spec(
        "demo",
        ["baselines=[{method: fixed, grid: {phi: [0.5, 0.25]}}, {method: film}]"],
    )
    rates = {"sshn": (0.1,), "fixed": (0.1,), "film": (0.2,)}
    trials = trials_of(spec, seeds=(3, 1), rates=rates)
    assert [trial.trial_id for trial in trials] == [
        "sshn-s3",
        "sshn-s1",
        "fixed-phi0.5-s3",
        "fixed-phi0.5-s1",
        "fixed-phi0.25-s3",
        "fixed-phi0.25-s1",
        "film-s3",
        "film-s1",
    ]
    assert trials[2] == Trial("fixed-phi0.5-s3", "fixed", 3, 0.1, {"phi": 0.5})
    assert trials[-1] == Trial("film-s1", "film", 1, 0.2, {})


def test_several_rates_are_named_in_the_id():
    spec = load_spec("demo", ["baselines=[]", "train.learning_rate=[1.0e-3, 3.0e-3]"])
    trials = trials_of(spec, seeds=(0,), rates={"sshn": (1e-3, 3e-3)})
    assert [trial.trial_id for trial in trials] == ["sshn-lr0.001-s0", "sshn-lr0.003-s0"]
    (chosen,) = trials_of(spec, seeds=(1,), rates={"sshn": (3e-3,)})
    assert chosen.trial_id == "sshn-lr0.003-s1"


ADAPTING = (
    "train.grid={pair: [domain_0-to-domain_1, domain_1-to-domain_0], amount: [8, 0]}",
    "train.seeds=[0, 1]",
    "baselines=[{method: spottunet, grids: [{lambda: [0, 0.1], amount: [8]}, {lambda: [0.01]}]},"
    " {method: no-adaptation}, {method: oracle, grid: {fold: [0, 1]}}]",
)


def test_methods_are_trained_at_every_value_of_the_common_grid_that_concerns_them():
    spec = load_spec("spottunet-demo", ADAPTING)
    rates = dict.fromkeys(["spottunet-amortised", "spottunet", "no-adaptation", "oracle"], (1e-3,))
    trials = trials_of(spec, seeds=(0,), rates=rates)
    there, back = "pair-domain_0-to-domain_1", "pair-domain_1-to-domain_0"
    assert [t.trial_id for t in trials if t.method == "spottunet-amortised"] == [
        f"spottunet-amortised-{pair}-amount{n}-s0" for pair in (there, back) for n in (8, 0)
    ]
    # the first grid names an amount of its own
    assert [t.trial_id for t in trials if t.method == "spottunet" and there in t.trial_id] == [
        f"spottunet-{there}-amount8-lambda0-s0",
        f"spottunet-{there}-amount8-lambda0.1-s0",
        f"spottunet-{there}-amount8-lambda0.01-s0",
        f"spottunet-{there}-amount0-lambda0.01-s0",
    ]
    assert [t.settled for t in trials if t.method == "no-adaptation"] == [
        {"pair": "domain_0-to-domain_1"},
        {"pair": "domain_1-to-domain_0"},
    ]
    assert len([t for t in trials if t.method == "oracle"]) == 4


def test_every_source_is_trained_once_for_each_seed():
    spec = load_spec("spottunet-demo", ADAPTING)
    starts = starting_trials(spec)
    assert {(t.trial_id, t.seed, t.settled["domain"]) for t in starts} == {
        (f"source-domain-domain_{d}-s{s}", s, f"domain_{d}") for d in (0, 1) for s in (0, 1)
    }
    assert len(starts) == 4
    assert {t.learning_rate for t in starts} == {spec.adaptation.pretraining.learning_rate}
    assert starting_trials(load_spec("demo")) == []


def test_train_config_settles_the_defaults():
    spec = tiny_spec("train.epochs=80", "train.prior={phi: [0.1, 0.2]}")
    trial = Trial("sshn-s7", "sshn", 7, 0.25)
    config = train_config(spec, build_trainable(spec), trial)
    assert (config.seed, config.learning_rate, config.epochs) == (7, 0.25, 80)
    assert (config.validate_every, config.checkpoint_every) == (8, 20)
    assert config.prior == {"phi": (0.1, 0.2)}
    settled = {"phi": 0.3}
    fixed = train_config(spec, build_trainable(spec, "fixed", settled), trial)
    assert fixed.prior == {}


# The choice of a learning rate


@pytest.mark.parametrize(
    ("precision", "gpus", "capabilities", "expected"),
    [
        ("auto", 0, {"avx512_bf16": True}, "bf16"),
        ("auto", 0, {"amx_bf16": True}, "bf16"),
        ("auto", 0, {"avx2": True, "avx512_bf16": False}, "float32"),
        ("auto", 0.5, {"avx2": True}, "bf16"),
        ("bf16", 0, {"avx2": True}, "bf16"),
        ("float32", 0, {"avx512_bf16": True}, "float32"),
    ],
)
def test_precision_is_that_of_the_machine_where_the_spec_leaves_it_open(
    monkeypatch, precision, gpus, capabilities, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    spec = tiny_spec(f"train.precision={precision}", f"train.gpus_per_worker={gpus}")
    assert settled_precision(spec) == expected


def test_rate_with_the_best_mean_metric_is_chosen():
    spec = tiny_spec()
    records = [
        record("sshn", 0.1, 0.9, seed=0),
        record("sshn", 0.1, 0.5, seed=1),
        record("sshn", 0.2, 0.8, seed=0),
        record("sshn", 0.2, 0.7, seed=1),
        record("film", 0.3, 0.99),
    ]
    assert choose_rate(spec, records, "sshn") == 0.2
    assert choose_rate(spec, records, "film") == 0.3


def test_first_of_equal_rates_is_chosen():
    records = [record("sshn", rate, 0.5) for rate in (0.2, 0.1, 0.3)]
    assert choose_rate(tiny_spec(), records, "sshn") == 0.2


def test_rate_that_lost_a_trial_is_not_chosen_while_another_is_whole():
    records = [record("fixed", 0.1, 0.9, trial_id="fixed-phi0.1-lr0.1-s0")]
    records += [record("fixed", 0.2, 0.5, trial_id=f"fixed-phi{i}-lr0.2-s0") for i in range(2)]
    assert choose_rate(tiny_spec(), records, "fixed") == 0.2
    assert choose_rate(tiny_spec(), records[:2], "fixed") == 0.1


# What an ended trial leaves


def result(value=1.0):
    return TrainResult({"w": torch.full((2,), value)}, 1, 0.5, [{"epoch": 1.0}], 2.0, 3.0)


def test_record_and_weights_survive_the_disk(tmp_path):
    trial = Trial("fixed-phi0.3-s0", "fixed", 0, 0.1, {"phi": 0.3})
    keep_record(trial, result(), tmp_path / "t")
    kept = read_record(tmp_path / "t")
    assert (kept.trial, kept.status, kept.train_s, kept.wall_s) == (trial, "ok", 2.0, 3.0)
    assert kept.history == [{"epoch": 1.0}]
    torch.testing.assert_close(read_weights(tmp_path / "t"), result().best, rtol=0, atol=0)


def test_record_is_written_before_the_checkpoint_is_given_up(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("last.safetensors", "optimizer.safetensors", "state.json"):
        (checkpoint / name).write_text("{}")

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr("explorer.training.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_record(Trial("t", "sshn", 0, 0.1), result(), tmp_path)
    assert (checkpoint / "last.safetensors").exists()
    assert (checkpoint / "optimizer.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"trial": {"trial_id": "a"', r"trial\.json is damaged: expected JSON"),
        ("{}", r"trial\.json: expected the record of a trial; remove .* resume to train it again"),
        ("[]", r"trial\.json: expected the record of a trial"),
        ('{"trial": {"trial_id": "a"}, "status": "ok"}', "expected the record of a trial"),
        ('{"trial": 3, "status": "ok"}', "expected the record of a trial"),
    ],
)
def test_damaged_record_is_refused(tmp_path, text, message):
    (tmp_path / "trial.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_record(tmp_path)


def test_missing_record_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"trial\.json is missing"):
        read_record(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "truncated", "replaced"])
def test_weights_that_the_record_does_not_mean_are_refused(tmp_path, damage):
    keep_record(Trial("t", "sshn", 0, 0.1), result(), tmp_path)
    path = tmp_path / "checkpoint" / "best.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"best\.safetensors: expected weights with sha256 .*"):
        read_weights(tmp_path)


# What a worker's error means


def raised(error, cause=None):
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_root_cause_follows_the_chain_of_causes():
    inner = raised(OSError("disk"), None)
    assert root_cause(raised(ValueError("outer"), inner)) is inner
    assert root_cause(inner) is inner


def test_root_cause_stops_at_a_users_error():
    error = raised(RunError("disk full"), OSError("28"))
    assert root_cause(raised(ValueError("outer"), error)) is error


def test_root_cause_opens_what_a_callback_of_ray_train_raised():
    inner = RunError("the loss is nan")
    assert root_cause(ray.train.ControllerError(inner)) is inner


def test_root_cause_opens_the_errors_of_ray_train_workers():
    inner = RunError("the loss is nan")
    failed = RuntimeError("worker group")
    failed.worker_failures = {1: inner}
    assert root_cause(raised(ValueError("outer"), failed)) is inner


@pytest.mark.ray
def test_root_cause_opens_the_error_of_a_ray_task(ray_cluster):
    @ray.remote
    def fail():
        raise RunError("lower the rate")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fail.remote())
    cause = root_cause(caught.value)
    assert isinstance(cause, RunError)
    assert str(cause) == "lower the rate"


# Training for real, in Ray Tune


def damage_checkpoint(folder: Path) -> None:
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "state.json").write_text("{")


@pytest.mark.ray
def test_failed_trial_is_data_and_resumed_on_its_own(ray_cluster, tmp_path):
    spec = tiny_spec("train.seeds=[0,1]", "max_failures=1")
    damage_checkpoint(tmp_path / "sshn-s0")
    (survivor,) = train_all(spec, tiny_data(), tmp_path, QUIET)
    assert survivor.trial.trial_id == "sshn-s1"
    failed = read_record(tmp_path / "sshn-s0")
    assert failed.status == "failed"
    assert failed.error.startswith(str(tmp_path / "sshn-s0"))
    assert "damaged checkpoint; remove" in failed.error
    assert "\n" not in failed.error
    strict = tiny_spec("train.seeds=[0,1]")
    with pytest.raises(RunError, match=r"1 of 2 trials failed \(max_failures is 0\).*sshn-s0: "):
        train_all(strict, tiny_data(), tmp_path, QUIET)
    kept = (tmp_path / "sshn-s1" / "trial.json").stat().st_mtime_ns
    (tmp_path / "sshn-s0" / "checkpoint" / "state.json").unlink()
    again = train_all(strict, tiny_data(), tmp_path, QUIET)
    assert [one.trial.trial_id for one in again] == ["sshn-s0", "sshn-s1"]
    assert (tmp_path / "sshn-s1" / "trial.json").stat().st_mtime_ns == kept


@pytest.mark.ray
def test_method_that_lost_every_trial_stops_the_run_whatever_is_allowed(ray_cluster, tmp_path):
    spec = tiny_spec("baselines=[{method: stochastic}]", "max_failures=5")
    damage_checkpoint(tmp_path / "stochastic-s0")
    with pytest.raises(RunError, match=r"1 of 2 trials failed \(max_failures is 5\)"):
        train_all(spec, tiny_data(), tmp_path, QUIET)
    assert read_record(tmp_path / "sshn-s0").status == "ok"


@pytest.mark.ray
def test_loss_that_is_not_finite_fails_the_trial_in_one_clear_line(ray_cluster, tmp_path, capfd):
    with pytest.raises(RunError, match=r"sshn-s0: sshn: the loss is nan in epoch 1, step .*lower"):
        train_all(tiny_spec(), tiny_data(value=np.nan), tmp_path, QUIET)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert json.loads((tmp_path / "sshn-s0" / "trial.json").read_text())["status"] == "failed"


@pytest.mark.ray
def test_users_error_in_a_worker_is_met_once_and_not_tried_again(ray_cluster, tmp_path):
    attempts = tmp_path / "attempts"

    def counted(primary, model, centre, generator):
        with attempts.open("a") as file:
            file.write("built\n")
        return ConditionedNetwork(primary)

    method = Method(partial(ScaleSpaceSegmentation, "counted", condition=counted))
    spec = tiny_spec("method=counted", "train.num_workers=1")
    spec = spec.extended(Extensions(methods={"counted": method}))
    with pytest.raises(RunError, match=r"counted-s0: counted: the loss is nan in epoch 1, step"):
        train_all(spec, tiny_data(value=np.nan), tmp_path / "trials", QUIET)
    assert attempts.read_text() == "built\n"


@pytest.mark.ray
def test_learning_rate_is_chosen_with_the_first_seed_alone(ray_cluster, tmp_path):
    spec = tiny_spec("train.learning_rate=[1.0e-5, 3.0e-2]", "train.seeds=[0,1]", "train.epochs=8")
    records = train_all(spec, tiny_data(), tmp_path, QUIET)
    trained = sorted(path.name for path in tmp_path.iterdir())
    first = {
        rate: read_record(tmp_path / f"sshn-lr{rate:g}-s0").best_metric for rate in (1e-5, 3e-2)
    }
    best = max(first, key=first.__getitem__)
    assert first[1e-5] != first[3e-2]
    assert [one.trial.trial_id for one in records] == [f"sshn-lr{best:g}-s{s}" for s in (0, 1)]
    assert len(trained) == 3
    # what was trained stays; nothing is trained a second time
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/trial.json")}
    assert train_all(spec, tiny_data(), tmp_path, QUIET) == records
    assert {path: path.stat().st_mtime_ns for path in times} == times
