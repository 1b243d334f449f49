"""Points as they are drawn: axes with their units, one series per method, colours and words.

A *point* is one setting of one method, averaged over seeds: a mapping with the keys `method`,
`conditioning`, `metrics`, `seed_sd`, `num_seeds`, `costs`, `test_metrics`, `trial_ids`. A method
whose trials each evaluated several settings is amortised and drawn as a line; one that trained anew
for every setting is a grid baseline and drawn as markers. Against a conditioning, each combination
of categories is a line of its own. Metrics are taken as better when larger, costs when smaller.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Point = Mapping[str, Any]
Array = NDArray[np.float64]
Dash = tuple[Literal["-", "--", ":", "-."], str]

# Okabe & Ito (2008), "Color Universal Design": told apart with any colour vision.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#8C6D46", "#8A8A8A"),
)
_BASELINE_MARKERS = ("s", "o", "^", "D", "v", "P", "X")
# Of categories, as matplotlib and plotly call them.
_DASHES: tuple[Dash, ...] = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))
_SYMBOLS = {"phi": "φ", "lambda": "λ", "gamma": "γ"}
METRICS = {
    "folded_share": "Share of folded voxels",
    "folded_voxels": "Folded voxels",
    "velocity_gradient": "Gradient of the velocity per voxel",
    "displacement": "Displacement in voxels",
    "surface_dice": "Surface Dice",
    "fine_tuned_blocks": "Fine-tuned blocks",
}
COSTS = {
    "macs": ("Multiply-adds per image", "MAC", "MACs"),
    "flops": ("Operations per image", "FLOP", "FLOPs"),
    "parameters": ("Parameters", "", "parameters"),
    "activation_bytes": ("Peak activation memory", "B", "activation bytes"),
}


@dataclass(frozen=True)
class Axis:
    """A quantity on an axis: where it stands in a point, how it is written, its divisor."""

    family: str
    name: str
    label: str
    divisor: float = 1.0

    def values(self, points: Sequence[Point]) -> Array:
        """Its value in each point, in the axis' unit; NaN where a point does not know it."""
        found = [value_of(point, self.family, self.name) for point in points]
        return np.array(found) / self.divisor


@dataclass(frozen=True)
class Series:
    """The points of one method and how they are drawn; finite on both axes, sorted along x.

    `choice` is what marks are chosen by: y, or on test the same metric on validation. `category`
    is what all the points share, where others of the method do not.
    """

    method: str
    points: tuple[Point, ...]
    x: Array
    y: Array
    choice: Array
    sd: Array
    color: str
    marker: str
    is_amortised: bool
    category: str = ""
    dash: Dash = _DASHES[0]

    @property
    def label(self) -> str:
        """Method, category and number of seeds, for a legend."""
        seeds = sorted({int(point["num_seeds"]) for point in self.points})
        spread = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
        name = f"{self.method}, {self.category}" if self.category else self.method
        return f"{name} ({spread} seed{'' if seeds == [1] else 's'})"

    @property
    def best(self) -> int:
        """Row with the largest choice; the cheapest of equals."""
        return int(np.argmax(self.choice))

    @property
    def front(self) -> NDArray[np.intp]:
        """Rows that no cheaper or equally cheap point equals or beats in `choice`, by rising x."""
        order = np.lexsort((-self.choice, self.x))
        before = np.maximum.accumulate(np.concatenate(([-np.inf], self.choice[order][:-1])))
        return order[self.choice[order] > before]


