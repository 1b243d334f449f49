"""Bounds, points, and the answers that a table of measurements gives to a question.

Shapes: r rows of the table (measurements), p points (a method at a setting, all seeds together).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from explorer.frontiers import Frontier
from explorer.quantities import format_quantity, parse_quantity
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective

Columns: TypeAlias = Mapping[str, NDArray[Any]]
Floats: TypeAlias = NDArray[np.float64]
BoundKind: TypeAlias = Literal["max", "min"]
Number = TypeVar("Number", float, NDArray[np.float64])

_FEWER_MACS = Objective("macs", "minimize", "MAC")
# Spent by a method, whatever the setting: not the price of a point.
_METHOD_COSTS = frozenset({"train_s"})


@dataclass(frozen=True)
class Bound:
    """A limit, itself allowed, on a metric or cost.

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
class Point:
    """One method at one setting, all seeds together.

    Attributes:
        conditioning: the setting.
        metrics: means over seeds.
        standard_errors: over the images of a split, as the mean over seeds. All seeds are
            evaluated on the same images, so their errors do not average out: this is the upper
            bound of the standard error of `metrics` over images, reached when seeds err alike.
        seed_sd: standard deviation over seeds (n - 1 in the denominator); empty for one seed.
        num_seeds: how many trainings were averaged.
        costs: means over seeds, without `train_s`, which the method spends and not the point.
        test_metrics: means over seeds on the test split; empty where it was not evaluated.
        method: what was trained.
        trial_ids: the trainings, sorted.
    """

    conditioning: Mapping[str, float | str]
    metrics: Mapping[str, float]
    standard_errors: Mapping[str, float]
    seed_sd: Mapping[str, float]
    num_seeds: int
    costs: Mapping[str, float]
    test_metrics: Mapping[str, float]
    method: str
    trial_ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and finite numbers."""
        return {
            "conditioning": dict(self.conditioning),
            "metrics": dict(self.metrics),
            "standard_errors": dict(self.standard_errors),
            "seed_sd": dict(self.seed_sd),
            "num_seeds": self.num_seeds,
            "costs": dict(self.costs),
            "test_metrics": dict(self.test_metrics),
            "method": self.method,
            "trial_ids": list(self.trial_ids),
        }


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
    """All points of a table, aggregated once; every question is then a pass over few arrays.

    Points are in setting order: by method, then by conditioning in column order, ascending.
    Dictionaries map a name to a (p,) array; NaN stands for a value that was not measured.
    """

    conditioning: Mapping[str, NDArray[Any]]
    metrics: Mapping[str, Floats]
    standard_errors: Mapping[str, Floats]
    seed_sd: Mapping[str, Floats]
    costs: Mapping[str, Floats]
    test_metrics: Mapping[str, Floats]
    methods: NDArray[Any]
    num_seeds: NDArray[np.int64]
    _trial_ids: NDArray[Any]  # (r,), those of point i at _offsets[i] : _offsets[i + 1]
    _offsets: NDArray[np.int64]

    @classmethod
    def of(cls, columns: Columns, *, method: str | None = None, split: str = "val") -> PointTable:
        """Average the rows of one split over seeds; test rows of the same setting join them.

        Rows of settings that were given up in a race, on fewer samples than others of the split,
        are left out.

        Args:
            columns: the measurements, one array per column; NaN or None for null.
            method: keep the points of this method only; None keeps all.
            split: where metrics and costs are read.

        Raises:
            InputError: no row is of that method and split.
        """
        splits = np.asarray(columns["split"], dtype=object)
        _, method_codes = _factorize(columns["method"])
        num_settings, setting_codes = _factorize(columns["setting_id"])
        keys = method_codes * num_settings + setting_codes
        chosen = _is_complete(columns, splits == split)
        if method is not None:
            chosen &= np.asarray(columns["method"], dtype=object) == method
        rows = np.flatnonzero(chosen)
        if not len(rows):
            raise _no_measurements(columns, method, split)
        point_keys, first, codes = np.unique(keys[rows], return_index=True, return_inverse=True)
        order = _setting_order(columns, rows[first])
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        points = _Groups(rows, rank[codes], len(order))
        test_rows = np.flatnonzero(splits == "test") if split != "test" else rows[:0]
        slots = np.searchsorted(point_keys, keys[test_rows]).clip(max=len(order) - 1)
        known = point_keys[slots] == keys[test_rows]
        tests = _Groups(test_rows[known], rank[slots[known]], len(order))
        representatives = rows[first][order]
        by_point = np.argsort(points.codes, kind="stable")
        offsets = np.searchsorted(points.codes[by_point], np.arange(len(order) + 1))
        costs = points.means(_family(columns, "cost/"))
        costs = {name: mean for name, mean in costs.items() if name not in _METHOD_COSTS}
        if "macs" in costs:
            costs.setdefault("flops", 2 * costs["macs"])
        return cls(
            conditioning={
                name: np.asarray(values)[representatives]
                for name, values in _family(columns, "conditioning/").items()
            },
            metrics=points.means(_family(columns, "metric/")),
            standard_errors=points.means(_family(columns, "se/")),
            seed_sd=points.sds(_family(columns, "metric/")),
            costs=costs,
            test_metrics=tests.means(_family(columns, "metric/")),
            methods=np.asarray(columns["method"])[representatives],
            num_seeds=np.diff(offsets),
            _trial_ids=np.asarray(columns["trial_id"])[rows[by_point]],
            _offsets=offsets,
        )

    def __len__(self) -> int:
        return len(self.num_seeds)

    def __repr__(self) -> str:
        methods = ", ".join(sorted(set(self.methods.tolist())))
        return f"PointTable({len(self)} points of {methods}; {', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics and costs that bounds and objectives may name."""
        return (*self.metrics, *self.costs)

    def values(self, name: str) -> Floats:
        """The (p,) values of a metric or cost, NaN where not measured.

        Raises:
            InputError: no point has such a metric or cost; the message lists the known ones.
        """
        if name in self.metrics:
            return self.metrics[name]
        if name in self.costs:
            return self.costs[name]
        raise unknown_name("metric or cost", name, self.names)

    def point(self, index: int) -> Point:
        """The point at a position in setting order."""
        trial_ids = self._trial_ids[self._offsets[index] : self._offsets[index + 1]].tolist()
        return Point(
            conditioning=_present(self.conditioning, index),
            metrics=_present(self.metrics, index),
            standard_errors=_present(self.standard_errors, index),
            seed_sd=_present(self.seed_sd, index),
            num_seeds=int(self.num_seeds[index]),
            costs=_present(self.costs, index),
            test_metrics=_present(self.test_metrics, index),
            method=str(self.methods[index]),
            trial_ids=tuple(sorted(map(str, trial_ids))),
        )

    def query(
        self,
        bounds: Iterable[Bound],
        *,
        objective: Objective,
        tie_breaks: Sequence[Objective] = (_FEWER_MACS,),
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
        losses = objective.to_loss(self.values(objective.name))
        met = [bound.is_met(self.values(bound.name)) for bound in bounds]
        within = np.logical_and.reduce([~np.isnan(losses), *met])
        breaks = [o.to_loss(self.values(o.name)) for o in tie_breaks if o.name in self.names]
        if within.any():
            return Answer(bounds, point=self.point(_first_best([losses, *breaks], within)))
        measured = self._measured([objective.name, *(bound.name for bound in bounds)])
        nearest = _first_best([self._worst_violation(bounds), losses, *breaks], measured)
        return Answer(
            bounds, reason=self._reason(bounds, met, measured), nearest=self.point(nearest)
        )

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
        losses = np.stack([o.to_loss(self.values(o.name)) for o in objectives], axis=1)
        measured = np.flatnonzero(~np.isnan(losses).any(axis=1))
        return Frontier.of(losses[measured], measured)

    def _measured(self, names: Sequence[str]) -> NDArray[np.bool_]:
        mask = np.ones(len(self), dtype=np.bool_)
        for name in names:
            mask &= ~np.isnan(self.values(name))
        if not mask.any():
            raise InputError(f"expected a point with all of {', '.join(names)}: none was measured")
        return mask

    def _worst_violation(self, bounds: Sequence[Bound]) -> Floats:
        worst = np.zeros(len(self))
        for bound in bounds:
            values = self.values(bound.name)
            np.maximum(worst, bound.violation(values) / (_range(values) or 1.0), out=worst)
        return worst

    def _reason(
        self,
        bounds: Sequence[Bound],
        met: Sequence[NDArray[np.bool_]],
        measured: NDArray[np.bool_],
    ) -> str:
        met = [mask & measured for mask in met]
        hopeless = [bound for bound, mask in zip(bounds, met, strict=True) if not mask.any()]
        if hopeless:
            told = (f"no setting has {b}: the {self._extreme(b, measured)}" for b in hopeless)
            return "; ".join(told)
        conflict = _smallest_conflict(met)
        trades = []
        for index in conflict:
            others = [other for other in conflict if other != index]
            allowed = np.logical_and.reduce([met[other] for other in others])
            given = " and ".join(str(bounds[other]) for other in others)
            trades.append(f"with {given} the {self._extreme(bounds[index], allowed, named=True)}")
        names = " and ".join(str(bounds[index]) for index in conflict)
        return f"{names} exclude each other: {', '.join(trades)}"

    def _extreme(self, bound: Bound, allowed: NDArray[np.bool_], *, named: bool = False) -> str:
        values = self.values(bound.name)
        index = _first_best([bound.improving.to_loss(values)], allowed)
        setting = ", ".join(
            f"{name} = {value if isinstance(value, str) else format_quantity(value, digits=6)}"
            for name, value in _present(self.conditioning, index).items()
        )
        word = "smallest" if bound.kind == "max" else "largest"
        what = f"{word} {bound.name}" if named else word
        return f"{what} is {_told_apart(float(values[index]), bound.value)} ({setting})"


@dataclass(frozen=True)
class _Groups:
    """Rows of the table and the point that each belongs to."""

    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    num_points: int

    def means(self, family: Columns) -> dict[str, Floats]:
        """Mean of each column per point; columns without a value here are left out."""
        means = {name: self._mean(values) for name, values in family.items()}
        return {name: mean for name, mean in means.items() if not np.isnan(mean).all()}

    def sds(self, family: Columns) -> dict[str, Floats]:
        """Standard deviation of each column per point, NaN for fewer than two values."""
        sds = {name: self._sd(values) for name, values in family.items()}
        return {name: sd for name, sd in sds.items() if not np.isnan(sd).all()}

    def _mean(self, values: NDArray[Any]) -> Floats:
        own = np.asarray(values, dtype=np.float64)[self.rows]
        present = np.isfinite(own)
        codes = self.codes[present]
        counts = np.bincount(codes, minlength=self.num_points)
        sums = np.bincount(codes, weights=own[present], minlength=self.num_points)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def _sd(self, values: NDArray[Any]) -> Floats:
        own = np.asarray(values, dtype=np.float64)[self.rows]
        present = np.isfinite(own)
        codes = self.codes[present]
        counts = np.bincount(codes, minlength=self.num_points)
        squares = (own[present] - self._mean(values)[codes]) ** 2
        sums = np.bincount(codes, weights=squares, minlength=self.num_points)
        return np.where(counts > 1, np.sqrt(sums / np.maximum(counts - 1, 1)), np.nan)


def _is_complete(columns: Columns, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those of the chosen rows with as many samples as any of them; all where none are counted."""
    if "num_samples" not in columns:
        return chosen
    num_samples = np.asarray(columns["num_samples"])
    complete: NDArray[np.bool_] = chosen & (num_samples == num_samples[chosen].max(initial=0))
    return complete


def _factorize(values: NDArray[Any]) -> tuple[int, NDArray[np.int64]]:
    # A dictionary numbers 1e6 short strings about ten times faster than sorting them does.
    seen: dict[Any, int] = {}
    numbers = (seen.setdefault(value, len(seen)) for value in np.asarray(values).tolist())
    codes = np.fromiter(numbers, dtype=np.int64, count=len(values))
    return len(seen), codes


def _family(columns: Columns, prefix: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): np.asarray(values)
        for name, values in columns.items()
        if name.startswith(prefix)
    }


def _setting_order(columns: Columns, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    keys = [columns["method"], *_family(columns, "conditioning/").values()]
    return np.lexsort([_sortable(np.asarray(key)[rows]) for key in reversed(keys)])


def _sortable(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind not in "OUS":
        return values
    names = ["" if value is None else str(value) for value in values.tolist()]
    return np.unique(names, return_inverse=True)[1]


def _present(columns: Columns, index: int) -> dict[str, Any]:
    values = {name: np.asarray(array[index]).item() for name, array in columns.items()}
    # The one value that differs from itself is NaN: together with None, what was not measured.
    return {name: value for name, value in values.items() if value is not None and value == value}


def _first_best(losses: Sequence[Floats], mask: NDArray[np.bool_]) -> int:
    """First position in `mask` with the smallest losses, compared one after the other."""
    ties = np.flatnonzero(mask)
    for column in losses:
        values = column if len(ties) == len(column) else column[ties]
        # fmin passes over NaN; where all are NaN none equals it, and the column decides nothing.
        kept = ties[values == np.fmin.reduce(values)]
        ties = kept if len(kept) else ties
    return int(ties[0])


def _smallest_conflict(met: Sequence[NDArray[np.bool_]]) -> list[int]:
    # What is left after dropping whatever can be dropped conflicts as a whole only: any of its
    # bounds can be met when the others are, so that every trade named in a reason exists.
    conflict = list(range(len(met)))
    for index in range(len(met)):
        others = [other for other in conflict if other != index]
        if not np.logical_and.reduce([met[other] for other in others]).any():
            conflict = others
    return conflict


def _range(values: Floats) -> float:
    return float(np.fmax.reduce(values) - np.fmin.reduce(values))


def _told_apart(value: float, bound: float) -> str:
    for digits in (3, 4, 6, 9):
        if format_quantity(value, digits=digits) != format_quantity(bound, digits=digits):
            return format_quantity(value, digits=digits)
    return format_quantity(value, digits=17)


def _refuse_repeated(bounds: Sequence[Bound]) -> None:
    seen: set[tuple[str, str]] = set()
    for bound in bounds:
        if (bound.name, bound.kind) in seen:
            raise InputError(
                f"expected at most one {bound.kind} bound on {bound.name}, got several"
            )
        seen.add((bound.name, bound.kind))


def _no_measurements(columns: Columns, method: str | None, split: str) -> InputError:
    held = sorted(set(zip(columns["method"].tolist(), columns["split"].tolist(), strict=True)))
    listed = ", ".join(f"{name} on {where}" for name, where in held) or "none"
    wanted = f"of method {method!r} " if method is not None else ""
    return InputError(f"no measurements {wanted}on split {split!r}; there are: {listed}")
