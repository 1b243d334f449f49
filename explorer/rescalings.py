"""What analyses of rescaling factors look up: trainings, points and settings.

Shapes: s seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.explored import Explored
from explorer.measurements import Columns
from explorer.models import method_of
from explorer.points import Point
from explorer.queries import PointTable
from explorer.specs import ExplorationSpec
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from search_spaces.rescaling import rescaling_space
from search_spaces.space import Config
from trainables.scale_space import ScaleSpace


def one_way(explored: Explored, *, vary: Collection[str] = ()) -> Explored:
    """The same with one value of each training parameter and category, and with tested settings.

    Of the main method the training parameters whose settings are best on validation, all of them
    together, but for those that may `vary`; of all methods the categories of its best setting; and
    no setting that was not evaluated on test, such as those that a query refined.

    Raises:
        InputError: the first objective is not a quality to be maximised, or the last no cost.
    """
    quality, _ = objectives_of(explored)
    explored = _tested(explored)
    columns, main = explored.columns, explored.spec.method
    own = (columns["method"] == main) & (columns["split"] == "val")
    values = columns[f"metric/{quality.name}"][own].astype(np.float64)
    found: dict[tuple[Any, ...], list[float]] = {}
    trials = columns["trial_id"][own].astype(str).tolist()
    for trial_id, value in zip(trials, values.tolist(), strict=True):
        settled = explored.settled[trial_id].items()
        key = tuple((name, x) for name, x in settled if name not in vary)
        found.setdefault(key, []).append(value)
    if not found:
        raise InputError(f"{explored.exploration_id}: nothing of {main} was measured on test")
    chosen = max(found, key=lambda one: float(np.nanmean(found[one])))
    best: Config = dict(chosen)
    others = [
        trial
        for trial, settled in explored.settled.items()
        if trial in trials and not best.items() <= settled.items()
    ]
    explored = _kept(explored, lambda table: ~np.isin(table["trial_id"].astype(str), others))
    choices = explored.spec.model.choices
    if not choices:
        return explored
    setting = table_of(explored, main).best(quality).conditioning

    def has_choices(table: Columns) -> NDArray[np.bool_]:
        rows = np.ones(len(table["trial_id"]), dtype=bool)
        for name in choices:
            rows &= table[f"conditioning/{name}"] == setting[name]
        return rows

    return _kept(explored, has_choices)


def objectives_of(explored: Explored) -> tuple[Objective, Objective]:
    """The quality and the cost.

    Raises:
        InputError: the first objective is not to be maximised, or the last is no known cost.
    """
    quality, cost = explored.objectives[0], explored.objectives[-1]
    if quality.direction != "maximize" or f"cost/{cost.name}" not in explored.columns:
        raise InputError(
            f"{explored.exploration_id}: this analysis is of a quality that is maximised and of a "
            f"cost, such as explore.objectives: {{dice: maximize, macs: minimize}}"
        )
    return quality, cost


def _tested(explored: Explored) -> Explored:
    columns = explored.columns
    keys = np.char.add(columns["trial_id"].astype(str), columns["setting_id"].astype(str))
    is_test = columns["split"] == "test"
    rows = np.isin(keys, keys[is_test])
    return replace(explored, columns={name: own[rows] for name, own in columns.items()})


def _kept(explored: Explored, rows_of: Callable[[Columns], NDArray[np.bool_]]) -> Explored:
    def kept(table: Columns) -> Columns:
        rows = rows_of(table)
        return {name: own[rows] for name, own in table.items()}

    return replace(explored, columns=kept(explored.columns), samples=kept(explored.samples))


def drawn(explored: Explored, draws: str) -> Explored:
    """The same with the main method's trainings whose factors were drawn like that."""
    others = [t for t, own in explored.settled.items() if own.get("draws", draws) != draws]
    return _kept(explored, lambda table: ~np.isin(table["trial_id"].astype(str), others))


def points_of(explored: Explored, method: str) -> list[Point]:
    """All points of a method on validation, in setting order."""
    table = table_of(explored, method)
    return [table.point(index) for index in range(len(table))]


def choices_of(explored: Explored) -> Config:
    """The category of each of the network's choices, where there is one of each; see `one_way`."""
    point = points_of(explored, explored.spec.method)[0]
    return {name: point.conditioning[name] for name in explored.spec.model.choices}


