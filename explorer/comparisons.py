"""Statistics between methods: costs, paired differences, the same quality for less.

Shapes: s seeds, i images; selection is on the validation split, test values stand beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.attainment import (
    additive_epsilon,
    attainment_surfaces,
    hypervolume_history,
    mean_gap,
    share_dominated,
)
from explorer.measurements import CodedColumns, Columns, setting_id
from explorer.points import Floats, Point, methods_on, point_columns
from explorer.queries import Bound, PointTable
from explorer.significance import Significance, significance
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import Config

NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """Mean of one method minus another's on the same images, settings and number of seeds.

    Attributes:
        difference: mean over seeds, images and settings, in the metric's unit.
        low: lower end of the 95 % interval.
        high: upper end.
        num_settings: common settings that were averaged.
        num_images: paired images.
        num_seeds: of each method.
        ways: of training of either method, where it was trained in several; see `in_best_ways`.
    """

    method: str
    against: str
    metric: str
    difference: float
    low: float
    high: float
    num_settings: int
    num_images: int
    num_seeds: int
    ways: Mapping[str, Config] = field(default_factory=dict)


def paired_difference(
    first: Floats, second: Floats, *, members: NDArray[np.intp] | None = None
) -> tuple[float, float, float]:
    """Mean difference of two (s, i) arrays with its 95 % interval over images and seeds.

    Percentile bootstrap: images are drawn once for both methods, since they are the same images;
    the seeds of each are drawn separately, since a seed of one is no partner of a seed of the
    other. Pairs share images: these are drawn, and a pair counts as often as its two images
    together. Source: Owen (2007), arXiv:0711.2000, on resampling crossed factors independently.

    Args:
        first: values of seeds and images; NaN where undefined.
        second: the same images; another number of seeds is allowed.
        members: of samples that are pairs, (i, 2) indices of their images.

    Returns:
        Mean, lower and upper end.
    """
    generator = np.random.default_rng(0)
    num_images = first.shape[1] if members is None else int(members.max()) + 1
    shares = generator.multinomial(num_images, np.full(num_images, 1 / num_images), NUM_RESAMPLES)
    if members is not None:
        shares = shares[:, members].prod(axis=2)

    def resampled(values: Floats) -> Floats:
        s = len(values)
        seeds = generator.multinomial(s, np.full(s, 1 / s), NUM_RESAMPLES)
        present = np.isfinite(values)
        totals = np.einsum("bs,si,bi->b", seeds, np.where(present, values, 0), shares)
        counts = np.einsum("bs,si,bi->b", seeds, present, shares)
        means: Floats = np.divide(
            totals, counts, out=np.full(len(counts), np.nan), where=counts > 0
        )
        return means

    draws = resampled(first) - resampled(second)
    low, high = np.nanpercentile(draws, [2.5, 97.5])  # few images may leave a draw without a pair
    return float(np.nanmean(first) - np.nanmean(second)), float(low), float(high)


def paired_differences(
    samples: Columns,
    *,
    method: str,
    metric: str,
    ranges: Mapping[str, tuple[float, float]],
) -> list[PairedDifference]:
    """Compare a method with every other one on the settings that both were evaluated at.

    Args:
        samples: values per image of one split, one array per column.
        method: the one that the others are compared with.
        metric: which values.
        ranges: only settings whose conditioning lies within these, both ends included.

    Raises:
        InputError: a range of a conditioning that the samples do not have, or of a category.
    """
    inside = np.ones(len(samples["method"]), dtype=bool)
    known = [name for name in samples if name.startswith("conditioning/")]
    for name, (low, high) in ranges.items():
        if f"conditioning/{name}" not in known:
            raise unknown_name("conditioning", name, [n.partition("/")[2] for n in known])
        values = samples[f"conditioning/{name}"]
        if values.dtype.kind != "f":
            raise InputError(f"{name} is a category: it has choices, not a range")
        inside &= (values >= low - 1e-9) & (values <= high + 1e-9)
    differences = []
    for other in sorted(set(samples["method"][inside].tolist()) - {method}):
        settings = _settings(samples, inside, method) & _settings(samples, inside, other)
        if not settings:
            continue
        common = inside & np.isin(samples["setting_id"], sorted(settings))
        first, ids = _by_seed_and_image(samples, common & (samples["method"] == method), metric)
        second, _ = _by_seed_and_image(samples, common & (samples["method"] == other), metric)
        mean, low, high = paired_difference(first, second, members=_members(ids))
        differences.append(
            PairedDifference(
                method,
                other,
                metric,
                mean,
                low,
                high,
                num_settings=len(settings),
                num_images=first.shape[1],
                num_seeds=min(len(first), len(second)),
            )
        )
    return differences


def in_best_ways(
    samples: Columns, columns: Columns, *, ways: Collection[str], quality: Objective
) -> tuple[Columns, dict[str, Config]]:
    """Each method's samples in its best way of training on validation, settings named without it.

    A way of training is all that a training was made with of the conditionings `ways` that not
    every method has; the best has the best mean over its settings and seeds. Without such
    conditionings the samples are returned as they are.

    Args:
        samples: values per image of one split, one array per column.
        columns: the measurements, likewise.
        ways: names of conditionings that training was made with.
        quality: decides.

    Returns:
        The samples, and of methods that have such conditionings the best way.
    """
    methods = list(dict.fromkeys(samples["method"].tolist()))
    names = [
        name
        for name in ways
        if f"conditioning/{name}" in samples
        and not all(
            any(map(_is_known, samples[f"conditioning/{name}"][samples["method"] == method]))
            for method in methods
        )
    ]
    if not names:
        return samples, {}
    best: dict[str, Config] = {}
    kept = np.zeros(len(samples["method"]), dtype=bool)
    for method in methods:
        rows = np.flatnonzero((columns["method"] == method) & (columns["split"] == "val"))
        way, trials = _best_way(columns, rows, names, quality)
        kept |= (samples["method"] == method) & np.isin(samples["trial_id"].astype(str), trials)
        if way:
            best[method] = way
    left = {name: values[kept] for name, values in samples.items()}
    others = [
        name
        for name in (column.partition("conditioning/")[2] for column in left)
        if name and name not in names
    ]
    _, first, settings = np.unique(
        left["setting_id"].astype(str), return_index=True, return_inverse=True
    )
    ids = np.array([setting_id(_conditioning(left, row, others)) for row in first], dtype=object)
    return {**left, "setting_id": ids[settings]}, best


def _best_way(
    columns: Columns, rows: NDArray[np.intp], names: Sequence[str], quality: Objective
) -> tuple[Config, list[str]]:
    """The best way among these rows, and the trainings that were made in it."""
    trials, values = columns["trial_id"][rows].astype(str), columns[f"metric/{quality.name}"][rows]
    _, first, which = np.unique(trials, return_index=True, return_inverse=True)
    ways = [_conditioning(columns, row, names) for row in rows[first]]
    alike = np.array([ways.index(way) for way in ways])
    best = min(
        set(alike.tolist()), key=lambda k: quality.to_loss(np.nanmean(values[alike[which] == k]))
    )
    return ways[best], trials[first][alike == best].tolist()


def _conditioning(columns: Columns, row: int, names: Iterable[str]) -> Config:
    """Of these names the values that a row has."""
    values = {name: columns[f"conditioning/{name}"][row] for name in names}
    return {name: value for name, value in values.items() if _is_known(value)}


def _is_known(value: Any) -> bool:
    return isinstance(value, str) or (value is not None and bool(np.isfinite(value)))


def _settings(samples: Columns, rows: NDArray[np.bool_], method: str) -> set[str]:
    return set(samples["setting_id"][rows & (samples["method"] == method)].tolist())


def _members(ids: Sequence[str]) -> NDArray[np.intp] | None:
    """Of pairs MOVING>FIXED, (i, 2) indices of their images; None where samples are images."""
    if not all(one.count(">") == 1 for one in ids):
        return None
    _, codes = np.unique([one.split(">") for one in ids], return_inverse=True)
    return codes.reshape(-1, 2)


def _by_seed_and_image(
    samples: Columns, rows: NDArray[np.bool_], metric: str
) -> tuple[Floats, list[str]]:
    """Means over settings (s, i), samples in the order of their ids, and these."""
    seeds, seed_codes = np.unique(samples["seed"][rows], return_inverse=True)
    images, image_codes = np.unique(samples["sample_id"][rows].astype(str), return_inverse=True)
    values = samples[f"metric/{metric}"][rows].astype(np.float64)
    present = np.isfinite(values)
    cells = seed_codes * len(images) + image_codes
    size = len(seeds) * len(images)
    totals = np.bincount(cells[present], weights=values[present], minlength=size)
    counts = np.bincount(cells[present], minlength=size)
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return means.reshape(len(seeds), len(images)), images.tolist()


def samples_by_seed(
    samples: Columns, *, method: str, setting: Mapping[str, float | str], metric: str
) -> tuple[Floats, list[str]]:
    """Values (s, i) of a method at a setting, samples in the order of their ids, and these."""
    is_setting = samples["setting_id"] == setting_id(setting)
    return _by_seed_and_image(samples, (samples["method"] == method) & is_setting, metric)


def point_difference(
    samples: Columns, first: Point, second: Point, metric: str
) -> dict[str, float]:
    """Mean of one point minus another's on the same samples, `low` and `high` of its interval."""
    found = [
        samples_by_seed(samples, method=one.method, setting=one.conditioning, metric=metric)
        for one in (first, second)
    ]
    (own, ids), (others, _) = found
    mean, low, high = paired_difference(own, others, members=_members(ids))
    return {"mean": mean, "low": low, "high": high}


