"""Analyses of measurements over rescaling factors: structures, savings, costs, separate factors.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", and its forerunner "Amortized Learning of Flexible Feature Scaling for Image
Segmentation"; the figure or table of each analysis stands in its docstring.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.comparisons import compare, point_difference, samples_by_seed
from explorer.explored import Analysis, Explored, NamedAnalysis, Row
from explorer.figures import metric_against_cost, training_cost_bars
from explorer.models import build_trainable
from explorer.points import Point
from explorer.quantities import format_quantity
from explorer.rescaling_figures import (
    factor_fronts,
    factor_maps,
    lines_with_spread,
    structure_dots,
)
from explorer.rescalings import (
    best_point,
    drawn,
    factor_names,
    grid_method,
    nearest_point,
    objectives_of,
    one_way,
    point_at,
    points_of,
    spread,
    table_of,
    told,
    trials_of_method,
    without_one_factor,
    without_several_factors,
)
from explorer.specs import ExplorationSpec
from search_spaces.errors import InputError
from trainables.base import Arrays

NUM_SAVINGS = 20  # settings whose saving is told
NEAR = 0.02  # of the best: settings that are told apart in the maps
_SIDE = re.compile(r"^(left|right)[-_ ]", re.IGNORECASE)


def _structures(explored: Explored) -> Analysis:
    """Fig. 4: quality of every structure, of the grid's largest network and of several settings."""
    explored = one_way(explored)
    main, quality = explored.spec.method, objectives_of(explored)[0].name
    (name,) = factor_names(explored.spec)
    labels = list(build_trainable(explored.spec).model.labels)  # type: ignore[attr-defined]
    if any(f"metric/{quality}/{label}" not in explored.samples for label in labels):
        raise InputError(f"{explored.exploration_id}: {quality} is not told of single labels")
    shares = _volumes(explored.images()["test"], labels)
    rival = grid_method(explored)
    own = table_of(explored, main)
    top = float(own.values(name).max())
    chosen = [(main, nearest_point(explored, main, name, part * top)) for part in (0.25, 0.5, 1.0)]
    if rival is not None:
        chosen.insert(0, (rival, nearest_point(explored, rival, name, np.inf)))
    rows: list[Row] = []
    for method, point in chosen:
        for structure, (volume, parts) in shares.items():
            means = _means_of_seeds(explored, point, [f"{quality}/{part}" for part in parts])
            if means is None:
                continue
            row: Row = {"structure": structure, "volume_share": volume, "method": method}
            row |= {name: point.conditioning[name], quality: float(means.mean())}
            rows.append({**row, "sd": spread(means)})
    notes = ["structures by their share of all labelled pixels of the test images, sides together"]
    missing = shares.keys() - {row["structure"] for row in rows}
    if missing:
        notes.append(f"in no test image and no prediction: {', '.join(sorted(missing))}")
    if rival is not None:
        notes += _gains_of_structures(rows, name, quality, rival)
    return Analysis(rows, notes, structure_dots(rows, metric=quality, conditioning=name))


def _volumes(test: Arrays, labels: Sequence[str]) -> dict[str, tuple[float, list[str]]]:
    """Share of all labelled pixels and the labels of each structure, the largest first."""
    each = [np.bincount(mask.ravel(), minlength=len(labels) + 1)[1:] for mask in test.masks]
    counts = np.sum(each, axis=0)
    parts: dict[str, list[str]] = {}
    for label in labels:
        parts.setdefault(_SIDE.sub("", label), []).append(label)
    shares = {
        name: float(sum(counts[labels.index(n)] for n in own) / max(1, counts.sum()))
        for name, own in parts.items()
    }
    return {name: (shares[name], parts[name]) for name in sorted(shares, key=lambda n: -shares[n])}


def _means_of_seeds(
    explored: Explored, point: Point, metrics: Sequence[str]
) -> NDArray[np.float64] | None:
    """Mean of metrics over test images, seed by seed; none where nothing is defined."""
    values = np.stack(
        [
            samples_by_seed(
                explored.samples, method=point.method, setting=point.conditioning, metric=metric
            )[0]
            for metric in metrics
        ]
    )
    present = np.isfinite(values)
    counts = present.sum(axis=(0, 2))
    if not counts.all():
        return None
    means: NDArray[np.float64] = np.where(present, values, 0).sum(axis=(0, 2)) / counts
    return means


