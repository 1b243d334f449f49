"""Where the next settings come from: grid, random, and Optuna's samplers.

A sampler is asked for batches and told what was measured. Batch k depends on the seed, on k, and
on the order of calls alone: whoever asks for batch k after exactly the batches up to k - W have
been told, in their order, gets the same settings whatever the timing. A resumed exploration starts
a new sampler, makes the same calls and answers them from its table.
"""

from __future__ import annotations

import itertools
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np

from explorer.queries import Bound
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import (
    CategoricalParameter,
    Config,
    FloatParameter,
    IntParameter,
    Parameter,
    SearchSpace,
    Value,
)

# optuna takes half a second to import; only the samplers that need it pay.
if TYPE_CHECKING:
    import optuna

Fate: TypeAlias = Literal["kept", "repeated", "inadmissible"]

MAX_REDRAWS = 1000
DECIMALS = 12  # as in a setting's id: 0.07, never 0.07000000000000001


@dataclass(frozen=True)
class SamplingTask:
    """What a sampler is built from.

    Attributes:
        space: the explored ranges of the conditioning parameters.
        objectives: names in the outcomes that are told, with directions.
        num_points: settings in all; for a grid, values per parameter, both ends included.
        seed: not negative.
        constraints: bounds on measured quantities, known once a setting was evaluated.
        admissible: says of a setting, without evaluating it, whether it is within the bounds on
            known costs; settings that are not are never asked for.
        journal_path: file for the Optuna study; replaced, since it repeats what the table says.

    Raises:
        ValueError: an empty space, no point, or a negative seed.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    num_points: int
    seed: int = 0
    constraints: tuple[Bound, ...] = ()
    admissible: Callable[[Config], bool] | None = None
    journal_path: Path | None = None

    def __post_init__(self) -> None:
        if not len(self.space):
            raise ValueError("expected a space with at least one parameter, got none")
        if self.num_points < 1 or self.seed < 0:
            raise ValueError(
                f"expected num_points >= 1 and seed >= 0, got {self.num_points} and {self.seed}"
            )

    def is_admissible(self, config: Config) -> bool:
        """Whether the bounds on known costs allow this setting."""
        return self.admissible is None or self.admissible(config)


class Sampler(Protocol):
    """A source of settings, all different and admissible."""

    def ask(self, n: int) -> list[Config]:
        """Return the next batch: n settings, fewer at the end, none when there are no more.

        Floats have at most 12 decimals.

        Raises:
            InputError: no admissible setting was found.
        """
        ...

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Take the metrics and costs of settings that were asked for; None for a failed one.

        Raises:
            ValueError: by samplers that learn: a setting that was not asked for or was told
                before, or an outcome that lacks an objective or a constrained quantity.
        """
        ...