@dataclass(frozen=True)
class MethodCost:
    """What a method took, all its seeds and grid values together.

    Attributes:
        train_s: processor seconds (on a GPU: seconds) of training, validation and checkpoints.
        evaluation_s: the same of exploring the validation split.
        num_trainings: trials behind it.
        num_settings: different settings that it answers for.
    """

    train_s: float
    evaluation_s: float
    num_trainings: int
    num_settings: int


def method_costs(columns: Columns) -> dict[str, MethodCost]:
    """The cost of every method in a table; trainings that were not explored do not count."""
    costs = {}
    explored = columns["split"] == "val"
    for method in dict.fromkeys(columns["method"].tolist()):
        rows = explored & (columns["method"] == method)
        trials = columns["trial_id"][rows].astype(str)
        _, first = np.unique(trials, return_index=True)
        costs[method] = MethodCost(
            train_s=float(columns["cost/train_s"][rows][first].sum()),
            evaluation_s=float(columns["evaluation_s"][rows].sum()),
            num_trainings=len(first),
            num_settings=len(set(columns["setting_id"][rows].tolist())),
        )
    return costs


def method_tables(columns: CodedColumns) -> dict[str, PointTable]:
    """The points of every method on validation, in the order in which methods were recorded."""
    columns = point_columns(columns)
    return {name: PointTable.of(columns, method=name) for name in methods_on(columns, "val")}


