"""Analyses of measurements over rescaling factors: structures, savings, costs, separate factors.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", and its forerunner "Amortized Learning of Flexible Feature Scaling for Image
Segmentation"; the figure or table of each analysis stands in its docstring.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from explorer.comparisons import compare, method_costs, point_difference, samples_by_seed
from explorer.explored import Analysis, Explored, NamedAnalysis, Row
from explorer.figures import metric_against_cost, training_cost_bars
from explorer.points import Point
from explorer.queries import PointTable
from explorer.rescaling_figures import (
    factor_fronts,
    factor_maps,
    lines_with_spread,
    structure_dots,
)
from explorer.rescalings import (
    best_point,
    factor_names,
    grid_method,
    nearest_point,
    of_one_training,
    point_at,
    spread,
    table_of,
    told,
)
from search_spaces.errors import InputError
from search_spaces.space import Config
from trainables.base import Arrays

_SIDE = re.compile(r"^(left|right)[-_ ]", re.IGNORECASE)


def _structures(explored: Explored) -> Analysis:
    """Fig. 4: quality of every structure, of the grid's largest network and of several settings."""
    explored = of_one_training(explored)
    main, quality = explored.spec.method, explored.objectives[0].name
    (name,) = factor_names(explored, 1)
    shares = _volumes(explored.images()["test"], _labels(explored))
    chosen: list[tuple[str, Point]] = []
    rival = grid_method(explored)
    if rival is not None:
        chosen.append((rival, nearest_point(explored, rival, name, np.inf)))
    own = table_of(explored, main)
    top = float(own.values(name).max())
    for share in (0.25, 0.5, 1.0):
        chosen.append((main, nearest_point(explored, main, name, share * top)))
    rows: list[Row] = []
    for method, point in chosen:
        for structure, (volume, labels) in shares.items():
            values = np.stack([_by_seed(explored, point, f"{quality}/{n}") for n in labels])
            with np.errstate(all="ignore"):
                by_seed = np.nanmean(values, axis=(0, 2))
            rows.append(
                {
                    "structure": structure,
                    "volume_share": volume,
                    "method": method,
                    name: point.conditioning[name],
                    quality: float(np.nanmean(by_seed)),
                    "sd": spread(by_seed),
                }
            )
    notes = ["structures by their share of all labelled pixels of the test images, sides together"]
    if rival is not None:
        same = {(r["structure"], r["method"], r[name]): r[quality] for r in rows}
        against = chosen[0][1].conditioning[name]
        for _, point in chosen[1:]:
            at = point.conditioning[name]
            gains = {s: same[s, main, at] - same[s, rival, against] for s in shares}
            worst = min(gains, key=gains.__getitem__)
            notes.append(
                f"{main} at {name} = {at:g} against {rival} at {against:g}: "
                f"{100 * float(np.mean(list(gains.values()))):+.1f} points on average, least for "
                f"{worst} ({100 * gains[worst]:+.1f})"
            )
    return Analysis(rows, notes, structure_dots(rows, metric=quality, conditioning=name))


def _volumes(test: Arrays, labels: Sequence[str]) -> dict[str, tuple[float, list[str]]]:
    """Share of all labelled pixels and the labels of each structure, the largest first."""
    counts = np.bincount(test.masks.ravel(), minlength=len(labels) + 1)[1:]
    parts: dict[str, list[str]] = {}
    for label in labels:
        parts.setdefault(_SIDE.sub("", label), []).append(label)
    shares = {
        name: float(sum(counts[labels.index(n)] for n in own) / max(1, counts.sum()))
        for name, own in parts.items()
    }
    return {name: (shares[name], parts[name]) for name in sorted(shares, key=lambda n: -shares[n])}


