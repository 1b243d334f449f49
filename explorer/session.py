"""One process carrying an exploration out: train, explore, test, report.

Everything is written as soon as it is finished, and nothing that is written is computed again.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from explorer.exploring import (
    Chunk,
    Evaluation,
    FrozenModels,
    Key,
    ListSampler,
    Plan,
    Unit,
    chunk_size,
    explore,
)
from explorer.extensions import find
from explorer.measurements import (
    Columns,
    Measurement,
    columns_of,
    join_tables,
    measurements_of,
    measurements_table,
    samples_table,
    setting_id,
    values_by_row,
)
from explorer.models import build_trainable, method_of
from explorer.places import Place, written_locally
from explorer.progress import ProgressReport
from explorer.queries import Bound, PointTable
from explorer.racing import Race, Values
from explorer.refining import settings_around
from explorer.registering import RegisteredPairs
from explorer.reporting import draw, save_figure
from explorer.samplers import SAMPLERS
from explorer.sampling import Sampler, SamplingTask
from explorer.specs import ExplorationSpec
from explorer.splits import samples_of
from explorer.store import measurements_store, read_json, samples_store, set_state
from explorer.training import (
    Trial,
    TrialRecord,
    rates_of,
    ray_session,
    read_record,
    read_weights,
    require_resources,
    settled_parts,
    train_all,
    train_config,
    trained_model,
    trials_of,
)
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import Config, SearchSpace
from trainables.base import Arrays, Trainable
from trainables.datasets.base import ImageDataset
from trainables.metrics.classification import SET_METRICS
from trainables.train_loop import validation_settings

MANY_PARTS = 200  # slower to load than one
NUM_ROUNDS = 4  # of a refinement
MAX_SHIFT = 1e-3  # of a metric, by a lower precision


def code_version() -> str:
    """The installed version and a digest of the code that computes."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in ("search_spaces", "trainables", "explorer"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{version('pareto-explorer')}+{digest.hexdigest()[:12]}"


def check_spec(spec: ExplorationSpec) -> tuple[Objective, ...]:
    """Find a spec's mistakes before anything starts; return the objectives of its front.

    Raises:
        InputError: unknown method, sampler, data set or parameter, or a value out of its range.
    """
    trainable = build_trainable(spec)
    space = trainable.problem.space.conditioning
    chosen = method_of(spec, spec.method)
    if not chosen.is_amortised and chosen.parameters != ():
        raise InputError(
            f"method: {spec.method} has nothing to explore; use it as a baseline with a grid"
        )
    sections = {"train.prior": spec.train.prior, "explore.space": spec.explore.space or {}}
    for section, ranges in sections.items():
        try:
            for name, ends in ranges.items():
                for end in ends:
                    space[name].validate(end)
        except InputError as error:
            raise InputError(f"{section}: {error}") from None
    _check_grid(spec)
    _check_draws(spec)
    if any(low == high for low, high in _explored_ranges(spec).values()):
        raise InputError("explore.space: needed, since a range of train.prior has no width")
    explored = explored_space(spec, trainable)
    for setting in asked_settings(spec):
        try:
            explored.validate(setting)
        except InputError as error:
            raise InputError(f"explore.settings: {error}") from None
    find("samplers", spec.explore.sampler, SAMPLERS, spec.extensions)
    require_resources(spec)
    reasons = {
        "registration": "pairs share images, so that few tell less than racing takes them to",
        "adaptation": "models are judged by the images of their own target, not by all",
        "generalization": "models are judged by the images of their own domains, not by all",
    }
    reason = reasons.get(method_of(spec, spec.method).task)
    if reason is not None and spec.explore.racing is not None:
        raise InputError(f"explore.racing: {reason}; leave it out")
    if method_of(spec, spec.method).task == "generalization":
        _check_held_out(spec)
    _check_trials(spec)
    objectives = _objectives(spec, trainable)
    for method in [spec.method, *(baseline.method for baseline in spec.baselines)]:
        if method_of(spec, method).is_amortised:
            sampler_of(spec, method, objectives).ask(1)
    return objectives