def front_statistics(
    columns: CodedColumns, tables: Mapping[str, PointTable], objectives: Sequence[Objective]
) -> dict[str, dict[str, Any]]:
    """What the fronts of methods attain on validation, as plain data.

    Per method: the hypervolume; how it grew with the settings in the order in which they were
    recorded, each at its mean over all seeds; and the attainment surfaces over the fronts of
    single seeds (None for fewer than two seeds, or other than two or three objectives). The
    reference point is the worst value of each objective over all points of all methods.
    """
    columns = point_columns(columns)
    ref_point = _ref_point(tables.values(), objectives)
    statistics = {}
    for name, table in tables.items():
        counts, volumes = hypervolume_history(table.losses(objectives), ref_point)
        statistics[name] = {
            "hypervolume": volumes[-1] if volumes else 0.0,
            "hypervolume_history": {"num_settings": counts, "hypervolume": volumes},
            "attainment": _attainment(columns, name, table.seeds, objectives),
        }
    return statistics


def compare(
    columns: Columns,
    samples: Columns | None,
    *,
    method: str,
    objectives: Sequence[Objective],
    ranges: Mapping[str, tuple[float, float]],
    ways: Collection[str] = (),
) -> dict[str, Any]:
    """How a method does against the others, as plain data.

    Per method: cost, its ratio to the main method's (training alone, and with the evaluations
    counted), the best point on validation, `front_statistics`; per other method: the paired
    difference on test, and chosen on validation the iso-accuracy saving and the iso-cost gain,
    where the last objective is a cost, which front dominates how much of the other, and, each
    at its best setting on validation, whether it is significantly better on test.
    `ref_point` holds losses; `ranges` are those of the paired difference, which is one of each
    method's best way of training where they were trained in several; see `in_best_ways`.
    """
    costs = method_costs(columns)
    quality, cost = objectives[0], objectives[-1]
    tables = method_tables(columns)
    statistics = front_statistics(columns, tables, objectives)
    best = {name: table.best(quality) for name, table in tables.items()}
    methods = {}
    for name in tables:
        own, main = costs[name], costs[method]
        methods[name] = {
            **asdict(own),
            "train_ratio": own.train_s / main.train_s,
            "total_ratio": (own.train_s + own.evaluation_s) / (main.train_s + main.evaluation_s),
            **statistics[name],
            "best": best[name].to_json(),
        }
    differences: list[PairedDifference] = []
    if samples is not None:
        held, best_ways = in_best_ways(samples, columns, ways=ways, quality=quality)
        differences = [
            replace(one, ways={n: w for n, w in best_ways.items() if n in (method, one.against)})
            for one in paired_differences(held, method=method, metric=quality.name, ranges=ranges)
        ]
    ref_point = _ref_point(tables.values(), objectives)
    scale = ref_point - _ideal_point(tables.values(), objectives)
    main_table = tables[method]
    others = [name for name in tables if name != method]
    # a measured objective is no price: half of a share of folded voxels saves nobody anything
    priced = others if cost.name in main_table.costs else []
    return {
        "method": method,
        "objectives": [asdict(objective) for objective in objectives],
        "ref_point": dict(zip([o.name for o in objectives], ref_point.tolist(), strict=True)),
        "methods": methods,
        "ranges": {name: list(ends) for name, ends in ranges.items()},
        "paired_on_test": [asdict(difference) for difference in differences],
        "significance_on_test": []
        if samples is None
        else [asdict(one) for one in _significances(samples, best, method, quality)],
        "iso_accuracy": {
            name: _iso_accuracy(main_table, best[name], quality, cost) for name in priced
        },
        "iso_cost": {
            name: _iso_cost(main_table, tables[name], best[name], quality, cost) for name in priced
        },
        "dominance": {
            name: _dominance(main_table, tables[name], objectives, scale) for name in others
        },
    }