class GridSampler:
    """Every combination of evenly spaced values; the last parameter varies fastest."""

    def __init__(self, task: SamplingTask) -> None:
        values = [_grid_values(parameter, task.num_points) for parameter in task.space]
        configs = (
            dict(zip(task.space.names, row, strict=True)) for row in itertools.product(*values)
        )
        self._configs: Iterator[Config] = filter(task.is_admissible, configs)
        self._has_asked = False

    def ask(self, n: int) -> list[Config]:
        batch = list(itertools.islice(self._configs, n))
        if not batch and not self._has_asked:
            raise InputError(
                "no setting of the grid is admissible: relax the bounds on known costs"
            )
        self._has_asked = True
        return batch

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Nothing: a grid learns nothing."""


class _DrawingSampler(ABC):
    """Draws settings one by one, again where one was drawn before or is not admissible.

    The search ends early after MAX_REDRAWS vain draws in a row.
    """

    def __init__(self, task: SamplingTask) -> None:
        self._task = task
        self._num_asked = 0
        self._num_batches = 0
        self._seen: set[tuple[Value, ...]] = set()
        self._num_settings = math.prod(_num_values(parameter) for parameter in task.space)

    def ask(self, n: int) -> list[Config]:
        entropy = np.random.SeedSequence([self._task.seed, self._num_batches])
        self._start_batch(int(entropy.generate_state(1)[0]))
        self._num_batches += 1
        wanted = min(n, self._task.num_points - self._num_asked)
        batch = list(itertools.islice(self._admissible_draws(), wanted))
        self._num_asked += len(batch)
        if wanted and not self._num_asked:
            raise InputError(
                f"no admissible setting was found in {len(self._seen)} different draws: "
                "relax the bounds on known costs"
            )
        return batch

    def _admissible_draws(self) -> Iterator[Config]:
        num_vain = 0
        while num_vain < MAX_REDRAWS and len(self._seen) < self._num_settings:
            config = self._draw()
            key = tuple(config.values())
            fate = self._fate(config, key)
            self._seen.add(key)
            self._settle(config, fate)
            num_vain = 0 if fate == "kept" else num_vain + 1
            if fate == "kept":
                yield config

    def _fate(self, config: Config, key: tuple[Value, ...]) -> Fate:
        if key in self._seen:
            return "repeated"
        return "kept" if self._task.is_admissible(config) else "inadmissible"

    @abstractmethod
    def _start_batch(self, seed: int) -> None: ...

    @abstractmethod
    def _draw(self) -> Config: ...

    @abstractmethod
    def _settle(self, config: Config, fate: Fate) -> None:
        """Learn what becomes of the last draw."""


class RandomSampler(_DrawingSampler):
    """Independent uniform draws: in the logarithm where the parameter says so."""

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Nothing: draws are independent of what was measured."""

    def _start_batch(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def _draw(self) -> Config:
        space = self._task.space
        return _rounded(space, space.decode(self._rng.random((1, len(space))))[0])

    def _settle(self, config: Config, fate: Fate) -> None:
        """Nothing, likewise."""


class _OptunaSampler(_DrawingSampler):
    """Draws from an Optuna study with the objectives' own directions and values.

    Each batch is drawn by a sampler of its own seed, which finds all it needs in the study. Draws
    that are not evaluated stay there without values: those that are not admissible are pruned with
    a broken constraint, which TPE learns from, and repeated ones failed. The study is kept in
    memory; finished trials are copied to the journal when a batch is told, since a trial that is
    written step by step waits for the disk about eight times.
    """

    def __init__(self, task: SamplingTask) -> None:
        super().__init__(task)
        if not task.objectives:
            raise ValueError("expected at least one objective, got none")
        self._distributions = {p.name: _distribution(p) for p in task.space}
        self._trials: dict[tuple[Value, ...], optuna.Trial] = {}
        self._study = _new_study(task.objectives, storage=None)
        self._journal: optuna.Study | None = None
        if task.journal_path is not None:
            self._journal = _new_study(task.objectives, storage=_new_journal(task.journal_path))
        self._written: set[int] = set()

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        from optuna.trial import TrialState

        for config, outcome in zip(configs, outcomes, strict=True):
            trial = self._trials.pop(_key(self._task.space, config), None)
            if trial is None:
                raise ValueError(
                    f"expected a setting that was asked for and not told, got {config}"
                )
            if outcome is None:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            for bound in self._task.constraints:
                # Optuna adds violations up, so that each must be a share of its own bound.
                violation = bound.violation(_value(outcome, bound.name))
                trial.set_constraint(f"{bound.kind} {bound.name}", violation / _scale(bound))
            self._study.tell(trial, [_value(outcome, o.name) for o in self._task.objectives])
        self._write_journal()

    def _write_journal(self) -> None:
        if self._journal is None:
            return
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and trial.number not in self._written:
                self._journal.add_trial(trial)
                self._written.add(trial.number)

    def _start_batch(self, seed: int) -> None:
        self._study.sampler = self._new_sampler(seed)

    def _draw(self) -> Config:
        self._trial = self._study.ask(self._distributions)
        return _rounded(self._task.space, self._trial.params)

    def _settle(self, config: Config, fate: Fate) -> None:
        from optuna.trial import TrialState

        if fate == "kept":
            self._trials[_key(self._task.space, config)] = self._trial
        elif fate == "repeated":
            self._study.tell(self._trial, state=TrialState.FAIL)
        else:
            self._trial.set_constraint("admissible", 1.0)
            self._study.tell(self._trial, state=TrialState.PRUNED)

    @abstractmethod
    def _new_sampler(self, seed: int) -> optuna.samplers.BaseSampler: ...


class TPESampler(_OptunaSampler):
    """Tree-structured Parzen estimator: likely improvements of all objectives at once.

    Source: Ozaki, Tanigaki, Watanabe & Onishi (2020), doi:10.1145/3377930.3389817.
    """

    def _new_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import TPESampler as OptunaTPESampler

        return OptunaTPESampler(seed=seed)


class NSGA2Sampler(_OptunaSampler):
    """Evolution by nondominated sorting, with the paper's crossover and mutation.

    Optuna's own default mutation draws anew: over a single parameter, that is random search. The
    population is a quarter of `num_points`, at least 4 and at most 50.

    Source: Deb, Pratap, Agarwal & Meyarivan (2002), doi:10.1109/4235.996017.
    """

    def _new_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import NSGAIISampler, nsgaii

        population_size = min(max(self._task.num_points // 4, 4), 50)
        with _no_experimental_warnings():
            return NSGAIISampler(
                seed=seed,
                population_size=population_size,
                crossover=nsgaii.SBXCrossover(),
                mutation=nsgaii.PolynomialMutation(),
            )


SAMPLERS: dict[str, Callable[[SamplingTask], Sampler]] = {
    "grid": GridSampler,
    "random": RandomSampler,
    "tpe": TPESampler,
    "nsga2": NSGA2Sampler,
}


def make_sampler(name: str, task: SamplingTask) -> Sampler:
    """Build the sampler of that name.

    Raises:
        InputError: no sampler is called so; the message lists those that are.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    return SAMPLERS[name](task)


def _grid_values(parameter: Parameter, num_points: int) -> list[Value]:
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    units = [index / max(num_points - 1, 1) for index in range(num_points)]
    # A short whole-number range repeats values: a dictionary keeps each once, in order.
    return list(dict.fromkeys(_round(parameter, parameter.from_unit(u)) for u in units))


def _num_values(parameter: Parameter) -> float:
    if isinstance(parameter, CategoricalParameter):
        return len(parameter.choices)
    return parameter.high - parameter.low + 1 if isinstance(parameter, IntParameter) else math.inf


def _round(parameter: Parameter, value: Value) -> Value:
    if isinstance(parameter, FloatParameter) and isinstance(value, float):
        # Rounding may leave the range, and turn a tiny negative number into -0.0.
        return min(max(round(value, DECIMALS), parameter.low), parameter.high) + 0.0
    return value


def _rounded(space: SearchSpace, config: Mapping[str, Value]) -> Config:
    return {p.name: _round(p, config[p.name]) for p in space}


def _key(space: SearchSpace, config: Mapping[str, Value]) -> tuple[Value, ...]:
    return tuple(config[name] for name in space.names)


def _value(outcome: Mapping[str, float], name: str) -> float:
    if name not in outcome:
        raise ValueError(f"expected an outcome with {name}, got {', '.join(outcome) or 'nothing'}")
    return float(outcome[name])


def _scale(bound: Bound) -> float:
    return abs(bound.value) or 1.0


def _distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(parameter, CategoricalParameter):
        return CategoricalDistribution(parameter.choices)
    if isinstance(parameter, IntParameter):
        return IntDistribution(parameter.low, parameter.high)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _new_study(
    objectives: Sequence[Objective], *, storage: optuna.storages.BaseStorage | None
) -> optuna.Study:
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name="exploration",
            storage=storage,
            directions=[objective.direction for objective in objectives],
        )
        with _no_experimental_warnings():
            study.set_metric_names([objective.name for objective in objectives])
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


def _new_journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    # A process that was killed may have left the lock: Optuna would wait for it.
    for stale in (path, path.with_name(f"{path.name}.lock")):
        stale.unlink(missing_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _no_experimental_warnings() -> warnings.catch_warnings[None]:
    from optuna.exceptions import ExperimentalWarning

    return warnings.catch_warnings(action="ignore", category=ExperimentalWarning)