def _check_draws(spec: ExplorationSpec) -> None:
    """How factors are drawn must concern the method, and be given in one place."""
    default = type(spec.train)()
    for name in ("prior_power", "draws", "distillation"):
        if getattr(spec.train, name) == getattr(default, name):
            continue
        if name not in method_of(spec, spec.method).places:
            raise InputError(f"train.{name}: {spec.method} draws no factors; leave it out")
        if name in spec.train.grid:
            raise InputError(f"train.{name}: it is in train.grid too; leave it out of one of them")
    draws = {spec.train.draws, *map(str, spec.train.grid.get("draws", ()))}
    if "common" in draws and len(build_trainable(spec).drawn.names) < 2:
        raise InputError("train.draws: there is one factor alone; set model.num_factors")


def _check_held_out(spec: ExplorationSpec) -> None:
    """What would look at images of the domain held out, or depend on the number of workers."""
    if len(spec.train.learning_rates) > 1:
        raise InputError(
            "train.learning_rate: expected one, since a choice by all trainings together would "
            "look at validation images of the domains held out; explore one after the other"
        )
    if spec.train.num_workers > 1:
        raise InputError(
            "train.num_workers: expected 0 or 1, since losses between the images of a batch are "
            f"not those of its parts; got {spec.train.num_workers}"
        )


def _check_grid(spec: ExplorationSpec) -> None:
    """Every name of `train.grid` must concern some method."""
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    known = {name: None for method in methods for name in method_of(spec, method).places}
    for name in spec.train.grid:
        if not known:
            raise InputError(f"train.grid: {spec.method} takes none; leave it out")
        if name not in known:
            raise unknown_name("train.grid", name, list(known))
    task = method_of(spec, spec.method).task
    for baseline in spec.baselines:
        if method_of(spec, baseline.method).task != task:
            continue  # told by _check_trials
        chosen = method_of(spec, baseline.method)
        if chosen.replicates and not set(chosen.places) & set(spec.train.grid):
            raise InputError(
                f"baselines: {baseline.method} is trained for the others, not beside them; leave "
                f"it out"
            )
        for name in (name for grid in baseline.every_grid for name in grid if name in known):
            if name not in spec.train.grid:
                raise InputError(
                    f"baselines: {baseline.method}: {name} is in its grid alone; name it in "
                    f"train.grid, for the other methods, too"
                )


def _check_trials(spec: ExplorationSpec) -> None:
    task = method_of(spec, spec.method).task
    for baseline in spec.baselines:
        chosen = method_of(spec, baseline.method)
        if chosen.task != task:
            raise InputError(
                f"baselines: {baseline.method} is for {chosen.task}, {spec.method} for {task}; an "
                f"exploration has one task"
            )
        if chosen.described_by is not method_of(spec, spec.method).described_by:
            raise InputError(
                f"baselines: {baseline.method} has other networks and settings than {spec.method}; "
                f"explore them one after the other"
            )
        needs = not chosen.is_amortised and chosen.parameters != ()
        if needs != bool(baseline.every_grid):
            given = baseline.grid or list(baseline.grids) or None
            expected = "needs" if needs else "takes no"
            if chosen.is_amortised:
                expected = "is amortised and takes no"
            raise InputError(f"baselines: {baseline.method} {expected} grid, got {given}")
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    rates = {method: rates_of(spec, method) for method in methods}
    trials = trials_of(spec, seeds=spec.train.seeds, rates=rates)
    for trial in trials:
        try:
            own = build_trainable(spec, trial.method, trial.settled)
            for name, ends in train_config(spec, own, trial).prior.items():
                for end in ends:
                    own.problem.space[name].validate(end)
        except InputError as error:
            names = build_trainable(spec).problem.space.conditioning.names
            if trial.method == spec.method:
                raise InputError(f"train.grid: {error}") from None
            hint = (
                "" if set(names) <= set(trial.settled) else "; --set baselines=[] leaves them out"
            )
            raise InputError(f"baselines: {trial.method}: {error}{hint}") from None
    repeated = [name for name, n in Counter(t.trial_id for t in trials).items() if n > 1]
    if repeated:
        raise InputError(
            f"baselines, train.grid and train.learning_rate: values must differ in their first six "
            f"digits, got {repeated[0]} twice"
        )


def _explored_ranges(spec: ExplorationSpec) -> dict[str, tuple[float, float]]:
    return {**spec.train.prior, **(spec.explore.space or {})}


