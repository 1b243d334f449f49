"""Questions to frozen models: which settings are evaluated next, where, and in which order.

A chunk is a batch of settings of one method, evaluated on every seed's model. Where it makes a
difference, the settings of batch k are asked for after exactly the batches up to k - W have been
told (W chunks in flight), so the same spec gives the same table whatever the timing; a resumed
exploration makes the same calls and answers from the table what it finds there.

Every worker is a Ray Tune trial that takes chunk after chunk. A trial per chunk on reused actors
would leave all but one worker idle: Tune ends an actor that has no next trial at once, and while
another one starts, which takes seconds, the others take its trials.
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
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import nn

from explorer.mailbox import Letter, Mailbox
from explorer.measurements import Measurement, setting_id
from explorer.models import build_trainable
from explorer.progress import ProgressReport
from explorer.racing import Race, Rival, Values, mean_over_seeds
from explorer.sampling import Sampler
from explorer.specs import ExplorationSpec
from explorer.training import Trial, ray_session, root_cause
from search_spaces.errors import RunError
from search_spaces.space import Config
from trainables.base import Arrays, Precision, Trainable
from trainables.train_loop import evaluate_network, load_tensors

Key = tuple[str, str, str]

SMALL_CHUNK, LARGE_CHUNK = 10, 200  # settings
LEAST_CHUNKS = 4  # per worker


@dataclass(frozen=True)
class Chunk:
    """The settings that a worker of the exploration stage evaluates before it reports.

    Attributes:
        name: unique within an exploration.
        split: whose images are evaluated.
        trial_ids: the models, one per seed.
        settings: evaluated on each of them.
        race: the rules by which a setting is given up; None: each is evaluated to the end.
        rivals: what the settings run against, beside those before them in the chunk.
        neighbours: of the settings, evaluated to the end before; see `Race.nearest`.
    """

    name: str
    split: str
    trial_ids: tuple[str, ...]
    settings: tuple[Config, ...]
    race: Race | None = None
    rivals: tuple[Rival, ...] = ()
    neighbours: tuple[Rival, ...] = ()

    @property
    def keys(self) -> list[Key]:
        """Keys of the rows that the chunk gives, settings first."""
        ids = [setting_id(setting) for setting in self.settings]
        return [(trial_id, self.split, one) for one in ids for trial_id in self.trial_ids]


@dataclass(frozen=True, repr=False)  # Tune prints what it is told, several times
class Evaluation:
    """One row of the table in the making, with the values of every image.

    Attributes:
        values: name to (n,) values; NaN where undefined for an image.
        sample_indices: (n,) images of the split that were seen, in the order of the values.
        is_complete: whether those are all.
        evaluation_s: processor seconds (on a GPU: seconds) of the evaluation.
    """

    trial_id: str
    split: str
    setting: Config
    values: Mapping[str, NDArray[np.float64]]
    sample_indices: NDArray[np.int64]
    is_complete: bool
    costs: Mapping[str, float]
    evaluation_s: float
    time: float


@dataclass
class Unit:
    """A method's models on one split, and where their settings come from.

    `settled` is what the models were trained for, which joins every setting of the sampler. With
    `race`, settings that cannot matter are given up before their last image.
    """

    name: str
    split: str
    trial_ids: tuple[str, ...]
    sampler: Sampler
    settled: Config = field(default_factory=dict)
    race: Race | None = None
    num_asked: int = 0
    num_told: int = 0
    chunks: dict[int, Chunk] = field(default_factory=dict)
    outcomes: dict[int, list[dict[str, float] | None]] = field(default_factory=dict)
    runners: dict[int, list[Rival]] = field(default_factory=dict)
    finishers: list[Rival] = field(default_factory=list)
    rivals: list[Rival] = field(default_factory=list)

    @property
    def learns(self) -> bool:
        """Whether what was told before makes a difference to a chunk."""
        return self.race is not None or num_settings(self.sampler) is None


class ListSampler:
    """Settings known beforehand, in their order."""

    def __init__(self, settings: Sequence[Config]) -> None:
        self.num_settings = len(settings)
        self._settings = iter(settings)

    def ask(self, n: int) -> list[Config]:
        return [setting for _, setting in zip(range(n), self._settings, strict=False)]

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Nothing: a list learns nothing."""


def num_settings(sampler: Sampler) -> int | None:
    """How many settings a sampler has at most, if it learns nothing from what it is told."""
    return getattr(sampler, "num_settings", None)


