"""Trials that train: as Ray Tune trials, each in its process or over Ray Train workers."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from safetensors.torch import load, save
from torch import nn

from explorer.models import build_trainable, method_of
from explorer.places import Place, fetched, place_of, written_locally
from explorer.progress import ProgressReport
from explorer.specs import BaselineSpec, ExplorationSpec, Grid
from explorer.store import filesystem_of, read_json, write_bytes, write_json
from search_spaces.errors import InputError, RunError, UserError
from search_spaces.rescaling import prior_around
from search_spaces.space import Config
from trainables.base import Arrays, Precision, Trainable, TrainConfig
from trainables.train_loop import PlainContext, TrainResult, kept_checkpoint, load_tensors, train

CHECKPOINT_FILE = "checkpoint.zip"  # of a trial in an object store
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ctrl-C is to interrupt; Tune would return as if its trials had ended
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # glibc otherwise returns large arrays to the system after every step and faults them in again
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
}


@dataclass(frozen=True)
class Trial:
    """One training: a method, its training parameters, a learning rate and a seed.

    Attributes:
        trial_id: readable and the same for equal trials of an exploration.
        settled: conditioning parameters demoted to training parameters (a grid baseline's).
    """

    trial_id: str
    method: str
    seed: int
    learning_rate: float
    settled: Config = field(default_factory=dict)


@dataclass(frozen=True)
class TrialRecord:
    """How a trial ended; stored beside its weights as `trial.json`.

    Attributes:
        status: `ok` or `failed`.
        error: type and message of a failure.
        best_metric: the problem's first objective on the validation split at `best_epoch`.
        train_s: processor seconds (on a GPU: seconds) of training, validation and checkpoints.
        weights_digest: sha256 of the chosen weights.
    """

    trial: Trial
    status: str
    error: str = ""
    best_metric: float = 0.0
    best_epoch: int = 0
    train_s: float = 0.0
    wall_s: float = 0.0
    weights_digest: str = ""
    history: list[dict[str, float]] = field(default_factory=list)


def train_config(spec: ExplorationSpec, trainable: Trainable, trial: Trial) -> TrainConfig:
    """How a trial is trained: the spec's section `train` with its defaults settled."""
    section = spec.train
    epochs_of = [one.epochs for one in spec.baselines if one.method == trial.method]
    default = section.epochs
    if _is_from_scratch(spec, trial.method):
        default = spec.adaptation.pretraining.epochs
    epochs = next(filter(None, epochs_of), default)
    names = trainable.problem.space.conditioning.names
    prior = {name: ends for name, ends in section.prior.items() if name in names}
    own = trial.settled
    if "prior_width" in own:
        width = float(own["prior_width"])
        prior = {name: prior_around(ends, width) for name, ends in prior.items()}
    return TrainConfig(
        epochs=epochs,
        steps_per_epoch=section.steps_per_epoch,
        batch_size=section.batch_size,
        optimizer=section.optimizer,
        learning_rate=trial.learning_rate,
        betas=section.betas,
        schedule=section.schedule,
        max_grad_norm=section.max_grad_norm,
        prior=prior,
        endpoint_share=section.endpoint_share,
        prior_power=float(own.get("prior_power", section.prior_power)),
        draws="common" if own.get("draws", section.draws) == "common" else "separate",
        seed=trial.seed,
        precision=settled_precision(spec),
        channels_last=section.channels_last,
        augment=section.augment,
        validate_every=section.validate_every or max(1, epochs // 10),
        checkpoint_every=section.checkpoint_every or max(1, epochs // 4),
        patience=section.patience,
        keep=section.keep,
        num_threads=section.num_threads,
    )


def settled_precision(spec: ExplorationSpec) -> Precision:
    """What `train.precision` stands for on this machine; see `TrainSpec`."""
    section = spec.train
    if section.precision != "auto":
        return section.precision
    if section.gpus_per_worker:
        return "bf16"
    # torch 2.11 has none
    computes_in: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = any(computes_in.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16" if has_bf16 else "float32"


def trials_of(
    spec: ExplorationSpec, *, seeds: Sequence[int], rates: Mapping[str, Sequence[float]]
) -> list[Trial]:
    """Every training of the spec's method and baselines for these seeds and learning rates."""
    methods = [BaselineSpec(method=spec.method), *spec.baselines]
    name_rate = len(spec.train.learning_rates) > 1
    trials = []
    for baseline in methods:
        places = method_of(spec, baseline.method).places
        common = {n: own for n, own in spec.train.grid.items() if n in places}
        for settled in _settings(common, baseline.every_grid or ({},)):
            for rate, seed in itertools.product(rates[baseline.method], seeds):
                name = _trial_id(baseline.method, settled, seed, rate if name_rate else None)
                trials.append(Trial(name, baseline.method, seed, rate, settled))
    return trials


def _settings(common: Grid, grids: Sequence[Grid]) -> Iterator[Config]:
    for own in grids:
        grid = {**common, **own}
        for values in itertools.product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


def _trial_id(method: str, settled: Config, seed: int, rate: float | None = None) -> str:
    parts = [method, *settled_parts(settled)]
    return "-".join([*parts, *([] if rate is None else [f"lr{rate:g}"]), f"s{seed}"])


def _is_from_scratch(spec: ExplorationSpec, method: str) -> bool:
    """Whether others start from what this one begins with: nothing."""
    chosen = method_of(spec, method)
    return chosen.task == "adaptation" and chosen.start is None


def rates_of(spec: ExplorationSpec, method: str) -> tuple[float, ...]:
    """The learning rates that a method may train with."""
    if _is_from_scratch(spec, method):
        return (spec.adaptation.pretraining.learning_rate,)
    return spec.train.learning_rates


def starting_trials(spec: ExplorationSpec) -> list[Trial]:
    """The trainings that others of the same seed start from."""
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    rates = dict.fromkeys(methods, (0.0,))
    found = {}
    for trial in trials_of(spec, seeds=spec.train.seeds, rates=rates):
        start = _start_of(spec, trial)
        if start is not None:
            found[start.trial_id] = start
    return list(found.values())


def _start_of(spec: ExplorationSpec, trial: Trial) -> Trial | None:
    """The training that a trial starts from."""
    start = method_of(spec, trial.method).start
    if start is None:
        return None
    method, settled = start(trial.settled)
    (rate,) = rates_of(spec, method)
    return Trial(_trial_id(method, settled, trial.seed), method, trial.seed, rate, settled)


def settled_parts(settled: Config) -> list[str]:
    """Parts of the name of a training or of a group of them: `phi0.4`, `interpolation-nearest`."""
    return [
        f"{name}-{value}" if isinstance(value, str) else f"{name}{value:g}"
        for name, value in settled.items()
    ]


def train_all(
    spec: ExplorationSpec,
    data: Mapping[str, Arrays],
    folder: Place,
    progress: ProgressReport,
) -> list[TrialRecord]:
    """Train every trial of the spec that `folder` does not hold yet, and choose learning rates.

    With several learning rates, each method takes the one whose trials of the first seed have the
    best mean validation metric; the other seeds then train with that one alone.

    Returns:
        The trials to explore, in a fixed order.

    Raises:
        RunError: more trials failed than the spec allows, or every trial of a method did.
    """
    seeds, rates = spec.train.seeds, spec.train.learning_rates
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    first_seeds = seeds if len(rates) == 1 else seeds[:1]
    candidates = {method: rates_of(spec, method) for method in methods}
    first = trials_of(spec, seeds=first_seeds, rates=candidates)
    starts = starting_trials(spec)
    if starts:
        _surviving(_train_trials(spec, starts, data, folder, progress), spec)
    records = _train_trials(spec, first, data, folder, progress)
    survivors = _surviving(records, spec)
    if len(rates) == 1:
        return survivors
    chosen = {method: (choose_rate(spec, survivors, method),) for method in methods}
    picks = ", ".join(f"{method} {rate:g}" for method, (rate,) in chosen.items())
    progress.say(f"learning rates chosen on validation: {picks}")
    rest = trials_of(spec, seeds=seeds[1:], rates=chosen)
    records += _train_trials(spec, rest, data, folder, progress)
    survivors = _surviving(records, spec)
    return [r for r in survivors if r.trial.learning_rate == chosen[r.trial.method][0]]


def choose_rate(spec: ExplorationSpec, records: Sequence[TrialRecord], method: str) -> float:
    """The learning rate with the best mean validation metric over a method's trials.

    A rate with a failed trial is not chosen as long as another has none.
    """
    objective = build_trainable(spec, spec.method).problem.objectives[0]
    own = [record for record in records if record.trial.method == method]
    by_rate: dict[float, list[float]] = {}
    for record in own:
        loss = objective.to_loss(record.best_metric)
        by_rate.setdefault(record.trial.learning_rate, []).append(loss)
    most = max(len(losses) for losses in by_rate.values())
    whole = {rate: sum(x) / len(x) for rate, x in by_rate.items() if len(x) == most}
    return min(whole, key=lambda rate: whole[rate])


def _surviving(records: list[TrialRecord], spec: ExplorationSpec) -> list[TrialRecord]:
    failed = [record for record in records if record.status != "ok"]
    survivors = [record for record in records if record.status == "ok"]
    lost = {r.trial.method for r in failed} - {r.trial.method for r in survivors}
    if len(failed) > spec.max_failures or lost:
        first = failed[0]
        raise RunError(
            f"{len(failed)} of {len(records)} trials failed (max_failures is "
            f"{spec.max_failures}); the first, {first.trial.trial_id}: {first.error}"
        )
    return survivors


def _train_trials(
    spec: ExplorationSpec,
    trials: Sequence[Trial],
    data: Mapping[str, Arrays],
    folder: Place,
    progress: ProgressReport,
) -> list[TrialRecord]:
    todo = [trial for trial in trials if not _is_trained(folder / trial.trial_id)]
    if trials:
        progress.phase("training", len(trials))
    for trial in trials:
        if trial not in todo:
            progress.update(trial.trial_id, 1.0, "kept")
    if todo:
        with ray_session():
            _tune_trials(spec, todo, data, folder, progress)
    return [read_record(folder / trial.trial_id) for trial in trials]


def _is_trained(folder: Place) -> bool:
    return (folder / "trial.json").exists() and read_record(folder).status == "ok"


def read_record(folder: Place) -> TrialRecord:
    """The record of a finished trial.

    Raises:
        InputError: missing or damaged.
    """
    path = folder / "trial.json"
    data = read_json(path)
    try:
        return TrialRecord(**{**data, "trial": Trial(**data["trial"])})
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the record of a trial; remove {folder} and resume to train it again"
        ) from error


def read_weights(folder: Place) -> dict[str, torch.Tensor]:
    """The chosen weights of a finished trial.

    Raises:
        InputError: missing, damaged, or not those that the trial ended with.
    """
    path = folder / "checkpoint" / "best.safetensors"
    data = path.read_bytes() if path.is_file() else None
    digest = "no file" if data is None else hashlib.sha256(data).hexdigest()
    expected = read_record(folder).weights_digest
    if data is None or digest != expected:
        raise InputError(
            f"{path}: expected weights with sha256 {expected[:12]}, got {digest[:12]}; restore "
            f"them, or remove {folder} and resume to train the trial again"
        )
    tensors: dict[str, torch.Tensor] = load(data)
    return tensors


def _tune_trials(
    spec: ExplorationSpec,
    trials: Sequence[Trial],
    data: Mapping[str, Arrays],
    folder: Place,
    progress: ProgressReport,
) -> None:
    distributed = spec.train.num_workers > 0
    # a trial over Ray Train workers only waits for them: they hold the processors, all of them
    needs: dict[str, float] = {"memory": 2**20}
    if not distributed:
        needs = {"cpu": spec.train.num_threads, "gpu": spec.train.gpus_per_worker}
    # of the test split only what a cross-validation leaves out in turn
    shared = ray.put({n: own for n, own in data.items() if n != "test" or own.folds is not None})
    with tempfile.TemporaryDirectory(prefix="tune_") as storage:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_tune_trial, spec=spec, data=[shared]),
                needs,
            ),
            param_space={
                "trial": tune.grid_search([asdict(trial) for trial in trials]),
                "folder": str(folder),
            },
            tune_config=tune.TuneConfig(
                # on a GPU an error may stay with its process, and processes of lost nodes are gone
                reuse_actors=not spec.train.gpus_per_worker and _is_one_machine(),
                max_concurrent_trials=_num_fitting(spec) if distributed else None,
            ),
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),  # for lost nodes
                callbacks=[_TrialProgress(progress)],
            ),
        )
        # a failed trial is told in one line, by its record
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        results = tuner.fit()
    for result in map(results.__getitem__, range(len(results))):
        trial = Trial(**(result.config or {})["trial"])
        if result.error is not None:
            _record_failure(trial, folder / trial.trial_id, result.error)
    for trial in trials:
        if not (folder / trial.trial_id / "trial.json").exists():
            _record_failure(trial, folder / trial.trial_id, RunError("did not finish"))