def _significances(
    samples: Columns, best: Mapping[str, Point], method: str, quality: Objective
) -> list[Significance]:
    """A method against every other one on test, each at its best on validation."""
    values, ids = {}, {}
    for name, point in best.items():
        table, ids[name] = samples_by_seed(
            samples, method=name, setting=point.conditioning, metric=quality.name
        )
        if ids[name]:
            present = np.isfinite(table)
            counts = present.sum(0)
            totals = np.where(present, table, 0).sum(0)
            values[name] = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    if method not in values or _members(ids[method]) is not None:
        return []  # pairs share images: they are no independent samples
    sign = float(quality.to_loss(-1.0))
    found = [
        significance(
            values[method], own, method=method, against=name, metric=quality.name, sign=sign
        )
        for name, own in values.items()
        if name != method and ids[name] == ids[method]
    ]
    return [one for one in found if one is not None]


def _attainment(
    columns: CodedColumns, method: str, seeds: Sequence[int], objectives: Sequence[Objective]
) -> dict[str, Any] | None:
    if len(seeds) < 2:
        return None
    tables = [PointTable.of(columns, method=method, seeds=[seed]) for seed in seeds]
    surfaces = attainment_surfaces([table.frontier(objectives).losses for table in tables])
    if surfaces is None:
        return None
    told = {
        name: {
            objective.name: objective.from_loss(own).tolist()
            for objective, own in zip(objectives, surface.T, strict=True)
        }
        for name, surface in surfaces.items()
    }
    return {"num_seeds": len(seeds), **told}


