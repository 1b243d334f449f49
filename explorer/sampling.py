"""What a sampler is: where the next settings come from.

A sampler is asked for batches and told what was measured. Batch k depends on the seed, on k, and
on the order of calls alone: whoever asks for batch k after exactly the batches up to k - W have
been told, in their order, gets the same settings whatever the timing. A resumed exploration starts
a new sampler, makes the same calls and answers them from its table.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from explorer.queries import Bound
from search_spaces.errors import InputError
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
        costs: the known costs of a setting, without evaluating it; None where there are none.
        journal_path: file for the Optuna study; replaced, since it repeats what the table says.
        shuffled: whether a grid is asked for in random order: races need neighbours early.

    Raises:
        ValueError: an empty space, no point, or a negative seed.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    num_points: int
    seed: int = 0
    constraints: tuple[Bound, ...] = ()
    admissible: Callable[[Config], bool] | None = None
    costs: Callable[[Config], Mapping[str, float]] | None = None
    journal_path: Path | None = None
    shuffled: bool = False

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
    """A source of settings, all different and admissible.

    One that learns nothing from what it is told may say in an attribute `num_settings` how many it
    has at most: they are then evaluated in chunks as large as keep the workers busy.
    """

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


class DrawingSampler(ABC):
    """Base of samplers that draw settings one by one.

    Where one was drawn before or is not admissible, another is drawn. The search ends early after
    MAX_REDRAWS vain draws in a row.
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


def _num_values(parameter: Parameter) -> float:
    if isinstance(parameter, CategoricalParameter):
        return len(parameter.choices)
    return parameter.high - parameter.low + 1 if isinstance(parameter, IntParameter) else math.inf


def round_value(parameter: Parameter, value: Value) -> Value:
    """The value as settings hold it: floats with 12 decimals, within the range."""
    if isinstance(parameter, FloatParameter) and isinstance(value, float):
        # Rounding may leave the range, and turn a tiny negative number into -0.0.
        return min(max(round(value, DECIMALS), parameter.low), parameter.high) + 0.0
    return value


def rounded(space: SearchSpace, config: Mapping[str, Value]) -> Config:
    """A setting in column order, each value as `round_value` gives it."""
    return {p.name: round_value(p, config[p.name]) for p in space}


def key_of(space: SearchSpace, config: Mapping[str, Value]) -> tuple[Value, ...]:
    """What tells settings apart: the values in column order."""
    return tuple(config[name] for name in space.names)


def value_of(outcome: Mapping[str, float], name: str) -> float:
    """The value of a metric or cost that was told.

    Raises:
        ValueError: the outcome lacks it.
    """
    if name not in outcome:
        raise ValueError(f"expected an outcome with {name}, got {', '.join(outcome) or 'nothing'}")
    return float(outcome[name])