def _objectives(spec: ExplorationSpec, trainable: Trainable) -> tuple[Objective, ...]:
    """Of the front: the spec's, which like its constraints must name known quantities."""
    problem = trainable.problem
    names = [*trainable.metrics, *problem.known_costs]
    section = spec.explore
    asked = {f"explore.constraints.{kind}": list(own) for kind, own in section.constraints.items()}
    asked["explore.objectives"] = list(section.objectives or {})
    for place, own in asked.items():
        for name in own:
            if name not in names:
                raise unknown_name(place, name, names)
    if not section.objectives:
        return problem.objectives
    if next(iter(section.objectives)) in problem.known_costs:
        raise InputError(
            f"explore.objectives: the first must be a metric such as {names[0]}, by which "
            f"queries choose; got {next(iter(section.objectives))}"
        )
    return tuple(Objective(name, to) for name, to in section.objectives.items())


def bounds_of(spec: ExplorationSpec) -> list[Bound]:
    """The constraints of a spec."""
    constraints = spec.explore.constraints
    return [Bound(name, kind, v) for kind, own in constraints.items() for name, v in own.items()]


def explored_space(spec: ExplorationSpec, trainable: Trainable) -> SearchSpace:
    """The conditioning parameters with the ranges that are explored."""
    return trainable.problem.space.conditioning.narrowed(_explored_ranges(spec))


def asked_settings(spec: ExplorationSpec) -> list[Config]:
    """The combinations of `explore.settings`."""
    grid = spec.explore.settings
    if not grid:
        return []
    every = [dict(zip(grid, own, strict=True)) for own in itertools.product(*grid.values())]
    return list({setting_id(one): one for one in every}.values())


def sampler_of(
    spec: ExplorationSpec,
    method: str,
    objectives: tuple[Objective, ...],
    journal_path: Path | None = None,
) -> Sampler:
    """Where the settings of an amortised method come from.

    Raises:
        InputError: by `ask`: no setting is within the bounds on known costs.
    """
    section = spec.explore
    trainable = build_trainable(spec, method)
    problem = trainable.problem
    bounds = bounds_of(spec)
    on_costs = [bound for bound in bounds if bound.name in problem.known_costs]

    def is_admissible(config: Config) -> bool:
        costs = trainable.costs(config)
        return all(bound.is_kept(costs) for bound in on_costs)

    task = SamplingTask(
        space=explored_space(spec, trainable),
        objectives=objectives,
        num_points=section.num_points,
        seed=section.seed,
        constraints=tuple(bound for bound in bounds if bound not in on_costs),
        admissible=is_admissible if on_costs else None,
        costs=trainable.costs,
        journal_path=journal_path,
        shuffled=section.racing is not None,
    )
    return find("samplers", section.sampler, SAMPLERS, spec.extensions)(task)


