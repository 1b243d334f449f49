"""Questions to frozen models: which settings are evaluated next, where, and in which order.

A chunk is a batch of settings of one method, evaluated on every seed's model. The settings of
batch k are asked for after exactly the batches up to k - W have been told (W chunks in flight), so
the same spec gives the same table whatever the timing; a resumed exploration makes the same calls
and answers from the table what it finds there.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray import tune
from ray.tune.search import Searcher
from torch import nn

from explorer.measurements import Measurement, setting_id
from explorer.progress import ProgressReport
from explorer.sampling import Sampler
from explorer.specs import ExplorationSpec
from explorer.training import Trial, build_trainable, ray_session, root_cause
from search_spaces.errors import RunError
from search_spaces.space import Config
from trainables.base import Arrays, Trainable
from trainables.train_loop import evaluate_setting, load_tensors

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Chunk:
    """The settings that one Ray Tune trial of the exploration stage evaluates.

    Attributes:
        name: unique within an exploration.
        split: whose images are evaluated.
        trial_ids: the models, one per seed.
        settings: evaluated on each of them.
    """

    name: str
    split: str
    trial_ids: tuple[str, ...]
    settings: tuple[Config, ...]

    @property
    def keys(self) -> list[Key]:
        """Keys of the rows that the chunk gives, settings first."""
        ids = [setting_id(setting) for setting in self.settings]
        return [(trial_id, self.split, one) for one in ids for trial_id in self.trial_ids]


@dataclass(frozen=True)
class Evaluation:
    """One row of the table in the making, with the values of every image.

    Attributes:
        values: name to (n,) values; NaN where undefined for an image.
        evaluation_s: processor seconds (on a GPU: seconds) of the evaluation.
    """

    trial_id: str
    split: str
    setting: Config
    values: Mapping[str, NDArray[np.float64]]
    costs: Mapping[str, float]
    evaluation_s: float
    time: float


@dataclass
class Unit:
    """A method's models on one split, and where their settings come from."""

    name: str
    split: str
    trial_ids: tuple[str, ...]
    sampler: Sampler
    num_asked: int = 0
    num_told: int = 0
    chunks: dict[int, Chunk] = field(default_factory=dict)
    outcomes: dict[int, list[dict[str, float] | None]] = field(default_factory=dict)


class ListSampler:
    """Settings known beforehand, in their order."""

    def __init__(self, settings: Sequence[Config]) -> None:
        self._settings = iter(settings)

    def ask(self, n: int) -> list[Config]:
        return [setting for _, setting in zip(range(n), self._settings, strict=False)]

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Nothing: a list learns nothing."""


class Plan:
    """The order of all chunks: what may be asked now, and what was told.

    Args:
        units: explored one after the other; the next begins while the last is in flight.
        batch_size: settings per chunk.
        window: W, chunks in flight.
        recorded: rows that the table holds already, by key; they are never evaluated again.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        batch_size: int,
        window: int,
        recorded: Mapping[Key, Measurement],
    ) -> None:
        self.units = units
        self.batch_size, self.window = batch_size, window
        self.recorded = recorded
        self.current = 0
        self.in_flight: dict[str, tuple[Unit, int]] = {}

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to ask and nothing is in flight."""
        return self.current == len(self.units) and not self.in_flight

    def next_chunk(self) -> Chunk | None:
        """The next chunk that may be evaluated now; None while one is awaited, or at the end."""
        while self.current < len(self.units):
            unit = self.units[self.current]
            if not self._tell_until(unit, unit.num_asked - self.window):
                return None
            settings = unit.sampler.ask(self.batch_size)
            if not settings:
                self.current += 1
                continue
            name = f"{unit.split}-{unit.name}-{unit.num_asked:05d}"
            chunk = Chunk(name, unit.split, unit.trial_ids, tuple(settings))
            unit.chunks[unit.num_asked] = chunk
            self.in_flight[name] = unit, unit.num_asked
            unit.num_asked += 1
            if not all(key in self.recorded for key in chunk.keys):
                return chunk
            self.complete(chunk, [self.recorded[key] for key in chunk.keys])
        return None

    def complete(self, chunk: Chunk, rows: Sequence[Measurement]) -> None:
        """Take the rows of a chunk; seeds are averaged for the sampler."""
        unit, index = self.in_flight.pop(chunk.name)
        by_setting: dict[str, list[Measurement]] = {}
        for row in rows:
            by_setting.setdefault(row.setting_id, []).append(row)
        unit.outcomes[index] = [_mean(by_setting[setting_id(s)]) for s in chunk.settings]

    def _tell_until(self, unit: Unit, last: int) -> bool:
        while unit.num_told <= last:
            if unit.num_told not in unit.outcomes:
                return False
            settings = unit.chunks[unit.num_told].settings
            unit.sampler.tell(settings, unit.outcomes[unit.num_told])
            unit.num_told += 1
        return True


def _mean(rows: Sequence[Measurement]) -> dict[str, float]:
    """Means over the seeds that have a value: a label in no image and no prediction has none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in {**row.costs, **row.metrics}.items():
            values.setdefault(name, []).append(value)
    return {name: math.fsum(own) / len(own) for name, own in values.items()}