def chunk_size(samplers: Sequence[Sampler], num_workers: int) -> int:
    """Settings per chunk: few where a sampler learns, else several chunks for every worker.

    Then each worker has as many as the others, so that all end at about the same time.
    """
    counts = [num_settings(sampler) for sampler in samplers]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return SMALL_CHUNK
    each = sum(known) / max(1, num_workers)
    num_chunks = max(LEAST_CHUNKS, math.ceil(each / LARGE_CHUNK))
    return max(SMALL_CHUNK, math.ceil(each / num_chunks))


class Plan:
    """The order of all chunks: what may be asked now, and what was told.

    Args:
        units: explored one after the other; the next begins while the last is in flight.
        batch_size: settings per chunk.
        window: W, chunks in flight.
        recorded: rows that the table holds already, by key; they are never evaluated again.
        recorded_values: values per image of those that were raced to the end.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        batch_size: int,
        window: int,
        recorded: Mapping[Key, Measurement],
        recorded_values: Mapping[Key, Values],
    ) -> None:
        self.units = units
        self.batch_size, self.window = batch_size, window
        self.recorded, self.recorded_values = recorded, recorded_values
        self.current = 0
        self.in_flight: dict[str, tuple[Unit, int]] = {}

    @property
    def is_asked(self) -> bool:
        """Whether nothing is left to ask."""
        return self.current == len(self.units)

    @property
    def num_chunks(self) -> int | None:
        """How many chunks there are, if no bound on a cost rules settings out; None: not known."""
        counts = [num_settings(unit.sampler) for unit in self.units]
        known = [math.ceil(count / self.batch_size) for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def next_chunk(self) -> Chunk | None:
        """The next chunk that may be evaluated now; None while one is awaited, or at the end."""
        while self.current < len(self.units):
            unit = self.units[self.current]
            if not self._tell_until(unit, unit.num_asked - self.window) and unit.learns:
                return None
            settings = [{**own, **unit.settled} for own in unit.sampler.ask(self.batch_size)]
            if not settings:
                self.current += 1
                continue
            name = f"{unit.split}-{unit.name}-{unit.num_asked:05d}"
            near = unit.race.nearest(settings, unit.finishers) if unit.race else []
            chunk = Chunk(
                name,
                unit.split,
                unit.trial_ids,
                tuple(settings),
                unit.race,
                tuple(unit.rivals),
                tuple({id(one): one for one in near}.values()),
            )
            unit.chunks[unit.num_asked] = chunk
            self.in_flight[name] = unit, unit.num_asked
            unit.num_asked += 1
            if not all(key in self.recorded for key in chunk.keys):
                return chunk
            self.complete(chunk, [self.recorded[key] for key in chunk.keys], self.recorded_values)
        return None

    def complete(
        self, chunk: Chunk, rows: Sequence[Measurement], values: Mapping[Key, Values]
    ) -> None:
        """Take the rows of a chunk, and the values per image of settings evaluated to the end.

        Seeds are averaged for the sampler and for the settings that run later.
        """
        unit, index = self.in_flight.pop(chunk.name)
        by_setting: dict[str, list[Measurement]] = {}
        for row in rows:
            by_setting.setdefault(row.setting_id, []).append(row)
        outcomes = [_mean(by_setting[setting_id(s)]) for s in chunk.settings]
        unit.outcomes[index] = list(outcomes)
        if chunk.race is not None:
            unit.runners[index] = _finishers(chunk, chunk.race, outcomes, values)

    def _tell_until(self, unit: Unit, last: int) -> bool:
        while unit.num_told <= last:
            if unit.num_told not in unit.outcomes:
                return False
            settings = unit.chunks[unit.num_told].settings
            asked = [{n: x for n, x in one.items() if n not in unit.settled} for one in settings]
            unit.sampler.tell(asked, unit.outcomes[unit.num_told])
            if unit.race is not None:
                finishers = unit.runners.pop(unit.num_told)
                unit.finishers += finishers
                unit.rivals = unit.race.keep_rivals([*unit.rivals, *finishers])
            unit.num_told += 1
        return True


def _finishers(
    chunk: Chunk,
    race: Race,
    outcomes: Sequence[Mapping[str, float]],
    values: Mapping[Key, Values],
) -> list[Rival]:
    """The settings of a raced chunk that every model was evaluated at to the end."""
    finishers = []
    for setting, outcome in zip(chunk.settings, outcomes, strict=True):
        keys = [(one, chunk.split, setting_id(setting)) for one in chunk.trial_ids]
        if all(key in values for key in keys):
            own = mean_over_seeds([values[key] for key in keys])
            finishers.append(race.rival(setting, outcome, own))
    return finishers


def _mean(rows: Sequence[Measurement]) -> dict[str, float]:
    """Means over the seeds that have a value: a label in no image and no prediction has none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in {**row.costs, **row.metrics}.items():
            values.setdefault(name, []).append(value)
    return {name: math.fsum(own) / len(own) for name, own in values.items()}