class Session:
    """Carries one exploration out; the caller holds its lock.

    Args:
        folder: RUNS/ID, with `state.json`.
        spec: what to do.
        objectives: of the front.
        dataset: decoded.
        progress: where to show progress.
    """

    def __init__(
        self,
        folder: Place,
        spec: ExplorationSpec,
        objectives: tuple[Objective, ...],
        dataset: ImageDataset,
        progress: ProgressReport,
    ) -> None:
        self.folder, self.spec, self.objectives = folder, spec, objectives
        self.progress = progress
        self.state: dict[str, Any] = read_json(folder / "state.json")
        samples = samples_of(spec, dataset)
        self.splits = {name: own.arrays for name, own in samples.items()}
        self.sample_ids = {name: own.ids for name, own in samples.items()}
        self.store, self.samples = measurements_store(folder), samples_store(folder)
        self.code_version = code_version()
        self.records: dict[str, TrialRecord] = {}
        self.recorded: dict[Key, Measurement] = {}
        self.recorded_values: dict[Key, Values] = {}

    def carry_out(self) -> None:
        """Do what is not done yet.

        Raises:
            UserError: it could not go on; what was finished is kept.
        """
        self._read_recorded()
        with ray_session(self.progress):
            with self._timed("training"):
                records = train_all(self.spec, self.splits, self.folder / "trials", self.progress)
                self.records = {record.trial.trial_id: record for record in records}
            with written_locally(self.folder / "study.journal") as journal_path:
                explored = self._validation_units(journal_path)
                with self._timed("exploring"):
                    self._explore("val", explored)
            with self._timed("testing"):
                self._explore("test", self._test_units(explored))
        with self._timed("reporting"):
            self.store.compact(above=MANY_PARTS)
            self.samples.compact(above=MANY_PARTS)
            self._report()
        set_state(self.folder, status="finished")

    def refine(
        self, bounds: Sequence[Bound], objective: Objective, method: str, num_points: int
    ) -> None:
        """Evaluate new settings around the answer to a query, in rounds that close in on it.

        They are evaluated on validation alone: the test split is looked at once.
        """
        self._read_recorded()
        trainable = build_trainable(self.spec, method)
        space = explored_space(self.spec, trainable)

        def known(setting: Config) -> dict[str, float]:
            """What is known before an evaluation: numbers of the setting, and its costs."""
            numbers = {name: x for name, x in setting.items() if not isinstance(x, str)}
            return {**numbers, **trainable.costs(setting)}

        names = {*trainable.problem.known_costs, *space.names}
        limits = [bound for bound in bounds if bound.name in names]
        self.progress.phase("refining", num_points)
        num_rounds = min(NUM_ROUNDS, num_points)
        for number in range(num_rounds):
            table = PointTable.of(columns_of(self.store.load()), method=method)
            answer = table.query(bounds, objective=objective)
            point = answer.point or answer.nearest
            assert point is not None
            if answer.feasible and objective.name in trainable.problem.known_costs:
                # what is no cheaper than the answer cannot be a better one
                kind: Literal["max", "min"] = "max" if objective.direction == "minimize" else "min"
                end = -math.inf if kind == "max" else math.inf
                limit = math.nextafter(point.costs[objective.name], end)
                limits.append(Bound(objective.name, kind, limit))
            settled = {n: x for n, x in point.conditioning.items() if n not in space.names}
            explored = [dict(table.point(index).conditioning) for index in range(len(table))]
            settings = settings_around(
                dict(point.conditioning),
                [own for own in explored if settled.items() <= own.items()],
                space,
                num_points * (number + 1) // num_rounds - num_points * number // num_rounds,
                is_admissible=lambda setting: all(
                    bound.is_kept(known(setting)) for bound in limits
                ),
            )
            if not settings:
                break
            name = f"refined-{len(self.recorded)}"
            chosen = tuple({**setting, **settled} for setting in settings)
            chunk = Chunk(name, "val", point.trial_ids, chosen)
            folders = {one: self.folder / "trials" / one for one in point.trial_ids}
            self.records = {one: read_record(folder) for one, folder in folders.items()}
            self._record(chunk, list(self._frozen_models("val").evaluate(chunk)))
            for index, _ in enumerate(settings):
                self.progress.update(f"{name}-{index}", 1.0)
        set_state(self.folder, num_measurements=len(self.recorded))
        self._report()

    def _read_recorded(self) -> None:
        """Take what the tables hold; where images count, with the values of its images alone."""
        self.store.drop_missing()
        self.samples.drop_missing()
        samples = values_by_row(self.samples.load())
        rows = {_key(row): row for row in measurements_of(self.store.load())}
        self.recorded = {
            key: row
            for key, row in rows.items()
            if key in samples or not self._keeps_samples(row.split)
        }
        self.recorded_values = {
            key: values for key, values in samples.items() if self._is_complete(rows.get(key))
        }

    def _keeps_samples(self, split: str) -> bool:
        """Whether the values of every image are stored: for comparisons, or for later rivals."""
        return split == "test" or self.spec.explore.racing is not None

    def _is_complete(self, row: Measurement | None) -> bool:
        return row is not None and row.num_samples == len(self.splits[row.split])

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            elapsed: dict[str, float] = dict(self.state["elapsed_s"])
            elapsed[name] = elapsed.get(name, 0.0) + time.monotonic() - start
            elapsed["total"] = sum(seconds for key, seconds in elapsed.items() if key != "total")
            self.state["elapsed_s"] = elapsed
            set_state(self.folder, elapsed_s=elapsed, num_measurements=len(self.recorded))

    def _groups(self) -> dict[str, list[TrialRecord]]:
        """Trials that are explored together, one per seed or replicate: by method and setting."""
        groups: dict[str, list[TrialRecord]] = {}
        for record in self.records.values():
            name = "-".join([record.trial.method, *settled_parts(self._setting(record.trial))])
            groups.setdefault(name, []).append(record)
        return groups

    def _setting(self, trial: Trial) -> Config:
        """What a trial was trained for, of its training parameters."""
        replicates = method_of(self.spec, trial.method).replicates
        return {name: value for name, value in trial.settled.items() if name not in replicates}

    def _validation_units(self, journal_path: Path) -> list[Unit]:
        units = []
        for name, records in self._groups().items():
            trial = records[0].trial
            trial_ids = tuple(record.trial.trial_id for record in records)
            if not method_of(self.spec, trial.method).is_amortised:
                units.append(Unit(name, "val", trial_ids, ListSampler([self._setting(trial)])))
            else:
                is_first = trial.method == self.spec.method and not any(u.settled for u in units)
                journal = journal_path if is_first else None
                sampler = sampler_of(self.spec, trial.method, self.objectives, journal)
                race, settled = self._race(trial.method), self._setting(trial)
                always = build_trainable(self.spec, trial.method).always_asked
                if self.spec.explore.settings or always:  # first: no race is to give one up
                    listed = ListSampler([*always, *asked_settings(self.spec)])
                    units.append(Unit(f"{name}-asked", "val", trial_ids, listed, settled))
                units.append(Unit(name, "val", trial_ids, sampler, settled, race))
        return units

    def _race(self, method: str) -> Race | None:
        section = self.spec.explore
        if section.racing is None:
            return None
        trainable = build_trainable(self.spec, method)
        known_costs = trainable.problem.known_costs
        return Race(
            space=explored_space(self.spec, trainable),
            objectives=self.objectives,
            bounds=tuple(b for b in bounds_of(self.spec) if b.name not in known_costs),
            known_costs=frozenset(known_costs),
            num_samples=len(self.splits["val"]),
            block_size=section.racing.block_size,
            confidence=section.racing.confidence,
            margin=section.racing.margin,
            seed=section.seed,
        )

    def _test_units(self, explored: Sequence[Unit]) -> list[Unit]:
        """Everything that was explored to its last image, once more on the test split."""
        units = []
        for unit in explored:
            settings = [
                setting
                for _, chunk in sorted(unit.chunks.items())
                for setting in chunk.settings
                if self._is_complete(self.recorded[unit.trial_ids[0], "val", setting_id(setting)])
            ]
            units.append(Unit(unit.name, "test", unit.trial_ids, ListSampler(settings)))
        return units

    def _frozen_models(self, split: str) -> FrozenModels:
        trials = {trial_id: record.trial for trial_id, record in self.records.items()}
        weights = {
            trial_id: {
                name: tensor.numpy()
                for name, tensor in read_weights(self.folder / "trials" / trial_id).items()
            }
            for trial_id in trials
        }
        return FrozenModels(self.spec, trials, weights, {split: self.splits[split]})

    def _explore(self, split: str, units: Sequence[Unit]) -> None:
        models = self._frozen_models(split)
        section = self.spec.explore
        plan = Plan(
            units,
            batch_size=section.batch_size
            or chunk_size([unit.sampler for unit in units], section.num_workers),
            window=max(1, section.num_workers),
            recorded=self.recorded,
            recorded_values=self.recorded_values,
        )
        what = "exploring on validation" if split == "val" else "final pass on test"
        is_resumed = any(key[1] == split for key in self.recorded)
        is_counted = not section.constraints and not is_resumed
        self.progress.phase(what, plan.num_chunks if is_counted else None)
        if section.precision != "float32":
            self._settle_precision(models, units)
        explore(plan, models, self._record, self.progress, num_workers=section.num_workers)

    def _settle_precision(self, models: FrozenModels, units: Sequence[Unit]) -> None:
        """Go back to float32 where less moves a metric at the ends or the middle of the prior."""
        for unit in units:
            trial_id = unit.trial_ids[0]
            trainable, _ = models.model(trial_id)
            space = trainable.problem.space.conditioning
            for setting in validation_settings(space, self.spec.train.prior)[::2]:
                whole = setting | self.records[trial_id].trial.settled
                shifts = models.precision_shift(trial_id, unit.split, whole)
                name = max(shifts, key=lambda name: shifts[name])
                if shifts[name] >= MAX_SHIFT:
                    self.progress.say(
                        f"{models.precision} moves {name} of {trial_id} by {shifts[name]:.4f}, "
                        f"{MAX_SHIFT} or more: evaluated in float32"
                    )
                    models.precision = "float32"
                    return

    def _record(self, chunk: Chunk, evaluations: Sequence[Evaluation]) -> list[Measurement]:
        """Write a finished chunk to the tables and return its rows."""
        rows = [self._measurement(one) for one in evaluations]
        is_new = [_key(row) not in self.recorded for row in rows]
        new = list(itertools.compress(rows, is_new))
        if self._keeps_samples(chunk.split) and new:
            # before the rows that say that the chunk is done; a repeated part is no second one
            tables = [self._samples(one) for one in itertools.compress(evaluations, is_new)]
            self.samples.append(join_tables(tables), part=chunk.name)
        self.store.append(measurements_table(new), part=chunk.name)
        for row in new:
            self.recorded[_key(row)] = row
        return rows

    def _measurement(self, one: Evaluation) -> Measurement:
        return measurement_of(
            one,
            self.records[one.trial_id],
            self.splits[one.split],
            exploration_id=self.folder.name,
            data_digest=self.state["data_digest"],
            version=self.code_version,
        )

    def _samples(self, one: Evaluation) -> Any:
        trial = self.records[one.trial_id].trial
        return samples_table(
            trial_id=one.trial_id,
            method=trial.method,
            seed=trial.seed,
            split=one.split,
            conditioning=one.setting,
            sample_ids=[self.sample_ids[one.split][index] for index in one.sample_indices],
            metrics=one.values,
        )

    def _report(self) -> None:
        columns = columns_of(self.store.load())
        draw(self.folder, columns, self.objectives, main=self.spec.method, records=self.records)
        if method_of(self.spec, self.spec.method).task == "registration":
            self._draw_pair(columns)

    def _draw_pair(self, columns: Columns) -> None:
        """The first pair of val at settings along the first conditioning, and at the best one."""
        objective = self.objectives[0]
        table = PointTable.of(columns, method=self.spec.method)
        losses = objective.to_loss(table.metrics[objective.name])
        best = table.point(int(np.nanargmin(losses)))
        validated = build_trainable(self.spec).problem.objectives[0]  # the metric of a training
        trial_id = min(
            best.trial_ids, key=lambda one: validated.to_loss(self.records[one].best_metric)
        )
        trainable, module = trained_model(self.folder / "trials" / trial_id, self.spec)
        pairs = RegisteredPairs(trainable, module, self.splits["val"], self.sample_ids["val"])
        first = next(iter(explored_space(self.spec, trainable)))
        settings = [{**best.conditioning, first.name: first.from_unit(k / 4)} for k in range(5)]
        figure = pairs.figure(settings, best=dict(best.conditioning))
        save_figure(figure, self.folder / "figures" / "pair-val.png")


