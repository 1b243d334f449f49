"""Points: the rows of a table that belong to one setting of one method, all seeds together.

Shapes: r rows of the table (measurements), p points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from explorer.measurements import Coded, CodedColumns
from search_spaces.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

# Spent by a method, whatever the setting: not the price of a point.
_METHOD_COSTS = frozenset({"train_s"})
# What a table's rows need beside the families of columns.
FIXED_COLUMNS = frozenset({"method", "split", "seed", "trial_id", "num_samples"})
_LARGEST = 2**62
# As `measurements.setting_id` does: a number that went through a table is the same setting.
_SETTING_DECIMALS = 12


@dataclass(frozen=True)
class Point:
    """One method at one setting, all seeds together.

    Attributes:
        conditioning: the setting.
        metrics: means over seeds.
        standard_errors: over the images of a split, as the mean over seeds. All seeds are
            evaluated on the same images, so their errors do not average out: this is the upper
            bound of the standard error of `metrics` over images, reached when seeds err alike
            (trainings for several pairs or folds, on other images, err less alike).
        seed_sd: standard deviation over seeds (n - 1 in the denominator), each the mean of its
            trainings where it has several (folds); empty for one seed.
        num_seeds: how many seeds were averaged.
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


def point_columns(columns: CodedColumns) -> CodedColumns:
    """The columns that points are made of, text as codes."""
    names = [name for name in columns if name in FIXED_COLUMNS or "/" in name]
    return {name: _coded(columns[name]) for name in names}


def methods_on(columns: CodedColumns, split: str) -> list[str]:
    """The methods with rows on a split, in the order in which they were recorded."""
    columns = point_columns(columns)
    methods: Any = columns["method"]
    codes = methods.codes[_is(columns["split"], split)]
    found, first = np.unique(codes, return_index=True)
    return [str(methods.names[code]) for code in found[np.argsort(first)]]