def values_of(evaluations: Sequence[Evaluation]) -> dict[Key, Values]:
    """The values per image of the evaluations that saw all images."""
    return {
        (one.trial_id, one.split, setting_id(one.setting)): one.values
        for one in evaluations
        if one.is_complete
    }


class FrozenModels:
    """Trained models by trial, ready to be asked; each is rebuilt once where it is used.

    Args:
        spec: of the exploration.
        trials: what each model is.
        weights: name to array, per trial.
        data: images per split.
    """

    def __init__(
        self,
        spec: ExplorationSpec,
        trials: Mapping[str, Trial],
        weights: Mapping[str, Mapping[str, NDArray[Any]]],
        data: Mapping[str, Arrays],
    ) -> None:
        self.spec, self.precision = spec, spec.explore.precision
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
        return evaluate_chunk(chunk, len(self.data[chunk.split]), self._start)

    def precision_shift(self, trial_id: str, split: str, setting: Config) -> dict[str, float]:
        """How far the present precision moves each metric from float32."""
        everything, means = np.arange(len(self.data[split])), []
        for precision in ("float32", self.precision):
            run = self._start(trial_id, split, setting, precision=precision)
            means.append({name: np.nanmean(v) for name, v in run.look(everything).items()})
        return {name: abs(float(means[1][name] - means[0][name])) for name in means[0]}

    def _start(
        self, trial_id: str, split: str, setting: Config, *, precision: Precision | None = None
    ) -> Run:
        trainable, module = self.model(trial_id)
        data, channels_last = self.data[split], self.spec.train.channels_last
        device = next(module.parameters()).device
        asked = {n: setting[n] for n in trainable.problem.space.conditioning.names}
        is_judge = trainable.judged_by(data, split)
        start = time.process_time()
        with torch.inference_mode():
            network = trainable.materialize(module, asked)

        def look(block: NDArray[np.int64]) -> Values:
            own = is_judge[block]
            values = {name: np.full(len(block), np.nan) for name in trainable.metrics}
            if own.any():
                found = evaluate_network(
                    trainable,
                    network,
                    data if own.sum() == len(data) else data.select(block[own]),
                    device,
                    precision=precision or self.precision,
                    channels_last=channels_last,
                )
                for name, some in found.items():
                    values[name][own] = some
            return values

        run = Run(trial_id, split, setting, trainable.costs(asked), look)
        run.spent_s = time.process_time() - start
        return run


@dataclass
class Run:
    """One model at one setting, looking at block after block of a split's images.

    Attributes:
        costs: known before the first look.
        look: values (n,) per metric of the n images with these indices, in ascending order when
            all are asked for at once.
        seen: (n,) indices of the images so far.
        parts: values of each block.
        spent_s: processor seconds so far.
    """

    trial_id: str
    split: str
    setting: Config
    costs: Mapping[str, float]
    look: Callable[[NDArray[np.int64]], Values]
    seen: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    parts: list[Values] = field(default_factory=list)
    spent_s: float = 0.0

    def see(self, block: NDArray[np.int64]) -> None:
        """Look at one more block."""
        start = time.process_time()
        self.parts.append(self.look(block))
        self.spent_s += time.process_time() - start
        self.seen = np.concatenate([self.seen, block])

    def values(self, *, in_order: bool = False) -> Values:
        """(n,) values per metric as they were seen, or in the order of the images."""
        order = np.argsort(self.seen) if in_order else slice(None)
        names = self.parts[0]
        return {name: np.concatenate([p[name] for p in self.parts])[order] for name in names}

    def evaluation(self, *, is_complete: bool) -> Evaluation:
        """What goes into the table."""
        return Evaluation(
            trial_id=self.trial_id,
            split=self.split,
            setting=self.setting,
            values=self.values(in_order=True),
            sample_indices=np.sort(self.seen),
            is_complete=is_complete,
            costs=self.costs,
            evaluation_s=self.spent_s,
            time=time.time(),
        )


