"""The registry of samplers: grid, random, Sobol, Optuna's, and adaptive refinement."""

from __future__ import annotations

import itertools
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from explorer.adaptive import AdaptiveSampler
from explorer.queries import Bound
from explorer.sampling import (
    DrawingSampler,
    Fate,
    Sampler,
    SamplingTask,
    key_of,
    round_value,
    rounded,
    value_of,
)
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from search_spaces.space import (
    CategoricalParameter,
    Config,
    IntParameter,
    Parameter,
    Value,
)

# optuna takes half a second to import, torch two; only the samplers that need them pay.
if TYPE_CHECKING:
    import optuna


class GridSampler:
    """Every combination of evenly spaced values; the last parameter varies fastest, or shuffled."""

    def __init__(self, task: SamplingTask) -> None:
        values = [_grid_values(parameter, task.num_points) for parameter in task.space]
        self.num_settings = math.prod(map(len, values))
        order: Sequence[int] | NDArray[np.int64] = range(self.num_settings)
        if task.shuffled:
            order = np.random.default_rng((task.seed, 5)).permutation(self.num_settings)
        shape = [len(own) for own in values]
        places = (np.unravel_index(index, shape) for index in order)
        configs = (
            {n: own[k] for n, own, k in zip(task.space.names, values, place, strict=True)}
            for place in places
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


class RandomSampler(DrawingSampler):
    """Independent uniform draws: in the logarithm where the parameter says so."""

    def __init__(self, task: SamplingTask) -> None:
        super().__init__(task)
        self.num_settings = task.num_points

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Nothing: draws are independent of what was measured."""

    def _start_batch(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def _draw(self) -> Config:
        space = self._task.space
        return rounded(space, space.decode(self._rng.random((1, len(space))))[0])

    def _settle(self, config: Config, fate: Fate) -> None:
        """Nothing, likewise."""


class SobolSampler(DrawingSampler):
    """A scrambled Sobol sequence: fills the space more evenly than random draws do.

    Source: Owen (1998), doi:10.1006/jcom.1998.0487, as scipy.stats.qmc implements it.
    """

    def __init__(self, task: SamplingTask) -> None:
        super().__init__(task)
        self.num_settings = task.num_points
        self._sequence = qmc.Sobol(len(task.space), seed=np.random.default_rng(task.seed))

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        """Nothing: the sequence is fixed."""

    def _start_batch(self, seed: int) -> None:
        """Nothing: one sequence runs through all batches."""

    def _draw(self) -> Config:
        space = self._task.space
        return rounded(space, space.decode(self._sequence.random(1))[0])

    def _settle(self, config: Config, fate: Fate) -> None:
        """Nothing, likewise."""


class _OptunaSampler(DrawingSampler):
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
            trial = self._trials.pop(key_of(self._task.space, config), None)
            if trial is None:
                raise ValueError(
                    f"expected a setting that was asked for and not told, got {config}"
                )
            if outcome is None:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            for bound in self._task.constraints:
                # Optuna adds violations up, so that each must be a share of its own bound.
                violation = bound.violation(value_of(outcome, bound.name))
                trial.set_constraint(f"{bound.kind} {bound.name}", violation / _scale(bound))
            self._study.tell(trial, [value_of(outcome, o.name) for o in self._task.objectives])
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
        return rounded(self._task.space, self._trial.params)

    def _settle(self, config: Config, fate: Fate) -> None:
        from optuna.trial import TrialState

        if fate == "kept":
            self._trials[key_of(self._task.space, config)] = self._trial
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

    Optuna's own default mutation draws anew: over a single parameter, that is random search.

    Args:
        task: what to sample.
        population_size: by default a quarter of `num_points`, at least 4 and at most 50.

    Source: Deb, Pratap, Agarwal & Meyarivan (2002), doi:10.1109/4235.996017.
    """

    def __init__(self, task: SamplingTask, *, population_size: int | None = None) -> None:
        super().__init__(task)
        self._population_size = population_size or min(max(task.num_points // 4, 4), 50)

    def _new_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import NSGAIISampler, nsgaii

        with _no_experimental_warnings():
            return NSGAIISampler(
                seed=seed,
                population_size=self._population_size,
                crossover=nsgaii.SBXCrossover(),
                mutation=nsgaii.PolynomialMutation(),
            )


class GPSampler(_OptunaSampler):
    """Gaussian processes: the setting whose expected gain is largest; tenths of a second each.

    A draw that was made in vain is followed by random ones until one is kept: the same data would
    lead to the same proposal again. Optuna fits with torch, which gets one thread meanwhile: with
    several it is about ten times slower on a busy machine.

    Source: Optuna's GPSampler, with the expected hypervolume improvement for several objectives.
    """

    def _new_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import GPSampler as OptunaGPSampler
        from optuna.samplers import RandomSampler as OptunaRandomSampler

        self._learning = OptunaGPSampler(seed=seed, warn_independent_sampling=False)
        self._fallback = OptunaRandomSampler(seed=seed)
        return self._learning

    def _draw(self) -> Config:
        with _one_torch_thread(), _quiet_optuna(), warnings.catch_warnings():
            # Gains too small to be told apart: Optuna divides by their sum, then starts anew.
            warnings.filterwarnings("ignore", "invalid value", RuntimeWarning, r"optuna\._gp")
            return super()._draw()

    def _settle(self, config: Config, fate: Fate) -> None:
        super()._settle(config, fate)
        self._study.sampler = self._learning if fate == "kept" else self._fallback


SAMPLERS: dict[str, Callable[[SamplingTask], Sampler]] = {
    "grid": GridSampler,
    "random": RandomSampler,
    "sobol": SobolSampler,
    "tpe": TPESampler,
    "nsga2": NSGA2Sampler,
    "gp": GPSampler,
    "adaptive": AdaptiveSampler,
}


def _grid_values(parameter: Parameter, num_points: int) -> list[Value]:
    if isinstance(parameter, CategoricalParameter):
        return list(parameter.choices)
    units = [index / max(num_points - 1, 1) for index in range(num_points)]
    # A short whole-number range repeats values: a dictionary keeps each once, in order.
    return list(dict.fromkeys(round_value(parameter, parameter.from_unit(u)) for u in units))


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

    with _quiet_optuna():
        study = optuna.create_study(
            study_name="exploration",
            storage=storage,
            directions=[objective.direction for objective in objectives],
        )
    with _no_experimental_warnings():
        study.set_metric_names([objective.name for objective in objectives])
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


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