def scale_space_of(explored: Explored, trial_id: str) -> tuple[ScaleSpace, Any]:
    """The trainable and the module of a training.

    Raises:
        InputError: it is no network over rescaling factors.
    """
    trainable, module = explored.model(trial_id)
    if not isinstance(trainable, ScaleSpace):
        raise InputError(
            f"{explored.exploration_id}: {trainable.method} is no method over rescaling factors of "
            f"this package: there is nothing to look into"
        )
    return trainable, module


def table_of(explored: Explored, method: str) -> PointTable:
    """Points of a method on validation."""
    return PointTable.of(explored.columns, method=method)


def best_point(explored: Explored) -> Point:
    """The main method's best point on validation."""
    return table_of(explored, explored.spec.method).best(explored.objectives[0])


def point_at(explored: Explored, method: str, conditioning: Mapping[str, float | str]) -> Point:
    """A method's point at a setting that was measured."""
    point = table_of(explored, method).find(conditioning)
    assert point is not None
    return point


def factor_names(spec: ExplorationSpec) -> list[str]:
    """Names of the rescaling factors."""
    return list(rescaling_space(num_factors=spec.model.num_factors).names)


def without_one_factor(spec: ExplorationSpec) -> str:
    """What a spec of several rescaling factors lacks."""
    names = factor_names(spec)
    return "" if len(names) == 1 else f"one rescaling factor; there are {', '.join(names)}"


def without_several_factors(spec: ExplorationSpec) -> str:
    """What a spec of one rescaling factor lacks."""
    names = factor_names(spec)
    several = "several rescaling factors (model.num_factors: 3)"
    return "" if len(names) > 1 else f"{several}; there is {names[0]}"


def grid_method(explored: Explored) -> str | None:
    """The first baseline that is trained for each setting, if there is one."""
    spec = explored.spec
    names = (one.method for one in spec.baselines)
    return next((name for name in names if not method_of(spec, name).is_amortised), None)


def trials_of_method(explored: Explored, method: str) -> dict[str, Config]:
    """Trainings of a method that were explored, by their ids, and what they were trained for."""
    rows = explored.columns["method"] == method
    ids = dict.fromkeys(explored.columns["trial_id"][rows].astype(str).tolist())
    return {trial_id: dict(explored.settled[trial_id]) for trial_id in ids}


def nearest_point(explored: Explored, method: str, name: str, value: float) -> Point:
    """A method's point whose conditioning is nearest to a value; infinity: the largest."""
    table = table_of(explored, method)
    values = table.values(name)
    row = int(values.argmax()) if np.isinf(value) else int(np.abs(values - value).argmin())
    return table.point(row)


def middle_of_prior(explored: Explored) -> Config:
    """The middle of the prior."""
    names = rescaling_space(num_factors=explored.spec.model.num_factors).names
    prior = explored.spec.train.prior
    return {name: sum(prior.get(name, (0.0, 1.0))) / 2 for name in names}


def diagonal(explored: Explored, num: int) -> list[Config]:
    """Settings from the least to the largest factors that were explored."""
    spec, table = explored.spec, table_of(explored, explored.spec.method)
    names = rescaling_space(num_factors=spec.model.num_factors).names
    ends = [(float(table.values(n).min()), float(table.values(n).max())) for n in names]
    return [
        {n: low + (high - low) * u for n, (low, high) in zip(names, ends, strict=True)}
        | choices_of(explored)
        for u in np.linspace(0, 1, num).tolist()
    ]


def evenly(count: int, num: int) -> Iterator[int]:
    """At most `num` of `count` positions, the first and the last among them."""
    yield from dict.fromkeys(
        np.linspace(0, count - 1, min(num, count)).round().astype(int).tolist()
    )


def told(setting: Mapping[str, float | str]) -> str:
    """A setting in words."""
    parts = (f"{n} = {x}" if isinstance(x, str) else f"{n} = {x:.4g}" for n, x in setting.items())
    return ", ".join(parts)


def spread(values: NDArray[np.float64]) -> float | None:
    """Standard deviation (n - 1 in the denominator); of one value none."""
    return float(values.std(ddof=1)) if len(values) > 1 else None
