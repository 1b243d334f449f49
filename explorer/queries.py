"""Bounds, and the answers that a table of measurements gives to a question.

Shapes: p points (a method at a setting, all seeds together).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from explorer.frontiers import Frontier, knee
from explorer.measurements import CodedColumns, setting_id
from explorer.points import Point, PointRows
from explorer.quantities import format_quantity, parse_quantity
from explorer.selection import BlockSearch, Key, Limit, Reader
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective

Floats: TypeAlias = NDArray[np.float64]
BoundKind: TypeAlias = Literal["max", "min"]
Number = TypeVar("Number", float, Floats)

FEWER_MACS = Objective("macs", "minimize", "MAC")


@dataclass(frozen=True)
class Bound:
    """A limit, itself allowed, on a metric, a cost or a conditioning.

    Raises:
        ValueError: `value` is not finite.
    """

    name: str
    kind: BoundKind
    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a bound on {self.name} must be finite, got {self.value}")

    def __str__(self) -> str:
        relation = "<=" if self.kind == "max" else ">="
        return f"{self.name} {relation} {format_quantity(self.value, digits=12)}"

    def violation(self, values: Number) -> Number:
        """How far beyond the bound each value lies, in its own unit; at most zero where met."""
        return values - self.value if self.kind == "max" else self.value - values

    def is_met(self, values: Floats) -> NDArray[np.bool_]:
        """Mark the values that keep the bound; NaN never does."""
        met: NDArray[np.bool_] = (
            values <= self.value if self.kind == "max" else values >= self.value
        )
        return met

    def is_kept(self, values: Mapping[str, float]) -> bool:
        """Whether the one of the values that the bound names keeps it."""
        return self.violation(values[self.name]) <= 0

    @property
    def improving(self) -> Objective:
        """The objective that leads towards meeting this bound."""
        return Objective(self.name, "minimize" if self.kind == "max" else "maximize")

    @property
    def limit(self) -> Limit:
        """The bound as an objective and the largest loss in it that is allowed."""
        return self.improving, self.improving.to_loss(self.value)


def parse_bound(text: str, kind: BoundKind) -> Bound:
    """Read `NAME=VALUE`, the value with an optional SI suffix, as a bound of this kind.

    Raises:
        InputError: not of that form, or the value is no number.
    """
    name, separator, value = (part.strip() for part in text.partition("="))
    if not (name and separator):
        raise InputError(f"expected NAME=VALUE such as macs=0.6G, got {text!r}")
    try:
        return Bound(name, kind, parse_quantity(value))
    except InputError as error:
        raise InputError(f"bound on {name}: {error}") from None


@dataclass(frozen=True)
class Answer:
    """What a query found.

    Attributes:
        bounds: those that were asked for.
        point: the best point within the bounds; None when there is none.
        reason: why there is none, in words; empty when there is a point.
        nearest: the point that comes closest to the bounds, when there is none within.
    """

    bounds: tuple[Bound, ...]
    point: Point | None = None
    reason: str = ""
    nearest: Point | None = None

    @property
    def feasible(self) -> bool:
        """Whether a point meets every bound."""
        return self.point is not None

    def to_json(self) -> dict[str, Any]:
        """The document that `explorer query --json` prints; bounds are `{name: {kind: value}}`."""
        bounds: dict[str, dict[str, float]] = {}
        for bound in self.bounds:
            bounds.setdefault(bound.name, {})[bound.kind] = bound.value
        if self.point is not None:
            return {"feasible": True, "point": self.point.to_json(), "bounds": bounds}
        nearest = None if self.nearest is None else self.nearest.to_json()
        return {"feasible": False, "reason": self.reason, "nearest": nearest, "bounds": bounds}


@dataclass(frozen=True, eq=False, repr=False)
class PointTable:
    """All points of a table, aggregated once; a question then looks at few of them.

    Points are in setting order: by method, then by conditioning in column order, ascending.

    Attributes:
        metrics: name to (p,) means over seeds; NaN stands for a value that was not measured.
        costs: likewise.
        conditionings: likewise, of those that are numbers.
    """

    metrics: Mapping[str, Floats]
    costs: Mapping[str, Floats]
    conditionings: Mapping[str, Floats]
    _rows: PointRows
    _search: BlockSearch
    _fronts: dict[tuple[Objective, ...], Frontier] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        columns: CodedColumns,
        *,
        method: str | None = None,
        split: str = "val",
        seeds: Collection[int] | None = None,
    ) -> PointTable:
        """Average the rows of one split over seeds; test rows of the same setting join them.

        Rows of settings that were given up in a race, on fewer samples than others, are left out.

        Args:
            columns: the measurements, one array per column; NaN or None for null.
            method: keep the points of this method only; None keeps all.
            split: where metrics and costs are read.
            seeds: average these seeds only; None for all.

        Raises:
            InputError: no row is of that method and split, or none of one of the seeds.
        """
        rows = PointRows.of(columns, method=method, split=split, seeds=seeds)
        metrics, costs = rows.means("metric/"), rows.means("cost/")
        if "macs" in costs:
            costs.setdefault("flops", 2 * costs["macs"])
        conditionings = rows.conditionings()
        quantities = {**conditionings, **costs, **metrics}
        search = BlockSearch(quantities, _along_a_cost(costs, rows))
        return cls(metrics, costs, conditionings, rows, search)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        methods = ", ".join(self._rows.methods)
        return f"PointTable({len(self)} points of {methods}; {', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, costs and conditionings that bounds and objectives may name."""
        return (*self.metrics, *self.costs, *self.conditionings)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that points are averaged over, sorted."""
        return self._rows.seeds

    def values(self, name: str) -> Floats:
        """The (p,) values of a metric, cost or conditioning, NaN where not measured.

        Raises:
            InputError: no point has such a quantity; the message lists the known ones.
        """
        for family in (self.metrics, self.costs, self.conditionings):
            if name in family:
                return family[name]
        raise unknown_name("metric, cost or conditioning", name, self.names)

    def point(self, index: int) -> Point:
        """The point at a position in setting order."""
        return self._rows.point(index, metrics=self.metrics, costs=self.costs)

    def distances(
        self, conditioning: Mapping[str, float | str], scales: Mapping[str, float]
    ) -> Floats:
        """How far (p,) each point's setting is from another one: the largest over its parameters.

        Args:
            conditioning: the other setting; of another category is a distance of one.
            scales: by which differences of numbers are divided, by name.
        """
        parts = [
            np.asarray(self._rows.categories(name) != value, dtype=np.float64)
            if isinstance(value, str)
            else np.abs(self.conditionings[name] - value) / scales[name]
            for name, value in conditioning.items()
        ]
        largest: Floats = np.max(parts, axis=0)
        return largest

    def find(self, conditioning: Mapping[str, float | str]) -> Point | None:
        """The point at exactly this setting; None where it was not measured."""
        wanted = setting_id(conditioning)
        for index in range(len(self)):
            if setting_id(dict(self._rows.conditioning(index))) == wanted:
                return self.point(index)
        return None

    def query(
        self,
        bounds: Iterable[Bound],
        *,
        objective: Objective,
        tie_breaks: Sequence[Objective] = (FEWER_MACS,),
    ) -> Answer:
        """The best point within the bounds, or why there is none and what comes closest.

        Ties in the objective go to the better point by `tie_breaks` in turn (names that the table
        lacks are passed over), then to the first in setting order. Points that lack the objective
        or a bounded quantity take no part. The nearest point has the smallest worst violation of a
        bound, each divided by the range of that quantity over the table (by one where constant).

        Raises:
            InputError: an unknown name, two bounds of the same kind on one quantity, or no point
                at which all of the objective and bounded quantities were measured.

        Source: Eq. 3 of "Scale-Space Hypernetworks for Efficient Biomedical Imaging" is a lower
        bound on an accuracy with a cost as the objective; solved exactly over the points.
        """
        bounds = tuple(bounds)
        _refuse_repeated(bounds)
        names = [objective.name, *(bound.name for bound in bounds)]
        for name in names:
            self.values(name)  # refuses the unknown
        breaks = [_loss(o) for o in tie_breaks if o.name in self.names]
        best = self._search.first(
            [_loss(objective), *breaks],
            limits=[bound.limit for bound in bounds],
            required=[objective.name],
        )
        if best is not None:
            return Answer(bounds, point=self.point(best))
        keys = [self._worst_violation(bounds), _loss(objective), *breaks]
        nearest = self._search.first(keys, required=names)
        if nearest is None:
            raise InputError(f"expected a point with all of {', '.join(names)}: none was measured")
        return Answer(bounds, reason=self._reason(bounds, names), nearest=self.point(nearest))

    def best(self, objective: Objective) -> Point:
        """The best point, bounds or no; ties as in `query`."""
        point = self.query((), objective=objective).point
        assert point is not None
        return point

    def iso_accuracy(self, value: float, *, objective: Objective, cost: str = "macs") -> Answer:
        """The cheapest point at least as good as `value` in the objective: same quality, less cost.

        Ties in the cost go to the point that is better in the objective.
        """
        kind: BoundKind = "min" if objective.direction == "maximize" else "max"
        return self.query(
            (Bound(objective.name, kind, value),),
            objective=Objective(cost, "minimize"),
            tie_breaks=(objective,),
        )

    def frontier(self, objectives: Sequence[Objective]) -> Frontier:
        """The nondominated points; its ids are positions for `point`.

        Points that lack one of the objectives take no part; equal points all stay.

        Raises:
            InputError: an unknown name.
        """
        key = tuple(objectives)
        if key not in self._fronts:
            self._fronts[key] = self._front_of(np.arange(len(self)), key)
        return self._fronts[key]

    def knee(self, objectives: Sequence[Objective], bounds: Iterable[Bound] = ()) -> Answer:
        """The knee of the front of the points within the bounds; see `frontiers.knee`.

        Where no point is within the bounds, the answer is that of `query` for the first objective.

        Raises:
            InputError: an unknown name, two bounds of the same kind on one quantity, or no point
                at which all of the objectives and bounded quantities were measured.
        """
        bounds = tuple(bounds)
        _refuse_repeated(bounds)
        front = self.frontier(objectives)
        if bounds:
            met = np.logical_and.reduce([b.is_met(self.values(b.name)) for b in bounds])
            front = self._front_of(np.flatnonzero(met), objectives)
        if not len(front):
            return self.query(bounds, objective=objectives[0])
        return Answer(bounds, point=self.point(int(front.ids[knee(front.losses)])))

    def losses(self, objectives: Sequence[Objective]) -> Floats:
        """Losses (n, m) of the points that have all objectives, in the order of recording."""
        losses = np.stack([o.to_loss(self.values(o.name)) for o in objectives], axis=1)
        losses = losses[self._rows.recorded()]
        return losses[~np.isnan(losses).any(axis=1)]

    def _front_of(self, points: NDArray[np.int64], objectives: Sequence[Objective]) -> Frontier:
        losses = np.empty((len(points), len(objectives)))
        for column, objective in zip(losses.T, objectives, strict=True):
            column[:] = objective.to_loss(self.values(objective.name)[points])
        measured = ~np.isnan(losses).any(axis=1)
        if measured.all():
            return Frontier.of(losses, points)
        return Frontier.of(losses[measured], points[measured])

    def _worst_violation(self, bounds: Sequence[Bound]) -> Key:
        ranges = [self._search.range(bound.name) or 1.0 for bound in bounds]

        def worst(read: Reader) -> Floats:
            beyond = [
                (read(objective) - limit) / scale
                for (objective, limit), scale in zip([b.limit for b in bounds], ranges, strict=True)
            ]
            violation: Floats = np.maximum(np.max(beyond, axis=0), 0.0)
            return violation

        return worst

    def _reason(self, bounds: Sequence[Bound], names: Sequence[str]) -> str:
        hopeless = [bound for bound in bounds if not self._can_meet([bound], names)]
        if hopeless:
            told = (f"no setting has {b}: the {self._extreme(b, (), names)}" for b in hopeless)
            return "; ".join(told)
        conflict = self._smallest_conflict(bounds, names)
        trades = []
        for bound in conflict:
            others = [other for other in conflict if other != bound]
            given = " and ".join(map(str, others))
            extreme = self._extreme(bound, others, names)
            trades.append(f"with {given} the {extreme}")
        hint = ""
        if all(bound.name in self.conditionings for bound in conflict):
            hint = "; no setting between them was measured: --refine measures more"
        return f"{' and '.join(map(str, conflict))} exclude each other: {', '.join(trades)}{hint}"

    def _can_meet(self, bounds: Sequence[Bound], names: Sequence[str]) -> bool:
        limits = [bound.limit for bound in bounds]
        return self._search.first((), limits=limits, required=names) is not None

    def _smallest_conflict(self, bounds: Sequence[Bound], names: Sequence[str]) -> Sequence[Bound]:
        # What is left after dropping whatever can be dropped conflicts as a whole only: any of its
        # bounds can be met when the others are, so that every trade named in a reason exists.
        conflict = list(bounds)
        for bound in bounds if len(bounds) > 2 else ():
            others = [other for other in conflict if other != bound]
            if not self._can_meet(others, names):
                conflict = others
        return conflict

    def _extreme(self, bound: Bound, others: Sequence[Bound], names: Sequence[str]) -> str:
        index = self._search.first(
            [_loss(bound.improving)], limits=[other.limit for other in others], required=names
        )
        assert index is not None
        value = float(self.values(bound.name)[index])
        setting = ", ".join(
            f"{name} = {value if isinstance(value, str) else format_quantity(value, digits=6)}"
            for name, value in self._rows.conditioning(index)
        )
        word = "smallest" if bound.kind == "max" else "largest"
        what = f"{word} {bound.name}" if others else word
        return f"{what} is {_reachable(value, bound)} ({setting})"


def _loss(objective: Objective) -> Key:
    return lambda read: read(objective)


def _along_a_cost(costs: Mapping[str, Floats], rows: PointRows) -> NDArray[np.int64]:
    """An order in which neighbours are alike: by the first cost that differs, else by setting."""
    for name in sorted(costs, key=lambda name: name != "macs"):
        if np.fmin.reduce(costs[name]) < np.fmax.reduce(costs[name]):
            return np.argsort(costs[name])
    return np.arange(len(rows))


def _reachable(value: float, bound: Bound) -> str:
    """The nearest value that there is, written as a bound that it keeps and that differs."""
    for digits in (3, 4, 6, 9):
        text = format_quantity(value, digits=digits)
        is_kept = Bound(bound.name, bound.kind, parse_quantity(text)).is_kept({bound.name: value})
        if is_kept and text != format_quantity(bound.value, digits=digits):
            return text
    return format_quantity(value, digits=17)


def _refuse_repeated(bounds: Sequence[Bound]) -> None:
    seen: set[tuple[str, str]] = set()
    for bound in bounds:
        if (bound.name, bound.kind) in seen:
            raise InputError(
                f"expected at most one {bound.kind} bound on {bound.name}, got several"
            )
        seen.add((bound.name, bound.kind))
