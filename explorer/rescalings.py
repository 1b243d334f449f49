"""What analyses of rescaling factors look up: trainings, points and settings.

Shapes: s seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.explored import Explored
from explorer.measurements import Columns
from explorer.models import method_of
from explorer.points import Point
from explorer.queries import PointTable
from search_spaces.errors import InputError
from search_spaces.rescaling import rescaling_space
from search_spaces.space import Config


def of_one_training(explored: Explored) -> Explored:
    """The same with one value of each training parameter of the main method.

    That whose settings are best on validation, all of them together.
    """
    columns, quality = explored.columns, explored.objectives[0]
    main, settled = explored.spec.method, explored.settled
    losses: dict[tuple[Any, ...], list[float]] = {}
    own = (columns["method"] == main) & (columns["split"] == "val")
    values = quality.to_loss(columns[f"metric/{quality.name}"][own].astype(np.float64))
    trials = columns["trial_id"][own].astype(str).tolist()
    for trial_id, loss in zip(trials, values.tolist(), strict=True):
        key: tuple[Any, ...] = tuple(settled[trial_id].items())
        losses.setdefault(key, []).append(loss)
    chosen = min(losses, key=lambda one: float(np.nanmean(losses[one])))
    best: Config = dict(chosen)
    if not best:
        return explored
    others = [trial for trial, own in settled.items() if not best.items() <= own.items()]

    def kept(table: Columns) -> Columns:
        is_other = np.isin(table["trial_id"].astype(str), others)
        rows = (table["method"] != main) | ~is_other
        return {name: values[rows] for name, values in table.items()}

    return replace(explored, columns=kept(columns), samples=kept(explored.samples))


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


def factor_names(explored: Explored, least: int) -> list[str]:
    """Names of the rescaling factors; one, or at least two.

    Raises:
        InputError: there are others.
    """
    names = list(rescaling_space(num_factors=explored.spec.model.num_factors).names)
    if (least == 1) != (len(names) == 1):
        wanted = "one rescaling factor" if least == 1 else "several, model.num_factors: 3"
        raise InputError(
            f"{explored.exploration_id}: this analysis is of {wanted}; there are {', '.join(names)}"
        )
    return names


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
    """Settings from the least to the largest factors that were explored; the first of choices."""
    spec, table = explored.spec, table_of(explored, explored.spec.method)
    names = rescaling_space(num_factors=spec.model.num_factors).names
    ends = [(float(table.values(n).min()), float(table.values(n).max())) for n in names]
    choices: Config = {name: values[0] for name, values in spec.model.choices.items()}
    return [
        {n: low + (high - low) * u for n, (low, high) in zip(names, ends, strict=True)} | choices
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