def series_of(points: Sequence[Point], *, x_axis: Axis, y_axis: Axis, main: str) -> list[Series]:
    """One series for each method that has a point with both values, `main` first.

    Against a conditioning: one for each combination of categories.

    Raises:
        ValueError: no method has one.
    """
    colors = colors_of((point["method"] for point in points), main)
    markers = itertools.cycle(_BASELINE_MARKERS)
    is_split = x_axis.family == "conditioning"
    names = sorted({_category_of(point) for point in points}) if is_split else [""]
    dashes = dict(zip(names, itertools.cycle(_DASHES), strict=False))
    found = []
    for method, color in colors.items():
        mine = [point for point in points if point["method"] == method]
        x, y = x_axis.values(mine), y_axis.values(mine)
        rows = [row for row in np.argsort(x, kind="stable") if np.isfinite(x[row] + y[row])]
        if not rows:
            continue
        uses = Counter(trial_id for row in rows for trial_id in mine[row]["trial_ids"])
        is_amortised = max(uses.values(), default=0) > 1
        for name, dash in dashes.items():
            own = [row for row in rows if not is_split or _category_of(mine[row]) == name]
            if own:
                kept = tuple(mine[row] for row in own)
                sd = np.nan_to_num([value_of(point, "seed_sd", y_axis.name) for point in kept])
                choice = np.array([_chosen_by(point, y_axis.name) for point in kept])
                marker = "." if is_amortised else next(markers)
                look = (color, marker, is_amortised, name, dash)
                found.append(Series(method, kept, x[own], y[own], choice, sd, *look))
    if not found:
        raise ValueError(f"no point has both {x_axis.name!r} and {y_axis.name!r}")
    return found


def metric_axis(metric: str, split: str) -> Axis:
    """A metric on the split that it was measured on."""
    return Axis("metrics", metric, f"{name_of(metric)} on {split}")


def conditioning_axis(name: str) -> Axis:
    """A numeric conditioning."""
    return Axis("conditioning", name, _SYMBOLS.get(name, name))


def cost_axis(points: Sequence[Point], cost: str, split: str) -> Axis:
    """A cost, in the SI unit that fits the largest of the points; or a metric that is minimised."""
    if points and not any(cost in point["costs"] for point in points):
        return metric_axis(cost, split)
    name, unit, _ = cost_words(cost)
    largest = max((value_of(point, "costs", cost) for point in points), default=1.0)
    divisor, prefix = si_prefix(largest)
    written = prefix + unit
    return Axis("costs", cost, f"{name} ({written})" if written else name, divisor)


def cost_words(cost: str) -> tuple[str, str, str]:
    """A cost's name on an axis, its unit, and what "37 % fewer" is followed by."""
    return COSTS.get(cost, (cost, "", cost))


def si_prefix(value: float) -> tuple[float, str]:
    """Divisor and prefix with which a number is written in few digits."""
    scales = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((scale, prefix) for scale, prefix in scales if value >= scale), (1.0, ""))


def value_of(point: Point, family: str, name: str) -> float:
    """A value of a point; NaN where it does not have it."""
    value = point[family].get(name)
    return float("nan") if value is None else float(value)


def name_of(metric: str) -> str:
    """`Dice`, or `Dice of nucleus` for one label."""
    name, _, label = metric.partition("/")
    return METRICS.get(name, name.replace("_", " ").capitalize()) + (
        f" of {label}" if label else ""
    )


def setting_of(point: Point) -> str:
    """The conditioning in words: `φ 0.25, nearest`."""
    numbers = [
        f"{_SYMBOLS.get(name, name)} {value:.3g}"
        for name, value in point["conditioning"].items()
        if not isinstance(value, str)
    ]
    return ", ".join([*numbers, *filter(None, [_category_of(point)])])


def _category_of(point: Point) -> str:
    """The categories of the conditioning in words; empty where there are none."""
    return ", ".join(value for value in point["conditioning"].values() if isinstance(value, str))


def colors_of(methods: Iterable[str], main: str) -> dict[str, str]:
    """Method to colour: `main` first, the others by name, whatever the order they came in."""
    names = sorted(set(methods), key=lambda name: (name != main, name))
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def limits_of(series: Sequence[Series]) -> tuple[float, float]:
    """A range of y in which a collapse of a few points does not flatten all the others.

    The whole range where that is at most 2.5 times the range of the upper nine tenths of points;
    otherwise those nine tenths and a quarter more. Whoever draws says what lies outside.
    """
    y = np.concatenate([one.y for one in series])
    low = min(float((one.y - one.sd).min()) for one in series)
    high = max(float((one.y + one.sd).max()) for one in series)
    tenth = float(np.percentile(y, 10))
    span = max(high - tenth, 1e-3)
    if high - low > 2.5 * span:
        low = tenth - 0.25 * span
    margin = 0.04 * max(high - low, 1e-3)
    return low - margin, high + margin


def _chosen_by(point: Point, metric: str) -> float:
    """The metric on validation where the point says it, otherwise as drawn."""
    family = "validation_metrics" if "validation_metrics" in point else "metrics"
    return value_of(point, family, metric)