def _iso_accuracy(explored: Explored) -> Analysis:
    """Fig. 5, 7 and the claims about them: how much cheaper at the same quality, and at which loss.

    Every setting of the grid baseline that the main method was asked at too, or its own at twenty
    steps, against its largest; and the cheapest setting as good as each other method's best.
    """
    explored = of_one_training(explored)
    main, (quality, *_, cost) = explored.spec.method, explored.objectives
    table = table_of(explored, main)
    by_cost = [table.point(k) for k in np.argsort(table.values(cost.name))]
    top = max(by_cost, key=lambda p: p.costs[cost.name])
    kept = by_cost[:: max(1, len(by_cost) // 20)]
    if top not in kept:
        kept.append(top)
    rows: list[Row] = []
    for point in kept:
        difference = point_difference(explored.samples, point, top, quality.name)
        rows.append(
            {
                "method": main,
                "setting": dict(point.conditioning),
                "against": f"{main} at its most expensive",
                cost.name: point.costs[cost.name],
                "saving": 1 - point.costs[cost.name] / top.costs[cost.name],
                "validation": point.metrics[quality.name],
                quality.name: point.test_metrics[quality.name],
                "difference": difference,
            }
        )
    notes = []
    free = [row for row in rows if row["difference"]["high"] >= 0 and row["saving"] > 0]
    if free:
        least = max(free, key=lambda row: row["saving"])
        notes.append(
            f"without significant loss on test (95 % interval of the paired difference): "
            f"{told(least['setting'])}, {100 * least['saving']:.0f} % fewer {cost.name} than "
            f"{told(top.conditioning)}, {100 * least['difference']['mean']:+.2f} points"
        )
    compared = compare(
        explored.columns, None, method=main, objectives=explored.objectives, ranges={}
    )
    for other, found in compared["iso_accuracy"].items():
        best = compared["methods"][other]["best"]
        own = compared["methods"][main]["best"]
        gain = own["test_metrics"][quality.name] - best["test_metrics"][quality.name]
        note = f"best {main} against best {other} on test: {100 * gain:+.2f} points"
        point = found["point"]
        if point is None:
            notes.append(f"{note}; no setting of {main} is as good on validation")
            continue
        notes.append(
            f"{note}; as good on validation as {other} at {told(best['conditioning'])} for "
            f"{100 * found['saving']:.0f} % fewer {cost.name}: {told(point['conditioning'])}"
        )
        rows.append(
            {
                "method": main,
                "setting": dict(point["conditioning"]),
                "against": f"{other} at its best",
                cost.name: point["costs"][cost.name],
                "saving": found["saving"],
                "validation": point["metrics"][quality.name],
                quality.name: point["test_metrics"][quality.name],
                "difference": point_difference(
                    explored.samples,
                    point_at(explored, main, point["conditioning"]),
                    point_at(explored, other, best["conditioning"]),
                    quality.name,
                ),
            }
        )
    figure = metric_against_cost(
        explored.points(explored.columns, "test"),
        metric=quality.name,
        cost=cost.name,
        split="test",
        main=main,
    )
    return Analysis(rows, notes, figure)


def _training_cost(explored: Explored) -> Analysis:
    """Table 3: what training costs each method, all settings and one seed together."""
    main, costs = explored.spec.method, method_costs(explored.columns)
    seeds = max(1, len(explored.spec.train.seeds))
    rows: list[Row] = [
        {
            "method": method,
            "trainings": own.num_trainings // seeds,
            "train_s": own.train_s / seeds,
            "times_main": own.train_s / costs[main].train_s,
            "settings": own.num_settings,
        }
        for method, own in costs.items()
    ]
    notes = [
        f"{row['method']}: {row['trainings']} trainings a seed, {row['train_s'] / 60:.1f} minutes, "
        f"{row['times_main']:.2f} times {main}"
        for row in rows
    ]
    seconds = {row["method"]: float(row["train_s"]) for row in rows}
    return Analysis(rows, notes, training_cost_bars(seconds, main=main))


def _training_parameters(explored: Explored) -> Analysis:
    """What each way of training gives, along the factor: small, middle and large ones, and cost."""
    main, quality = explored.spec.method, explored.objectives[0].name
    (name,) = factor_names(explored, 1)
    grid = list(explored.spec.train.grid)
    if not grid:
        raise InputError(
            f"{explored.exploration_id}: it was trained in one way; name several in train.grid, "
            f"such as {{distillation: [0, 0.5], prior_power: [1, 2]}}"
        )
    table = table_of(explored, main)
    points = [table.point(index) for index in range(len(table))]
    ways: dict[str, list[Point]] = {}
    for point in points:
        way = told({own: point.conditioning[own] for own in grid if own in point.conditioning})
        ways.setdefault(way, []).append(point)
    seconds = explored.columns["cost/train_s"]
    rows: list[Row] = []
    lines = []
    for way, own in ways.items():
        own.sort(key=lambda point: float(point.conditioning[name]))
        trial_ids = {one for point in own for one in point.trial_ids}
        of_way = np.isin(explored.columns["trial_id"].astype(str), list(trial_ids))
        row: Row = {"method": main, "training": way}
        for split in ("val", "test"):
            found = np.array(
                [(p.metrics if split == "val" else p.test_metrics)[quality] for p in own]
            )
            small, middle, large = (x.mean() if x.size else None for x in np.array_split(found, 3))
            parts = {"first": found[0], "small": small, "middle": middle, "large": large}
            parts["all"] = found.mean()
            row |= {f"{split}_{n}": None if x is None else float(x) for n, x in parts.items()}
        row["train_s"] = float(np.mean(seconds[of_way]))
        rows.append(row)
        lines.append(
            (way, "", [(float(p.conditioning[name]), p.metrics[quality], None) for p in own])
        )
    rival = grid_method(explored)
    if rival is not None:
        own_table = table_of(explored, rival)
        every = [own_table.point(index) for index in range(len(own_table))]
        lines.append(
            (rival, "", [(float(p.conditioning[name]), p.metrics[quality], None) for p in every])
        )
    best = min(rows, key=lambda row: explored.objectives[0].to_loss(float(row["val_all"])))
    notes = [
        f"best on validation over all {name}: {best['training']}; small, middle and large are "
        f"thirds of the values of {name}, first is the smallest of them",
    ]
    figure = lines_with_spread(
        lines, [], x_label=name, metric=quality, main=lines[0][0], split="validation"
    )
    return Analysis(rows, notes, figure)


def _separate(explored: Explored) -> Analysis:
    """Fig. 12: quality at every combination of factors, and how much each of them matters."""
    quality = explored.objectives[0].name
    names = factor_names(explored, 2)
    table = _separately_drawn(explored)
    factors = np.stack([table.values(name) for name in names], axis=1)
    values = np.array([table.point(k).test_metrics[quality] for k in range(len(table))])
    rows: list[Row] = []
    total = float(values.var())
    for k, name in enumerate(names):
        levels = np.unique(factors[:, k])
        means = np.array([values[factors[:, k] == level].mean() for level in levels])
        weights = np.array([(factors[:, k] == level).mean() for level in levels])
        explained = float((weights * (means - values.mean()) ** 2).sum())
        rows.append(
            {
                "factor": name,
                "share_of_variance": explained / total if total else 0.0,
                "best_level": float(levels[means.argmax()]),
                "at_best_level": float(means.max()),
                "at_lowest_level": float(means[0]),
                "at_highest_level": float(means[-1]),
            }
        )
    best = best_point(explored)
    order = sorted(rows, key=lambda row: -float(row["share_of_variance"]))
    notes = [
        f"of the variance of {quality} over {len(table)} settings on test, "
        + ", ".join(f"{row['factor']} {100 * row['share_of_variance']:.0f} %" for row in order)
        + " are explained by one factor alone",
        f"best on validation {told(best.conditioning)}: {best.test_metrics[quality]:.4f} on test",
    ]
    floor = best.test_metrics[quality] - 0.02
    share = float((values >= floor).mean())
    notes.append(
        f"{100 * share:.0f} % of the settings are within 2 points of that on test, others are grey"
    )
    figure = factor_maps(factors, values, names=names, metric=quality, floor=floor)
    return Analysis(rows, notes, figure)


def _fronts(explored: Explored) -> Analysis:
    """Fig. 13: fronts of separate factors, of a common one, and of a grid of networks."""
    main, (quality, *_, cost) = explored.spec.method, explored.objectives
    names = factor_names(explored, 2)
    table = _separately_drawn(explored)
    series = {f"{main}, separate factors": _with_test(table, quality.name, cost.name)}
    if "draws" in explored.spec.train.grid:
        common = _drawn(explored, "common")
        points = [common.point(k) for k in range(len(common))]
        same = [p for p in points if len({p.conditioning[n] for n in names}) == 1]
        series[f"{main}, a common factor"] = _as_arrays(same, quality.name, cost.name)
    else:
        points = [table.point(k) for k in range(len(table))]
        same = [p for p in points if len({p.conditioning[n] for n in names}) == 1]
        series[f"{main}, equal factors"] = _as_arrays(same, quality.name, cost.name)
    for baseline in explored.spec.baselines:
        own = table_of(explored, baseline.method)
        series[baseline.method] = _with_test(own, quality.name, cost.name)
    rows: list[Row] = []
    for name, (spent, validation, tested, settings) in series.items():
        order = np.lexsort((-validation, spent))
        best = -np.inf
        for k in order:
            if validation[k] > best:
                best = validation[k]
                rows.append(
                    {
                        "series": name,
                        "setting": settings[k],
                        cost.name: float(spent[k]),
                        "validation": float(validation[k]),
                        quality.name: float(tested[k]),
                    }
                )
    notes = []
    for name in series:
        own_rows = [row for row in rows if row["series"] == name]
        best_row = max(own_rows, key=lambda row: float(row["validation"]))
        notes.append(
            f"{name}: front of {len(own_rows)} of {len(series[name][0])}, chosen on validation; "
            f"best {best_row[quality.name]:.4f} on test at {best_row[cost.name] / 1e6:.2f} M MACs"
        )
    figure = factor_fronts(
        {name: (own[0], own[2]) for name, own in series.items()},
        {
            name: np.array([(r[cost.name], r[quality.name]) for r in rows if r["series"] == name])
            for name in series
        },
        metric=quality.name,
    )
    return Analysis(rows, notes, figure)


Series = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], list[Config]]