def evaluate_chunk(
    chunk: Chunk, num_samples: int, start: Callable[[str, str, Config], Run]
) -> Iterator[Evaluation]:
    """Evaluate every setting of a chunk, seeds side by side, each until its race is decided.

    Args:
        chunk: what to evaluate.
        num_samples: images of the chunk's split.
        start: makes the run of a trial, split and setting.
    """
    race, everything = chunk.race, np.arange(num_samples)
    blocks = race.blocks if race and race.num_blocks > 1 else [everything]
    rivals, finishers = list(chunk.rivals), list(chunk.neighbours)
    for setting in chunk.settings:
        runs = [start(trial_id, chunk.split, setting) for trial_id in chunk.trial_ids]
        first = runs[0]
        near = next(iter(race.nearest([setting], finishers)), None) if race else None
        for block in blocks:
            for run in runs:
                run.see(block)
            if race and race.is_lost(first.costs, _seen(runs), first.seen, rivals, near):
                break
        is_complete = len(first.seen) == num_samples
        if race and is_complete:
            finisher = race.rival(setting, first.costs, _seen(runs, in_order=True))
            finishers.append(finisher)
            rivals = race.keep_rivals([*rivals, finisher])
        yield from (run.evaluation(is_complete=is_complete) for run in runs)


def _seen(runs: Sequence[Run], *, in_order: bool = False) -> Values:
    return mean_over_seeds([run.values(in_order=in_order) for run in runs])


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
        evaluations = list(models.evaluate(chunk))
        plan.complete(chunk, record(chunk, evaluations), values_of(evaluations))
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
    # beside this process: a node that is lost must not take the mail with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # ray adds it
    driver = _Driver(plan, mailbox, num_workers, record, progress)
    driver.hand_out([first])
    shared = ray.put(models)
    with tempfile.TemporaryDirectory(prefix="tune_") as storage:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_work, shared=[shared, mailbox]),
                {"cpu": float(models.spec.train.num_threads)},
            ),
            param_space={"worker": tune.grid_search(list(range(num_workers)))},
            run_config=tune.RunConfig(
                storage_path=storage,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[driver],
            ),
        )
        # errors are raised below
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        results = tuner.fit()
    if driver.error is not None:
        raise driver.error
    errors = [results[index].error for index in range(len(results))]
    for error in filter(None, errors):
        cause = root_cause(error)
        raise RunError(
            f"exploring stopped: {type(cause).__name__}: {' '.join(str(cause).split())}; what was "
            f"measured is kept, resume to go on"
        ) from error


def _work(config: dict[str, Any], shared: list[Any]) -> None:
    """Take chunks and report their evaluations until there are no more: a Ray Tune trial."""
    reference, mailbox = shared
    models: FrozenModels = ray.get(reference)
    done: str | None = None
    while (letter := ray.get(mailbox.take.remote(config["worker"], done))) is not None:
        chunk: Chunk = ray.get(letter.contents[0])
        evaluations = list(models.evaluate(chunk))
        done = chunk.name
        tune.report({"chunk": done, "num_rows": len(evaluations), "evaluations": evaluations})
    if done is None:
        tune.report({"num_rows": 0})  # Tune prints the last report that has no number


class _Driver(tune.Callback):
    """Records what workers report, and hands the next chunks out."""

    def __init__(
        self,
        plan: Plan,
        mailbox: Any,
        num_workers: int,
        record: Callable[[Chunk, Sequence[Evaluation]], Sequence[Measurement]],
        progress: ProgressReport,
    ) -> None:
        self.plan, self.mailbox, self.num_workers = plan, mailbox, num_workers
        self.record, self.progress = record, progress
        self.chunks: dict[str, Chunk] = {}
        self.was_told_to_end = False
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune saves callbacks for its own restore; ours is the table
        return {}

    def hand_out(self, chunks: list[Chunk]) -> None:
        """Send chunks, and as many more as may be in flight: one waits for each worker."""
        while len(self.plan.in_flight) < 2 * self.num_workers:
            chunk = self.plan.next_chunk()
            if chunk is None:
                break
            chunks.append(chunk)
        self.chunks |= {chunk.name: chunk for chunk in chunks}
        sent: list[Letter | None] = [Letter(one.name, [ray.put(one)]) for one in chunks]
        if self.plan.is_asked and not self.was_told_to_end:
            self.was_told_to_end = True
            sent += [None] * self.num_workers
        if sent:
            self.mailbox.put.remote(sent)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        chunk = self.chunks.pop(result.get("chunk", ""), None)
        if chunk is None or self.error is not None:
            return  # evaluated again by a worker that was killed after its report
        try:
            evaluations = result["evaluations"]
            self.plan.complete(chunk, self.record(chunk, evaluations), values_of(evaluations))
            self.hand_out([])
        except Exception as failure:  # noqa: BLE001 - raised again once Tune has stopped
            self._stop(failure)
        self.progress.update(chunk.name, 1.0)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker was lost: while another one is awaited for it, the rest do what it had."""
        self.mailbox.give_back.remote(trial.config["worker"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker failed for good: the others are to end, and its error is raised."""
        self._stop(None)

    def _stop(self, failure: Exception | None) -> None:
        self.error = self.error or failure
        self.mailbox.stop.remote(self.num_workers)