def _is_one_machine() -> bool:
    return len(ray.nodes()) == 1  # type: ignore[no-untyped-call]  # ray's


def _num_fitting(spec: ExplorationSpec) -> int:
    """How many groups of workers the cluster can hold now; Ray Train gives up on waiting ones."""
    num_processors = spec.train.num_workers * spec.train.num_threads
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray's
    return max(1, int(resources.get("CPU", 0) // num_processors))


def require_resources(spec: ExplorationSpec) -> None:
    """Refuse a trial that this machine alone could never start; Ray would wait for ever.

    Raises:
        InputError: more processors or GPUs than there are, and no cluster is named.
    """
    if os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        return
    section = spec.train
    num_workers = max(1, section.num_workers)
    available = {"processors": os.cpu_count() or 1, "GPUs": torch.cuda.device_count()}
    wanted = {"processors": section.num_threads, "GPUs": section.gpus_per_worker}
    for name, each in wanted.items():
        if num_workers * each > available[name]:
            raise InputError(
                f"train: {num_workers} workers with {each:g} {name} each do not fit on this "
                f"machine, which has {available[name]}; lower train.num_workers, num_threads or "
                f"gpus_per_worker, or name a cluster in RAY_ADDRESS"
            )


def _record_failure(trial: Trial, folder: Place, error: Exception) -> None:
    cause = root_cause(error)
    kind = "" if isinstance(cause, UserError) else f"{type(cause).__name__}: "
    record = TrialRecord(trial, "failed", " ".join(f"{kind}{cause}".split()))
    write_json(folder / "trial.json", asdict(record))


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised, without the wrappers that carried it here."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return root_cause(error.cause)
    if isinstance(error, ray.train.ControllerError):
        return root_cause(error.controller_failure)
    workers = getattr(error, "worker_failures", None)
    if workers:
        return root_cause(next(iter(workers.values())))
    if error.__cause__ is not None and not isinstance(error, UserError):
        return root_cause(error.__cause__)
    return error


class _TrialProgress(tune.Callback):
    """Shows what trials report."""

    def __init__(self, progress: ProgressReport) -> None:
        self.progress = progress

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves callbacks for its own restore, which is not used: trials resume by themselves
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result:
            val = f", val {result['val']:.4f}" if "val" in result else ""
            note = (
                f"epoch {result['epoch']}/{result['epochs']}, loss {result['train_loss']:.4f}{val}"
            )
            fraction = min(result["epoch"] / result["epochs"], 0.99)
            self.progress.update(trial.config["trial"]["trial_id"], fraction, note)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        note = "failed" if (trial.last_result or {}).get("failed") else "trained"
        self.progress.update(trial.config["trial"]["trial_id"], 1.0, note)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.update(trial.config["trial"]["trial_id"], 1.0, "failed")


class TuneContext(PlainContext):
    """A Ray Tune trial: the plain context, with progress told to Tune."""

    def report(self, metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        super().report(metrics, checkpoint_dir)
        tune.report(metrics)


class StoredTuneContext(TuneContext):
    """A Ray Tune trial whose folder is in an object store: its checkpoints are copied there.

    Each as one object, which is there as a whole or not at all.

    Args:
        folder: of the trial.
        scratch_dir: a local folder, the caller's to remove.
        device: torch device string.
    """

    def __init__(self, folder: Place, scratch_dir: Path, *, device: str) -> None:
        super().__init__(scratch_dir, device=device)
        self.stored = folder / CHECKPOINT_FILE
        if self.stored.exists():
            try:
                with zipfile.ZipFile(fetched(self.stored, scratch_dir)) as archive:
                    archive.extractall(scratch_dir / "checkpoint")
            except zipfile.BadZipFile as error:
                raise InputError(
                    f"{self.stored} is damaged ({error}); delete it and resume to train the trial "
                    f"from its start"
                ) from error

    def report(self, metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        super().report(metrics, checkpoint_dir)
        kept = kept_checkpoint(self.folder)
        if checkpoint_dir is not None and kept is not None:
            with written_locally(self.stored) as path, zipfile.ZipFile(path, "w") as archive:
                for file in sorted(kept.iterdir()):
                    archive.write(file, file.name)


class WorkerContext:
    """One of the workers of a Ray Train run; `scratch_dir` is the caller's to remove."""

    def __init__(self, scratch_dir: Path) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = str(ray.train.torch.get_device())
        self.scratch_dir = scratch_dir

    def report(self, metrics: dict[str, Any], checkpoint_dir: Path | None) -> None:
        if checkpoint_dir is None:
            ray.train.report(metrics)
            return
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(checkpoint_dir))
        shutil.rmtree(checkpoint_dir, ignore_errors=True)

    def checkpoint_dir(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        return Path(checkpoint.to_directory(str(self.scratch_dir / "resumed")))

    def prepare(self, module: nn.Module) -> nn.Module:
        prepared: nn.Module = ray.train.torch.prepare_model(module)
        return prepared


class _EndAtMistakes(ray.train.UserCallback):
    """Ends a run at a user's error, which every other attempt would meet again.

    What a callback raises Ray Train passes on; other failures it takes for a lost worker's.
    """

    def after_exception(
        self, run_context: Any, worker_exceptions: Mapping[int, BaseException]
    ) -> None:
        for cause in map(root_cause, worker_exceptions.values()):
            if isinstance(cause, UserError):
                raise cause


def _tune_trial(
    config: dict[str, Any], spec: ExplorationSpec, data: list[ray.ObjectRef[Any]]
) -> None:
    """Train one trial inside a Ray Tune trial; leaves `trial.json` and its weights.

    Only a lost process is tried again, by Tune: what is raised would be raised once more.
    """
    trial = Trial(**config["trial"])
    folder = place_of(config["folder"]) / trial.trial_id
    try:
        _train_in_trial(config, spec, data, trial, folder)
    except ray.exceptions.RayError:
        raise  # a lost object's, or a lost worker's
    except Exception as error:  # noqa: BLE001 - a failed trial is data
        _record_failure(trial, folder, error)
        tune.report({"failed": True})


def _train_in_trial(
    config: dict[str, Any],
    spec: ExplorationSpec,
    data: list[ray.ObjectRef[Any]],
    trial: Trial,
    folder: Place,
) -> None:
    if spec.train.num_workers == 0:
        with _tune_context(folder, _device(spec)) as context:
            result = train_trial(spec, trial, ray.get(data[0]), context, folder.parent)
        keep_record(trial, result, folder)
        return
    storage_filesystem, storage_path = filesystem_of(folder / "ray_train")
    digest = hashlib.sha256(f"{spec.digest}{trial}".encode()).hexdigest()[:12]
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={**config, "spec": spec, "data": data},
        scaling_config=ray.train.ScalingConfig(
            num_workers=spec.train.num_workers,
            use_gpu=spec.train.gpus_per_worker > 0,
            resources_per_worker={"CPU": spec.train.num_threads}
            | ({"GPU": spec.train.gpus_per_worker} if spec.train.gpus_per_worker else {}),
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # ray annotates its old one
            # a run's name is what it resumes by: one name per content
            name=f"{trial.trial_id}-{digest}",
            storage_path=storage_path,
            storage_filesystem=storage_filesystem,
            failure_config=ray.train.FailureConfig(max_failures=2),  # for lost workers
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[TuneReportCallback(), _EndAtMistakes()],  # type: ignore[list-item, no-untyped-call]  # ray's
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    trainer.fit()
    with suppress(OSError):
        storage_filesystem.delete_dir(storage_path)


def _train_worker(config: dict[str, Any]) -> None:
    """Train one trial as a Ray Train worker; the first one leaves the record and the weights."""
    spec: ExplorationSpec = config["spec"]
    trial = Trial(**config["trial"])
    with tempfile.TemporaryDirectory(prefix="worker_") as scratch_dir:
        context = WorkerContext(Path(scratch_dir))
        folder = place_of(config["folder"])
        result = train_trial(spec, trial, ray.get(config["data"][0]), context, folder)
    if context.rank == 0:
        keep_record(trial, result, folder / trial.trial_id)


@contextmanager
def _tune_context(folder: Place, device: str) -> Iterator[TuneContext]:
    if isinstance(folder, Path):
        yield TuneContext(folder, device=device)
        return
    with tempfile.TemporaryDirectory(prefix="trial_") as scratch_dir:
        yield StoredTuneContext(folder, Path(scratch_dir), device=device)


def _device(spec: ExplorationSpec) -> str:
    return "cuda" if spec.train.gpus_per_worker and torch.cuda.is_available() else "cpu"


def train_trial(
    spec: ExplorationSpec, trial: Trial, data: Mapping[str, Arrays], context: Any, folder: Place
) -> TrainResult:
    """Train one trial where `context` says; `folder` holds the trial that it starts from."""
    trainable = build_trainable(spec, trial.method, trial.settled)
    start = _start_of(spec, trial)
    weights = None if start is None else read_weights(folder / start.trial_id)
    return train(trainable, data, train_config(spec, trainable, trial), context, start=weights)


def keep_record(trial: Trial, result: TrainResult, folder: Place) -> None:
    """Write a finished trial's chosen weights and then its record: the record says all is there."""
    target = folder / "checkpoint"
    weights = save(result.best)
    write_bytes(target / "best.safetensors", weights)
    record = TrialRecord(
        trial,
        "ok",
        best_metric=result.best_metric,
        best_epoch=result.best_epoch,
        train_s=result.train_s,
        wall_s=result.wall_s,
        weights_digest=hashlib.sha256(weights).hexdigest(),
        history=result.history,
    )
    write_json(folder / "trial.json", asdict(record))
    # only now is the checkpoint of no use: a writer killed before resumes from it
    for name in ("last.safetensors", "optimizer.safetensors"):
        (target / name).unlink(missing_ok=True)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def trained_model(folder: Place, spec: ExplorationSpec) -> tuple[Trainable, nn.Module]:
    """The trainable and the module of a finished trial, as it was chosen.

    Raises:
        InputError: its record or weights are missing or damaged.
    """
    trial = read_record(folder).trial
    trainable = build_trainable(spec, trial.method, trial.settled)
    module = trainable.build(trial.seed)
    load_tensors(module, read_weights(folder), str(folder))
    return trainable, module.eval()


@contextmanager
def ray_session(
    progress: ProgressReport | None = None, *, log_to_driver: bool = False
) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start a private one for the time being.

    A session that is already there is used and left alone; `progress` is told of another. What
    workers print is shown where `log_to_driver` says so.

    Raises:
        RunError: the cluster cannot be reached.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if progress is not None:
        progress.say(f"joining Ray at {address}" if address else "starting Ray on this machine")
    if address:
        _probe(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=log_to_driver)
        else:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=log_to_driver,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        place = f"RAY_ADDRESS={address}" if address else "the local Ray"
        raise RunError(f"{place} cannot be used: {str(error).splitlines()[0]}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)  # Ray took it over
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Fail at once, with a clear line, where Ray itself would wait for a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit() or not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise RunError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error}); start one or unset "
            f"RAY_ADDRESS to run on this machine"
        ) from error