@dataclass(frozen=True, eq=False)
class PointRows:
    """The rows behind every point: those of one split, and of the same setting on the test split.

    Points are in setting order: by method, then by conditioning in column order, ascending. The
    rows of a point are in the order of their trials' ids, so that the order in which rows were
    recorded changes no mean.

    Attributes:
        columns: the measurements.
        rows: rows of the split by point; those of point i are `rows[offsets[i] : offsets[i + 1]]`.
        offsets: (p + 1,).
        settings: (p,) a number for each point, ascending.
        test_rows: rows of the test split by setting; none where the split is `test`.
        test_settings: the number of the setting of each.
    """

    columns: CodedColumns
    rows: Integers
    offsets: Integers
    settings: Integers
    test_rows: Integers
    test_settings: Integers

    @classmethod
    def of(
        cls,
        columns: CodedColumns,
        *,
        method: str | None = None,
        split: str = "val",
        seeds: Collection[int] | None = None,
    ) -> PointRows:
        """Group the rows of a split by method and setting, and the test rows likewise.

        Rows of settings that were given up in a race, on fewer samples than others of the split,
        are left out.

        Args:
            columns: the measurements, one array per column; NaN or None for null.
            method: of this method only; None for all.
            split: where metrics and costs are read.
            seeds: of these seeds only; None for all.

        Raises:
            InputError: no row is of that method and split, or none of one of the seeds.
        """
        columns = point_columns(columns)
        splits, methods = columns["split"], columns["method"]
        chosen = _complete(columns, _is(splits, split))
        is_test = _is(splits, "test") if split != "test" else np.zeros_like(chosen)
        if method is not None:
            of_method = _is(methods, method)
            chosen, is_test = chosen & of_method, is_test & of_method
        if not chosen.any():
            raise _no_measurements(methods, splits, method, split)
        taken = chosen | is_test
        if seeds is not None:
            taken &= _of_seeds(columns["seed"], chosen, seeds)
        rows = np.flatnonzero(taken)
        keys = [methods, *(values for _, values in _family(columns, "conditioning/"))]
        settings = _combined((_ranks(values, rows) for values in keys), len(rows))
        with_trials = (settings, _ranks(columns["trial_id"], rows))
        order = np.argsort(_combined(with_trials, len(rows))[0])
        rows, numbers = rows[order], settings[0][order]
        own = chosen[rows]
        own_numbers = numbers[own]
        starts = np.flatnonzero(np.diff(own_numbers, prepend=-1))
        return cls(
            columns,
            rows=rows[own],
            offsets=np.append(starts, len(own_numbers)),
            settings=own_numbers[starts],
            test_rows=rows[~own],
            test_settings=numbers[~own],
        )

    def __len__(self) -> int:
        return len(self.settings)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the points, sorted."""
        methods: Any = self.columns["method"]
        return tuple(sorted(str(methods.names[c]) for c in np.unique(methods.codes[self.rows])))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the rows, sorted."""
        seeds: Any = self.columns["seed"]
        return tuple(np.unique(seeds[self.rows]).astype(int).tolist())

    def means(self, prefix: str) -> dict[str, Floats]:
        """Mean of each column of a family per point, NaN where none of its rows has a value.

        Columns without any value are left out, and costs that a point does not have.
        """
        means = {name: self._mean(values) for name, values in _family(self.columns, prefix)}
        return {
            name: mean
            for name, mean in means.items()
            if name not in _METHOD_COSTS and not np.isnan(mean).all()
        }

    def conditionings(self) -> dict[str, Floats]:
        """The (p,) values of each conditioning that is a number, NaN where a point has none."""
        first = self.rows[self.offsets[:-1]]
        found = {}
        for name, values in _family(self.columns, "conditioning/"):
            if not isinstance(values, Coded) and values.dtype.kind == "f":
                found[name] = np.asarray(values[first], dtype=np.float64)
        return {name: own for name, own in found.items() if not np.isnan(own).all()}

    def recorded(self) -> Integers:
        """Positions of the points in the order in which their first rows were recorded."""
        return np.argsort(np.minimum.reduceat(self.rows, self.offsets[:-1]))

    def point(
        self, index: int, *, metrics: Mapping[str, Floats], costs: Mapping[str, Floats]
    ) -> Point:
        """The point at a position, its metrics and costs from the means given."""
        rows = self.rows[self.offsets[index] : self.offsets[index + 1]].tolist()
        setting = self.settings[index]
        first, last = np.searchsorted(self.test_settings, [setting, setting + 1])
        test_rows = self.test_rows[first:last].tolist()
        trials = self.columns["trial_id"]
        return Point(
            conditioning=dict(self.conditioning(index)),
            metrics=_present(metrics, index),
            standard_errors=self._summaries("se/", rows, _mean),
            seed_sd=self._summaries("metric/", rows, _sd, by_seed=True),
            num_seeds=len(self._by_seed(rows)),
            costs=_present(costs, index),
            test_metrics=self._summaries("metric/", test_rows, _mean),
            method=str(self.columns["method"][rows[0]]),
            trial_ids=tuple(sorted(str(trials[row]) for row in rows)),
        )

    def categories(self, name: str) -> NDArray[Any]:
        """The (p,) texts of a conditioning that is a category, None where a point has none."""
        values = self.columns[f"conditioning/{name}"]
        assert isinstance(values, Coded)
        names = np.array(values.names, dtype=object)
        found: NDArray[Any] = names[values.codes[self.rows[self.offsets[:-1]]]]
        return found

    def conditioning(self, index: int) -> Iterator[tuple[str, float | str]]:
        """The setting of the point at a position; what it does not have is left out."""
        row = int(self.rows[self.offsets[index]])
        for name, values in _family(self.columns, "conditioning/"):
            value = values[row]
            # The one value that differs from itself is NaN: with None, what a setting lacks.
            if value is not None and value == value:
                yield name, value if isinstance(value, str) else float(value)

    def _mean(self, values: NDArray[Any] | Coded) -> Floats:
        own = np.asarray(values, dtype=np.float64)[self.rows]
        present = np.isfinite(own)
        if len(own) == len(self):
            return own if present.all() else np.where(present, own, np.nan)
        starts = self.offsets[:-1]
        if present.all():
            return np.add.reduceat(own, starts) / np.diff(self.offsets)
        counts = np.add.reduceat(present.astype(np.float64), starts)
        sums = np.add.reduceat(np.where(present, own, 0.0), starts)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def _by_seed(self, rows: Sequence[int]) -> list[list[int]]:
        """Rows of each seed, where seeds are told."""
        if "seed" not in self.columns:
            return [[row] for row in rows]
        groups: dict[int, list[int]] = {}
        seeds: Any = self.columns["seed"]
        for row in rows:
            groups.setdefault(int(seeds[row]), []).append(row)
        return list(groups.values())

    def _summaries(
        self,
        prefix: str,
        rows: Sequence[int],
        summary: Callable[[list[float]], float | None],
        *,
        by_seed: bool = False,
    ) -> dict[str, float]:
        """A number for each column of a family over a few rows; where it is None, none.

        It is of the rows' values, or of the mean values of seeds.
        """
        told = {}
        groups = self._by_seed(rows) if by_seed else [[row] for row in rows]
        for name, values in _family(self.columns, prefix):
            means = [
                _mean([x for row in own if math.isfinite(x := float(values[row]))])
                for own in groups
            ]
            number = summary([mean for mean in means if mean is not None])
            if number is not None:
                told[name] = number
        return told


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _sd(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _present(columns: Mapping[str, Floats], index: int) -> dict[str, float]:
    values = {name: float(array[index]) for name, array in columns.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _family(columns: CodedColumns, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, values in columns.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), values


def _coded(values: NDArray[Any] | Coded) -> NDArray[Any] | Coded:
    if isinstance(values, Coded) or np.asarray(values).dtype.kind not in "OUS":
        return values
    return Coded.of(np.asarray(values))


def _complete(columns: CodedColumns, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those of the chosen rows with as many samples as any of them; all where none are counted."""
    if "num_samples" not in columns:
        return chosen
    num_samples: Any = columns["num_samples"]
    complete: NDArray[np.bool_] = chosen & (num_samples == num_samples[chosen].max(initial=0))
    return complete


def _is(column: Any, name: str) -> NDArray[np.bool_]:
    codes: NDArray[np.integer] = column.codes
    return codes == column.names.index(name) if name in column.names else np.zeros(len(codes), bool)


def _of_seeds(values: Any, chosen: NDArray[np.bool_], seeds: Collection[int]) -> NDArray[np.bool_]:
    known = np.unique(values[chosen]).astype(int).tolist()
    listed = ", ".join(map(str, known))
    if not seeds:
        raise InputError(f"expected at least one seed, got none; there are: {listed}")
    for seed in seeds:
        if seed not in known:
            raise InputError(f"no measurements of seed {seed}; there are: {listed}")
    return np.isin(values, list(seeds))


def _ranks(values: Any, rows: Integers) -> tuple[Integers, int]:
    """Numbers that sort as the values of some rows do, and how many numbers there are."""
    if isinstance(values, Coded):
        codes = values.codes[rows]
        if (codes == codes[0]).all():
            return np.zeros(len(rows), dtype=np.int64), 1
        order = sorted(range(len(values.names)), key=lambda code: values.names[code] or "")
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order))
        return ranks[codes], len(order)
    return _dense(np.round(values[rows], _SETTING_DECIMALS))


def _dense(values: NDArray[Any]) -> tuple[Integers, int]:
    if values[0] == values[-1] and (values == values[0]).all():
        return np.zeros(len(values), dtype=np.int64), 1
    order = np.argsort(values)
    ascending = values[order]
    is_new = ascending[1:] != ascending[:-1]
    is_new &= ascending[:-1] == ascending[:-1]  # all NaN, which come last, are one value
    ranks = np.zeros(len(values), dtype=np.int64)
    ranks[order[1:]] = np.cumsum(is_new)
    return ranks, int(ranks[order[-1]]) + 1


def _combined(keys: Iterable[tuple[Integers, int]], num_rows: int) -> tuple[Integers, int]:
    """One number per row that sorts as several do, the first before the second."""
    numbers, span = np.zeros(num_rows, dtype=np.int64), 1
    for own, num_own in keys:
        if num_own == 1:
            continue
        if span > _LARGEST // num_own:
            numbers, span = _dense(numbers)
        numbers, span = (numbers * num_own + own, span * num_own) if span > 1 else (own, num_own)
        if span == num_rows and np.bincount(numbers, minlength=span).max() == 1:
            break  # all differ: nothing is left to decide
    return numbers, span


def _no_measurements(methods: Any, splits: Any, method: str | None, split: str) -> InputError:
    pairs = np.unique(np.stack([methods.codes, splits.codes], axis=1), axis=0).tolist()
    held = sorted((methods.names[code], splits.names[where]) for code, where in pairs)
    listed = ", ".join(f"{name} on {where}" for name, where in held) or "none"
    wanted = f"of method {method!r} " if method is not None else ""
    return InputError(f"no measurements {wanted}on split {split!r}; there are: {listed}")