def _with_test(table: PointTable, quality: str, cost: str) -> Series:
    return _as_arrays([table.point(k) for k in range(len(table))], quality, cost)


def _as_arrays(points: Sequence[Point], quality: str, cost: str) -> Series:
    """Costs, quality on validation and on test, and settings of points."""
    return (
        np.array([p.costs[cost] for p in points]),
        np.array([p.metrics[quality] for p in points]),
        np.array([p.test_metrics[quality] for p in points]),
        [dict(p.conditioning) for p in points],
    )


def _separately_drawn(explored: Explored) -> PointTable:
    if "draws" in explored.spec.train.grid:
        return _drawn(explored, "separate")
    return table_of(explored, explored.spec.method)


def _drawn(explored: Explored, draws: str) -> PointTable:
    """The points of the trainings whose factors were drawn like that."""
    columns = explored.columns
    kept = columns["conditioning/draws"] == draws
    own = {n: x[kept] for n, x in columns.items() if n != "conditioning/draws"}
    return PointTable.of(own, method=explored.spec.method)


def _labels(explored: Explored) -> list[str]:
    quality = explored.objectives[0].name
    prefix = f"metric/{quality}/"
    return [name.removeprefix(prefix) for name in explored.samples if name.startswith(prefix)]


def _by_seed(explored: Explored, point: Point, metric: str) -> NDArray[np.float64]:
    """Values (s, i) of a point's seeds and test images."""
    values, _ = samples_by_seed(
        explored.samples, method=point.method, setting=point.conditioning, metric=metric
    )
    return values


ANALYSES: dict[str, NamedAnalysis] = {
    "structures": NamedAnalysis("quality of every structure, the largest first", _structures),
    "iso-accuracy": NamedAnalysis(
        "how much cheaper at the same quality, and what each saving loses", _iso_accuracy
    ),
    "parameters": NamedAnalysis(
        "what each way of training that a grid names gives along the factor", _training_parameters
    ),
    "training-cost": NamedAnalysis("what training costs each method", _training_cost),
    "factors": NamedAnalysis(
        "quality at every combination of separate factors, and which of them matters", _separate
    ),
    "factor-fronts": NamedAnalysis(
        "fronts of separate factors, of a common one and of a grid", _fronts
    ),
}