class FrozenModels:
    """Trained models by trial, ready to be asked; each is rebuilt once where it is used.

    Args:
        spec_data: the exploration's spec as plain data.
        trials: what each model is.
        weights: name to array, per trial.
        data: images per split.
    """

    def __init__(
        self,
        spec_data: Mapping[str, Any],
        trials: Mapping[str, Trial],
        weights: Mapping[str, Mapping[str, NDArray[Any]]],
        data: Mapping[str, Arrays],
    ) -> None:
        self.spec = ExplorationSpec.model_validate(spec_data)
        self.trials, self.weights, self.data = trials, weights, data
        self.built: dict[str, tuple[Trainable, nn.Module]] = {}

    def model(self, trial_id: str) -> tuple[Trainable, nn.Module]:
        """The trainable and the frozen module of a trial."""
        if trial_id not in self.built:
            trial = self.trials[trial_id]
            trainable = build_trainable(self.spec, trial.method, trial.settled)
            module = trainable.build(trial.seed)
            tensors = {n: torch.tensor(array) for n, array in self.weights[trial_id].items()}
            load_tensors(module, tensors, trial_id)
            self.built[trial_id] = trainable, module.eval()
        return self.built[trial_id]

    def evaluate(self, chunk: Chunk) -> Iterator[Evaluation]:
        """Evaluate every setting of a chunk on each of its models."""
        torch.set_num_threads(self.spec.train.num_threads)
        for setting in chunk.settings:
            for trial_id in chunk.trial_ids:
                yield self._evaluate(trial_id, chunk.split, setting)

    def _evaluate(self, trial_id: str, split: str, setting: Config) -> Evaluation:
        trainable, module = self.model(trial_id)
        asked = {n: setting[n] for n in trainable.problem.space.conditioning.names}
        start = time.process_time()
        values = evaluate_setting(
            trainable,
            module,
            self.data[split],
            asked,
            channels_last=self.spec.train.channels_last,
        )
        spent = time.process_time() - start
        costs = trainable.costs(asked)
        return Evaluation(trial_id, split, setting, values, costs, spent, time.time())


def explore(
    plan: Plan,
    models: FrozenModels,
    record: Callable[[Chunk, Sequence[Evaluation]], Sequence[Measurement]],
    progress: ProgressReport,
    *,
    num_workers: int,
) -> None:
    """Carry out a plan.

    Args:
        plan: what to evaluate.
        models: the frozen models.
        record: stores a finished chunk and returns its rows; called in this process.
        progress: shown per chunk.
        num_workers: actors of Ray Tune; 0 evaluates in this process.

    Raises:
        RunError: a chunk failed on every actor that tried it.
    """
    if num_workers:
        with ray_session():
            _explore_with_tune(plan, models, record, progress, num_workers)
        return
    while (chunk := plan.next_chunk()) is not None:
        plan.complete(chunk, record(chunk, list(models.evaluate(chunk))))
        progress.update(chunk.name, 1.0)


def _explore_with_tune(
    plan: Plan,
    models: FrozenModels,
    record: Callable[[Chunk, Sequence[Evaluation]], Sequence[Measurement]],
    progress: ProgressReport,
    num_workers: int,
) -> None:
    first = plan.next_chunk()
    if first is None:
        return
    search = _ChunkSearch(plan, first, record, progress)
    shared = ray.put(models)
    with tempfile.TemporaryDirectory(prefix="tune_") as storage:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_tune_chunk, shared=[shared]),
                {"cpu": float(models.spec.train.num_threads)},
            ),
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,
                max_concurrent_trials=num_workers,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        # Tune says that it will stop at the searcher's end, which is the plan; errors are raised
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        results = tuner.fit()
    for result in map(results.__getitem__, range(len(results))):
        if result.error is not None:
            cause = root_cause(result.error)
            raise RunError(
                f"exploring stopped: {type(cause).__name__}: {' '.join(str(cause).split())}; what "
                f"was measured is kept, resume to go on"
            ) from result.error
    if search.error is not None:
        raise search.error


class _ChunkSearch(Searcher):
    """Hands the plan's chunks to Ray Tune, and the results back."""

    def __init__(
        self,
        plan: Plan,
        first: Chunk,
        record: Callable[[Chunk, Sequence[Evaluation]], Sequence[Measurement]],
        progress: ProgressReport,
    ) -> None:
        super().__init__(metric=None, mode=None)
        self.plan, self.record, self.progress = plan, record, progress
        self.waiting: list[Chunk] = [first]
        self.chunks: dict[str, Chunk] = {}
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves searchers for its own restore; ours is the table
        return {}

    def suggest(self, trial_id: str) -> Any:
        if self.error is not None:
            return Searcher.FINISHED
        chunk = self.waiting.pop() if self.waiting else self.plan.next_chunk()
        if chunk is None:
            return Searcher.FINISHED if self.plan.is_finished else None
        self.chunks[trial_id] = chunk
        return {"chunk": chunk}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        chunk = self.chunks.pop(trial_id)
        if error or not result:
            self.error = self.error or RunError(f"chunk {chunk.name} failed")
            return
        try:
            self.plan.complete(chunk, self.record(chunk, result["evaluations"]))
        except Exception as failure:  # noqa: BLE001 - raised again once Tune has stopped
            self.error = failure
        self.progress.update(chunk.name, 1.0)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the table is what a resumed exploration reads."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


_MODELS: dict[Any, FrozenModels] = {}


def _tune_chunk(config: dict[str, Any], shared: list[ray.ObjectRef[FrozenModels]]) -> None:
    """Evaluate one chunk on a reused actor, which rebuilds the models once."""
    reference = shared[0]
    if reference not in _MODELS:
        _MODELS.clear()
        _MODELS[reference] = ray.get(reference)
    tune.report({"evaluations": list(_MODELS[reference].evaluate(config["chunk"]))})