def _ref_point(tables: Iterable[PointTable], objectives: Sequence[Objective]) -> Floats:
    """The worst value of every objective over all points, as losses; the same for all methods."""
    losses = [[o.to_loss(t.values(o.name)) for o in objectives] for t in tables]
    return np.array([max(np.nanmax(own[k]) for own in losses) for k in range(len(objectives))])


def _ideal_point(tables: Iterable[PointTable], objectives: Sequence[Objective]) -> Floats:
    """The best value of every objective over all points, as losses."""
    losses = [[o.to_loss(t.values(o.name)) for o in objectives] for t in tables]
    return np.array([min(np.nanmin(own[k]) for own in losses) for k in range(len(objectives))])


def _iso_accuracy(
    table: PointTable, reference: Point, quality: Objective, cost: Objective
) -> dict[str, Any]:
    """The cheapest point at least as good on validation as another method's best."""
    target = reference.metrics[quality.name]
    point = table.iso_accuracy(target, objective=quality, cost=cost.name).point
    if point is None:
        return {"target": target, "point": None, "saving": None}
    saving = 1 - point.costs[cost.name] / reference.costs[cost.name]
    return {"target": target, "point": point.to_json(), "saving": saving}


def _iso_cost(
    table: PointTable,
    other: PointTable,
    reference: Point,
    quality: Objective,
    cost: Objective,
) -> dict[str, Any]:
    """The best point on validation that costs at most what another method's best does.

    `gain` is by how much it is better (in the quality's unit, positive is better), `mean_gain` the
    same as a mean over the costs that both methods cover, `range`, with each method at its best
    point within the cost.
    """
    spent = reference.costs[cost.name]
    point = table.query([Bound(cost.name, "max", spent)], objective=quality).point
    own, others = (
        one.losses([quality, Objective(cost.name, "minimize")]) for one in (table, other)
    )
    low = max(losses[:, 1].min() for losses in (own, others))
    high = min(losses[:, 1].max() for losses in (own, others))
    gain = None
    if point is not None:
        found, target = (one.metrics[quality.name] for one in (point, reference))
        gain = quality.to_loss(target) - quality.to_loss(found)
    return {
        "cost": spent,
        "point": None if point is None else point.to_json(),
        "gain": gain,
        "mean_gain": mean_gap(own, others, low, high) if low < high else None,
        "range": [float(low), float(high)] if low < high else None,
    }


def _dominance(
    table: PointTable, other: PointTable, objectives: Sequence[Objective], scale: Floats
) -> dict[str, float]:
    """How two fronts stand: shares dominated, and additive epsilons as shares of the range."""
    own, others = (one.frontier(objectives).losses for one in (table, other))
    scale = np.where(scale > 0, scale, 1.0)
    return {
        "share_of_other_dominated": share_dominated(others, by=own),
        "share_of_own_dominated": share_dominated(own, by=others),
        "epsilon": additive_epsilon(own, others, scale=scale),
        "epsilon_of_other": additive_epsilon(others, own, scale=scale),
    }