def measurement_of(
    one: Evaluation,
    record: TrialRecord,
    samples: Arrays,
    *,
    exploration_id: str,
    data_digest: str,
    version: str,
) -> Measurement:
    """The row of the table that an evaluation makes.

    Args:
        one: the evaluation.
        record: of its training.
        samples: those that its sample indices count.
        exploration_id: of the exploration.
        data_digest: of the data set that they are of.
        version: of the code.
    """
    members = None if samples.pairs is None else samples.pairs[one.sample_indices]
    errors = {
        name: standard_error(values, members)
        for name, values in one.values.items()
        if name.partition("/")[0] not in SET_METRICS
    }
    finite = {name: values[np.isfinite(values)] for name, values in one.values.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    return Measurement(
        exploration_id=exploration_id,
        trial_id=one.trial_id,
        method=record.trial.method,
        seed=record.trial.seed,
        split=one.split,
        data_digest=data_digest,
        code_version=version,
        setting_id=setting_id(one.setting),
        num_samples=len(one.sample_indices),
        evaluation_s=one.evaluation_s,
        time=one.time,
        conditioning=one.setting,
        metrics={name: float(values.mean()) for name, values in finite.items()},
        standard_errors={name: error for name, error in errors.items() if error is not None},
        costs={**one.costs, "train_s": record.train_s},
    )


def standard_error(
    values: NDArray[np.float64], members: NDArray[np.int64] | None = None
) -> float | None:
    """Standard error of the mean of the values that are defined; None where it has none.

    Pairs share images and are not independent: theirs is a jackknife over the images.

    Args:
        values: (n,) of samples; NaN where undefined.
        members: of pairs, (n, 2) indices of their images.

    Source: Efron, Stein (1981), doi:10.1214/aos/1176345462.
    """
    present = np.isfinite(values)
    values = values[present]
    if len(values) < 2:
        return None
    if members is None:
        return float(values.std(ddof=1) / np.sqrt(len(values)))
    members = members[present]
    without = [values[(members != image).all(axis=1)] for image in np.unique(members)]
    means = np.array([left.mean() for left in without if len(left)])
    m = len(means)
    return float(np.sqrt((m - 1) / m * np.square(means - means.mean()).sum())) if m > 1 else None


def _key(row: Measurement) -> Key:
    return row.trial_id, row.split, row.setting_id