def _gains_of_structures(rows: Sequence[Row], name: str, quality: str, rival: str) -> list[str]:
    """What each setting of the main method gains on the grid's network, and where least."""
    theirs = {row["structure"]: row for row in rows if row["method"] == rival}
    notes = []
    for at in dict.fromkeys(row[name] for row in rows if row["method"] != rival):
        own = [row for row in rows if row["method"] != rival and row[name] == at]
        gains = {
            row["structure"]: row[quality] - theirs[row["structure"]][quality]
            for row in own
            if row["structure"] in theirs
        }
        if gains:
            worst = min(gains, key=gains.__getitem__)
            against = next(iter(theirs.values()))[name]
            notes.append(
                f"{own[0]['method']} at {name} = {at:g} against {rival} at {against:g}: "
                f"{100 * float(np.mean(list(gains.values()))):+.1f} points on average, least for "
                f"{worst} ({100 * gains[worst]:+.1f})"
            )
    return notes


def _iso_accuracy(explored: Explored) -> Analysis:
    """Fig. 5, 7 and the claims about them: what each saving loses, and the same for less.

    Some twenty settings of the main method against its most expensive one; and, chosen on
    validation, the cheapest that are as good as that one and as each other method's best.
    """
    explored = one_way(explored)
    main, (quality, cost) = explored.spec.method, objectives_of(explored)
    table = table_of(explored, main)
    by_cost = sorted(points_of(explored, main), key=lambda point: point.costs[cost.name])
    top = by_cost[-1]
    kept = [*by_cost[: -1 : max(1, len(by_cost) // NUM_SAVINGS)], top]

    def row(point: Point, other: Point, against: str) -> Row:
        return {
            "method": main,
            "setting": dict(point.conditioning),
            "against": against,
            cost.name: point.costs[cost.name],
            "saving": 1 - point.costs[cost.name] / other.costs[cost.name],
            "validation": point.metrics[quality.name],
            quality.name: point.test_metrics[quality.name],
            "difference": point_difference(explored.samples, point, other, quality.name),
        }

    rows = [row(point, top, f"{main} at its most expensive") for point in kept]
    same = table.iso_accuracy(top.metrics[quality.name], objective=quality, cost=cost.name).point
    assert same is not None  # the most expensive one itself
    rows.append(row(same, top, f"{main}, as good on validation"))
    notes = [_saved(rows[-1], top, main, cost.name)]
    compared = compare(explored.columns, None, method=main, objectives=(quality, cost), ranges={})
    for other, found in compared["iso_accuracy"].items():
        best = point_at(explored, other, compared["methods"][other]["best"]["conditioning"])
        own = point_at(explored, main, compared["methods"][main]["best"]["conditioning"])
        gain = own.test_metrics[quality.name] - best.test_metrics[quality.name]
        notes.append(f"best {main} against best {other} on test: {100 * gain:+.2f} points")
        if found["point"] is None:
            notes.append(f"no setting of {main} is as good on validation as the best {other}")
            continue
        point = point_at(explored, main, found["point"]["conditioning"])
        rows.append(row(point, best, f"{other} at its best"))
        notes.append(_saved(rows[-1], best, other, cost.name))
    figure = metric_against_cost(
        explored.points(explored.columns, "test"),
        metric=quality.name,
        cost=cost.name,
        split="test",
        main=main,
    )
    return Analysis(rows, notes, figure)


def _saved(row: Row, other: Point, method: str, cost: str) -> str:
    difference = row["difference"]
    return (
        f"as good on validation as {method} at {told(other.conditioning)} for "
        f"{100 * row['saving']:.0f} % less of {cost}: {told(row['setting'])}; on test "
        f"{100 * difference['mean']:+.2f} points (95 % interval {100 * difference['low']:+.2f} to "
        f"{100 * difference['high']:+.2f})"
    )


def _training_cost(explored: Explored) -> Analysis:
    """Table 3: what training costs each method, all settings of a seed together."""
    explored = one_way(explored)
    main, rows = explored.spec.method, list[Row]()
    columns = explored.columns
    for method in [main, *(baseline.method for baseline in explored.spec.baselines)]:
        seconds: dict[tuple[Any, ...], list[float]] = {}
        for trial_id, settled in trials_of_method(explored, method).items():
            row = np.flatnonzero(columns["trial_id"].astype(str) == trial_id)[0]
            key = tuple(settled.items())
            seconds.setdefault(key, []).append(float(columns["cost/train_s"][row]))
        of_a_seed = float(sum(np.mean(own) for own in seconds.values()))
        settings = len(points_of(explored, method))
        rows.append({"method": method, "trainings": len(seconds), "train_s": of_a_seed})
        rows[-1] |= {"times_main": of_a_seed / rows[0]["train_s"], "settings": settings}
    notes = [
        f"{row['method']}: {row['trainings']} trainings a seed, {row['train_s'] / 60:.1f} minutes, "
        f"{row['times_main']:.2f} times {main}"
        for row in rows
    ]
    seconds_of = {row["method"]: float(row["train_s"]) for row in rows}
    return Analysis(rows, notes, training_cost_bars(seconds_of, main=main))


def _training_parameters(explored: Explored) -> Analysis:
    """What each way of training gives, along the factor: small, middle and large ones, and cost."""
    grid = list(explored.spec.train.grid)
    explored = one_way(explored, vary=grid)
    main, (quality, _) = explored.spec.method, objectives_of(explored)
    (name,) = factor_names(explored.spec)
    ways: dict[str, list[Point]] = {}
    for point in points_of(explored, main):
        way = told({own: point.conditioning[own] for own in grid if own in point.conditioning})
        ways.setdefault(way, []).append(point)
    seconds = explored.columns["cost/train_s"]
    rows, lines = list[Row](), []
    for way, own in ways.items():
        own.sort(key=lambda point: float(point.conditioning[name]))
        trial_ids = {one for point in own for one in point.trial_ids}
        of_way = np.isin(explored.columns["trial_id"].astype(str), list(trial_ids))
        row: Row = {"method": main, "training": way}
        for split in ("val", "test"):
            found = np.array(
                [(p.metrics if split == "val" else p.test_metrics)[quality.name] for p in own]
            )
            small, middle, large = (x.mean() if x.size else None for x in np.array_split(found, 3))
            parts = {"first": found[0], "small": small, "middle": middle, "large": large}
            parts["all"] = found.mean()
            row |= {f"{split}_{n}": None if x is None else float(x) for n, x in parts.items()}
        rows.append({**row, "train_s": float(np.mean(seconds[of_way]))})
        lines.append((way, "", _line(own, name, quality.name)))
    rival = grid_method(explored)
    if rival is not None:
        lines.append((rival, "", _line(points_of(explored, rival), name, quality.name)))
    best = max(rows, key=lambda row: float(row["val_all"]))
    notes = [
        f"best on validation over all {name}: {best['training']}; small, middle and large are "
        f"thirds of the values of {name}, first is the smallest of them",
    ]
    figure = lines_with_spread(
        lines, [], x_label=name, metric=quality.name, main=lines[0][0], split="validation"
    )
    return Analysis(rows, notes, figure)


def _without_ways(spec: ExplorationSpec) -> str:
    if any(len(values) > 1 for values in spec.train.grid.values()):
        return ""
    return "several ways of training, such as train.grid: {distillation: [0, 0.5]}"


def _line(
    points: Sequence[Point], name: str, quality: str
) -> list[tuple[float, float, float | None]]:
    return [
        (float(p.conditioning[name]), p.metrics[quality], p.seed_sd.get(quality)) for p in points
    ]


def _separate(explored: Explored) -> Analysis:
    """Fig. 12: quality at every combination of factors, and how much each of them matters."""
    explored = drawn(one_way(explored, vary=("draws",)), "separate")
    quality = objectives_of(explored)[0].name
    names = factor_names(explored.spec)
    points = points_of(explored, explored.spec.method)
    factors = np.array([[float(p.conditioning[name]) for name in names] for p in points])
    values = np.array([point.test_metrics[quality] for point in points])
    if any(len(np.unique(column)) == len(points) for column in factors.T):
        raise InputError(
            f"{explored.exploration_id}: what a factor explains needs settings that share its "
            f"values: explore.sampler: grid"
        )
    rows: list[Row] = []
    for name, column in zip(names, factors.T, strict=True):
        levels, places = np.unique(column, return_inverse=True)
        means = np.array([values[places == k].mean() for k in range(len(levels))])
        explained = float(((means[places] - values.mean()) ** 2).mean())
        row: Row = {"factor": name, "share_of_variance": explained / (float(values.var()) or 1.0)}
        row |= {"best_level": float(levels[means.argmax()]), "at_best_level": float(means.max())}
        rows.append({**row, "at_lowest": float(means[0]), "at_highest": float(means[-1])})
    best = best_point(explored)
    order = sorted(rows, key=lambda row: -float(row["share_of_variance"]))
    floor = best.test_metrics[quality] - NEAR
    notes = [
        f"of the variance of {quality} over {len(points)} settings on test, "
        + ", ".join(f"{row['factor']} {100 * row['share_of_variance']:.0f} %" for row in order)
        + " are explained by one factor alone",
        f"best on validation {told(best.conditioning)}: {best.test_metrics[quality]:.4f} on test",
        f"{100 * float((values >= floor).mean()):.0f} % of the settings are within "
        f"{100 * NEAR:g} points of that on test, others are grey",
    ]
    star = [float(best.conditioning[name]) for name in names]
    figure = factor_maps(factors, values, names=names, metric=quality, floor=floor, star=star)
    return Analysis(rows, notes, figure)


def _fronts(explored: Explored) -> Analysis:
    """Fig. 13: fronts of separate factors, of a common one, and of a grid of networks."""
    explored = one_way(explored, vary=("draws",))
    main, (quality, cost) = explored.spec.method, objectives_of(explored)
    names = factor_names(explored.spec)
    series: dict[str, list[Point]] = {}
    separate = points_of(drawn(explored, "separate"), main)
    series[f"{main}, separate factors"] = separate
    if "common" in explored.spec.train.grid.get("draws", ()):
        common = points_of(drawn(explored, "common"), main)
        series[f"{main}, a common factor"] = _with_equal(common, names)
    else:
        series[f"{main}, equal factors"] = _with_equal(separate, names)
    for baseline in explored.spec.baselines:
        series[baseline.method] = points_of(explored, baseline.method)
    rows, notes, fronts = list[Row](), list[str](), dict[str, list[Point]]()
    for name, points in series.items():
        front = _front(points, quality.name, cost.name)
        if not front:
            continue
        fronts[name] = front
        for point in front:
            row: Row = {"series": name, "setting": dict(point.conditioning)}
            row |= {cost.name: point.costs[cost.name], "validation": point.metrics[quality.name]}
            rows.append({**row, quality.name: point.test_metrics[quality.name]})
        best = front[-1]
        notes.append(
            f"{name}: front of {len(front)} of {len(points)}, chosen on validation; best "
            f"{best.test_metrics[quality.name]:.4f} on test at "
            f"{format_quantity(best.costs[cost.name], digits=4)} {cost.name}"
        )
    shown = {name: [point.to_json() for point in series[name]] for name in fronts}
    figure = factor_fronts(
        shown,
        {name: [point.to_json() for point in own] for name, own in fronts.items()},
        metric=quality.name,
        cost=cost.name,
    )
    return Analysis(rows, notes, figure)


def _with_equal(points: Sequence[Point], names: Sequence[str]) -> list[Point]:
    return [point for point in points if len({point.conditioning[name] for name in names}) == 1]


def _front(points: Sequence[Point], quality: str, cost: str) -> list[Point]:
    """Points that no cheaper one equals on validation, the cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.costs[cost], -p.metrics[quality])):
        if not kept or point.metrics[quality] > kept[-1].metrics[quality]:
            kept.append(point)
    return kept


ANALYSES: dict[str, NamedAnalysis] = {
    "structures": NamedAnalysis(
        "quality of every structure, the largest first", _structures, without_one_factor
    ),
    "iso-accuracy": NamedAnalysis(
        "how much cheaper at the same quality, and what each saving loses", _iso_accuracy
    ),
    "parameters": NamedAnalysis(
        "what each way of training that a grid names gives along the factor",
        _training_parameters,
        lambda spec: without_one_factor(spec) or _without_ways(spec),
    ),
    "training-cost": NamedAnalysis("what training costs each method", _training_cost),
    "factors": NamedAnalysis(
        "quality at every combination of separate factors, and which of them matters",
        _separate,
        without_several_factors,
    ),
    "factor-fronts": NamedAnalysis(
        "fronts of separate factors, of a common one and of a grid",
        _fronts,
        without_several_factors,
    ),
}
