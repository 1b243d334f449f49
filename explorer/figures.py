"""Figures of an exploration: matplotlib for static ones, one self-contained plotly page.

Pure functions of points; nothing here reads or writes but `save_png` and `write_html`. A *point* is
one setting of one method, averaged over seeds: a mapping with the keys `method`, `conditioning`,
`metrics`, `seed_sd`, `num_seeds`, `costs`, `test_metrics`, `trial_ids`. All points of one figure
are means over rows of the one `split` that its axis names. A method whose trials each evaluated
several settings is amortised and drawn as a line; one that trained anew for every setting is a
grid baseline and drawn as markers. Against a conditioning, each combination of categories is a line
of its own. Metrics are taken as better when larger, costs when smaller.
"""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from plotly.subplots import make_subplots

Point = Mapping[str, Any]
Array = NDArray[np.float64]
Dash = tuple[Literal["-", "--", ":", "-."], str]

# Okabe & Ito (2008), "Color Universal Design": told apart with any colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BASELINE_MARKERS = ("s", "o", "^", "D", "v", "P", "X")
# Of categories, as matplotlib and plotly call them.
_DASHES: tuple[Dash, ...] = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))
_GREY = "#555555"
_SYMBOLS = {"phi": "φ", "lambda": "λ"}
# Cost to its name on an axis, its unit, and what "37 % fewer" is followed by.
_COSTS = {
    "macs": ("Multiply-adds per image", "MAC", "MACs"),
    "flops": ("Operations per image", "FLOP", "FLOPs"),
    "parameters": ("Parameters", "", "parameters"),
    "activation_bytes": ("Peak activation memory", "B", "activation bytes"),
}


@dataclass(frozen=True)
class _Axis:
    """A quantity on an axis: where it stands in a point, how it is written, its divisor."""

    family: str
    name: str
    label: str
    divisor: float = 1.0

    def values(self, points: Sequence[Point]) -> Array:
        """Its value in each point, in the axis' unit; NaN where a point does not know it."""
        return np.array([_value(point, self.family, self.name) for point in points]) / self.divisor


@dataclass(frozen=True)
class _Series:
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
        """Rows that no cheaper or equally cheap point equals or beats, by rising x and y."""
        order = np.lexsort((-self.y, self.x))
        before = np.maximum.accumulate(np.concatenate(([-np.inf], self.y[order][:-1])))
        return order[self.y[order] > before]


def metric_against_conditioning(
    points: Sequence[Point],
    *,
    metric: str = "dice",
    conditioning: str = "phi",
    split: str,
    main: str,
) -> Figure:
    """A metric as a function of one conditioning: mean and standard deviation over seeds.

    Args:
        points: of one or several methods, in any order; those without the metric are left out.
        metric: a metric, or one label of it (`dice/nucleus`).
        conditioning: a numeric conditioning.
        split: the split that the points were measured on; it is named on the axis.
        main: the exploration's own method; it comes first in colours and legend.
    """
    x_axis, y_axis = _conditioning_axis(conditioning), _metric_axis(metric, split)
    series = _series(points, x_axis=x_axis, y_axis=y_axis, main=main)
    figure, axes = _figure()
    for one in series:
        if one.is_amortised:
            axes.plot(one.x, one.y, color=one.color, linewidth=1.8, linestyle=one.dash[0])
            axes.fill_between(
                one.x, one.y - one.sd, one.y + one.sd, color=one.color, alpha=0.18, linewidth=0
            )
        else:
            _draw_errorbars(axes, one, np.arange(len(one.x)), linewidth=0.8)
    _finish(figure, axes, series, x_axis=x_axis, y_axis=y_axis)
    return figure


def metric_against_cost(
    points: Sequence[Point],
    *,
    metric: str = "dice",
    cost: str = "macs",
    split: str,
    main: str,
    attainment: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """A metric against a cost, with the front of every method.

    A star marks the best point of `main`, a square the best of each other method, a diamond the
    cheapest point of `main` that is at least as good as the best of all others; its legend entry
    compares the two costs. Points of a test split that hold `validation_metrics` are marked by
    these: nothing is chosen on test. Arguments are those of `metric_against_conditioning`, and
    `attainment`: of methods with several seeds what the fronts of the best, half and all of the
    seeds attain, {surface: {name: values}}. The band of a method that has it reaches from the worst
    to the best of these fronts, otherwise one standard deviation around the front of the means.
    """
    x_axis, y_axis = _cost_axis(points, cost), _metric_axis(metric, split)
    series = _series(points, x_axis=x_axis, y_axis=y_axis, main=main)
    figure, axes = _figure()
    axes.margins(x=0.1)  # room for the names of the settings beside the cheapest points
    handles: list[Any] = []
    for one in series:
        surfaces = (attainment or {}).get(one.method) if one.is_amortised else None
        _draw_front(axes, one, is_main=one.method == main, has_band=surfaces is None)
        if surfaces is not None:
            alpha = 0.22 if one.method == main else 0.1
            _draw_attainment(axes, surfaces, x_axis, y_axis, color=one.color, alpha=alpha)
            text = "band: fronts of single seeds, worst to best"
            handles = [Line2D([], [], color=_GREY, linewidth=7, alpha=0.3, label=text)]
    handles.append(_mark_best(axes, series, main=main))
    handles.extend(_mark_iso_accuracy(axes, series, metric=metric, cost=cost, main=main))
    _finish(figure, axes, series, x_axis=x_axis, y_axis=y_axis, handles=handles)
    return figure


def hypervolume_growth(
    histories: Mapping[str, Mapping[str, Sequence[float]]], *, main: str
) -> Figure:
    """Hypervolume of each method's front against the number of settings evaluated.

    Args:
        histories: method to `num_settings`, ascending, and the `hypervolume` of so many.
        main: the exploration's own method.
    """
    figure, axes = _figure(height=3.4)
    largest = max(history["hypervolume"][-1] for history in histories.values())
    handles = []
    for method, color in _colors(histories, main).items():
        history = histories[method]
        counts = np.asarray(history["num_settings"])
        shares = 100 * np.asarray(history["hypervolume"]) / (largest or 1.0)
        width = 1.8 if method == main else 1.1
        axes.step(counts, shares, where="post", color=color, linewidth=width)
        axes.plot(counts[-1], shares[-1], "o", color=color, markersize=4)
        label = f"{method}: {shares[-1]:.3g} % of the largest after {counts[-1]}"
        handles.append(Line2D([], [], color=color, linewidth=width, label=label))
    axes.set_xlabel("Settings evaluated, in the order of recording")
    axes.set_ylabel("Hypervolume beyond the\nworst values of all (%)")
    axes.set_ylim(bottom=0)
    _draw_legend(figure, handles)
    return figure


def training_cost_bars(costs: Mapping[str, float], *, main: str) -> Figure:
    """Training seconds of each method (all seeds and grid values together) as bars."""
    figure, axes = _figure(height=1.2 + 0.4 * len(costs))
    colors = _colors(costs, main)
    names = list(colors)
    seconds = np.array([costs[name] for name in names])
    divisor, unit = (3600.0, "h") if seconds.max() >= 7200 else (60.0, "min")
    if seconds.max() < 120:
        divisor, unit = 1.0, "s"
    bars = axes.barh(names, seconds / divisor, color=[colors[name] for name in names], height=0.6)
    axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=9)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel(f"Training time ({unit})")
    return figure


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    methods: Mapping[str, str],
    metric: str = "dice",
    main: str,
) -> Figure:
    """Training loss, and a metric on val, of every trial against the epoch.

    Args:
        histories: trial id to its reports in order; each has `epoch`, and `train_loss` or the
            metric or both.
        methods: trial id to method; trials of one method share a colour.
        metric: key of the reports that is drawn on the right.
        main: the exploration's own method.
    """
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = _colors(methods.values(), main)
    losses = _draw_histories(left, histories, "train_loss", colors=colors, methods=methods)
    _draw_histories(right, histories, metric, colors=colors, methods=methods)
    if losses and min(losses) > 0:
        left.set_yscale("log")
    left.set_ylabel("Training loss")
    right.set_ylabel(_metric_axis(metric, "val").label)
    num_trials = Counter(methods[trial_id] for trial_id in histories)
    handles = [
        Line2D([], [], color=color, label=f"{name} ({num_trials[name]} trained)")
        for name, color in colors.items()
    ]
    _draw_legend(figure, handles)
    return figure


def frontier_html(
    points: Sequence[Point],
    *,
    metric: str = "dice",
    cost: str = "macs",
    conditioning: str | None = "phi",
    split: str,
    main: str,
    title: str,
) -> str:
    """One interactive page: the metric against the cost and against the conditioning, if any.

    The page holds its own copy of plotly.js and asks the network for nothing. Arguments are those
    of the static figures; `title` heads the page.
    """
    y_axis = _metric_axis(metric, split)
    x_axes = [_cost_axis(points, cost)]
    if conditioning is not None:
        x_axes.append(_conditioning_axis(conditioning))
    figure = make_subplots(rows=1, cols=len(x_axes), shared_yaxes=True, horizontal_spacing=0.04)
    for column, x_axis in enumerate(x_axes, start=1):
        series = _series(points, x_axis=x_axis, y_axis=y_axis, main=main)
        for one in series:
            for trace in _traces(one, against_cost=x_axis.family == "costs", split=split):
                figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title_text=x_axis.label, row=1, col=column)
    low, high = _limits(series)
    figure.update_yaxes(range=[low, high])
    figure.update_yaxes(title_text=y_axis.label, row=1, col=1)
    figure.update_layout(
        title={
            "text": title,
            "subtitle": {
                "text": "Lines: front of each method (left), mean over "
                "seeds (right). Double-click for the whole range; click a name to hide a method."
            },
        },
        template="simple_white",
        hovermode="closest",
        legend={
            "orientation": "h",
            "y": -0.16,
            "x": 0.5,
            "xanchor": "center",
            "itemsizing": "constant",
        },
        margin={"l": 70, "r": 30, "t": 100, "b": 60},
        font={"size": 14},
    )
    page: str = figure.to_html(
        include_plotlyjs=True,
        full_html=True,
        default_height="90vh",
        config={"displaylogo": False, "responsive": True},
    )
    return page


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure at 150 dots per inch."""
    figure.savefig(path, dpi=150, format="png")


def write_html(page: str, path: Path) -> None:
    """Write a page as UTF-8."""
    path.write_text(page, encoding="utf-8")


def _value(point: Point, family: str, name: str) -> float:
    value = point[family].get(name)
    return float("nan") if value is None else float(value)


def _metric_axis(metric: str, split: str) -> _Axis:
    return _Axis("metrics", metric, f"{_name(metric)} on {split}")


def _name(metric: str) -> str:
    """`Dice`, or `Dice of nucleus` for one label."""
    name, _, label = metric.partition("/")
    return name.replace("_", " ").capitalize() + (f" of {label}" if label else "")


def _conditioning_axis(name: str) -> _Axis:
    return _Axis("conditioning", name, _SYMBOLS.get(name, name))


def _cost_axis(points: Sequence[Point], cost: str) -> _Axis:
    name, unit, _ = _cost_words(cost)
    largest = max((_value(point, "costs", cost) for point in points), default=1.0)
    divisor, prefix = _si_prefix(largest)
    written = prefix + unit
    return _Axis("costs", cost, f"{name} ({written})" if written else name, divisor)


def _cost_words(cost: str) -> tuple[str, str, str]:
    return _COSTS.get(cost, (cost, "", cost))


def _si_prefix(value: float) -> tuple[float, str]:
    scales = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((scale, prefix) for scale, prefix in scales if value >= scale), (1.0, ""))


def _colors(methods: Iterable[str], main: str) -> dict[str, str]:
    """Method to colour: `main` first, the others by name, whatever the order they came in."""
    names = sorted(set(methods), key=lambda name: (name != main, name))
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def _series(points: Sequence[Point], *, x_axis: _Axis, y_axis: _Axis, main: str) -> list[_Series]:
    """One series for each method that has a point with both values, `main` first.

    Against a conditioning: one for each combination of categories.

    Raises:
        ValueError: no method has one.
    """
    colors = _colors((point["method"] for point in points), main)
    markers = itertools.cycle(_BASELINE_MARKERS)
    is_split = x_axis.family == "conditioning"
    names = sorted({_category(point) for point in points}) if is_split else [""]
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
        marker = "." if is_amortised else next(markers)
        for name, dash in dashes.items():
            own = [row for row in rows if not is_split or _category(mine[row]) == name]
            if own:
                kept = tuple(mine[row] for row in own)
                sd = np.nan_to_num([_value(point, "seed_sd", y_axis.name) for point in kept])
                choice = np.array([_chosen_by(point, y_axis.name) for point in kept])
                look = (color, marker, is_amortised, name, dash)
                found.append(_Series(method, kept, x[own], y[own], choice, sd, *look))
    if not found:
        raise ValueError(f"no point has both {x_axis.name!r} and {y_axis.name!r}")
    return found


def _chosen_by(point: Point, metric: str) -> float:
    """The metric on validation where the point says it, otherwise as drawn."""
    family = "validation_metrics" if "validation_metrics" in point else "metrics"
    return _value(point, family, metric)


def _setting(point: Point) -> str:
    """The conditioning in words: `φ 0.25, nearest`."""
    numbers = [
        f"{_SYMBOLS.get(name, name)} {value:.3g}"
        for name, value in point["conditioning"].items()
        if not isinstance(value, str)
    ]
    return ", ".join([*numbers, *filter(None, [_category(point)])])


def _category(point: Point) -> str:
    """The categories of the conditioning in words; empty where there are none."""
    return ", ".join(value for value in point["conditioning"].values() if isinstance(value, str))


def _limits(series: Sequence[_Series]) -> tuple[float, float]:
    """A range of y in which a collapse of a few points does not flatten all the others.

    The whole range where that is at most 2.5 times the range of the upper nine tenths of points;
    otherwise those nine tenths and a quarter more. Points left out are named by `_focus`.
    """
    y = np.concatenate([one.y for one in series])
    low = min(float((one.y - one.sd).min()) for one in series)
    high = max(float((one.y + one.sd).max()) for one in series)
    tenth = float(np.percentile(y, 10))
    span = max(high - tenth, 1e-3)
    if high - low > 2.5 * span:
        low = tenth - 0.25 * span
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _draw_histories(
    axes: Axes,
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    key: str,
    *,
    colors: Mapping[str, str],
    methods: Mapping[str, str],
) -> list[float]:
    """Draw one quantity of every trial; returns all its values."""
    drawn: list[float] = []
    order = list(colors)
    for trial_id, history in histories.items():
        rows = [row for row in history if row.get(key) is not None]
        values = [row[key] for row in rows]
        axes.plot(
            [row["epoch"] for row in rows],
            values,
            color=colors[methods[trial_id]],
            alpha=0.7,
            linewidth=0.9,
            zorder=3 - order.index(methods[trial_id]) / len(order),
        )
        drawn.extend(values)
    _decorate(axes)
    axes.set_xlabel("Epoch")
    return drawn


def _focus(axes: Axes, series: Sequence[_Series]) -> list[Line2D]:
    """Set the range of y; mark what lies below it, and return the legend entry that says so."""
    low, high = _limits(series)
    axes.set_ylim(low, high)
    lowest = min(float(one.y.min()) for one in series)
    if lowest >= low:
        return []
    for one in series:
        x = one.x[one.y < low]
        axes.plot(
            x, np.full_like(x, low), "v", color=one.color, markersize=5, clip_on=False, zorder=5
        )
    return [_legend_mark("v", f"below the axis, down to {lowest:.3g}", size=5)]


def _figure(*, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots()
    _decorate(axes)
    return figure, axes


def _decorate(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def _draw_legend(figure: Figure, handles: Sequence[Any]) -> None:
    labels = [
        handle[0].get_label() if isinstance(handle, tuple) else handle.get_label()
        for handle in handles
    ]
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        fontsize=8.5,
        frameon=False,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def _finish(
    figure: Figure,
    axes: Axes,
    series: Sequence[_Series],
    *,
    x_axis: _Axis,
    y_axis: _Axis,
    handles: Sequence[Any] = (),
) -> None:
    """Name the axes, fit the range of y, and draw the legend: series, `handles`, what is hidden."""
    axes.set_xlabel(x_axis.label)
    axes.set_ylabel(y_axis.label)
    lines = [
        Line2D(
            [],
            [],
            color=one.color,
            label=one.label,
            linewidth=1.8 if one.is_amortised else 0.8,
            linestyle=one.dash[0],
            marker="" if one.is_amortised else one.marker,
            markersize=4.5,
        )
        for one in series
    ]
    _draw_legend(figure, [*lines, *handles, *_focus(axes, series)])


def _draw_errorbars(axes: Axes, one: _Series, rows: NDArray[np.intp], *, linewidth: float) -> None:
    axes.errorbar(
        one.x[rows],
        one.y[rows],
        yerr=one.sd[rows],
        color=one.color,
        marker=one.marker,
        markersize=4.5,
        linewidth=linewidth,
        linestyle=one.dash[0],
        elinewidth=1,
        capsize=2,
    )


def _draw_attainment(
    axes: Axes,
    surfaces: Mapping[str, Mapping[str, Sequence[float]]],
    x_axis: _Axis,
    y_axis: _Axis,
    *,
    color: str,
    alpha: float,
) -> None:
    """The region between what all seeds attain and what the best one does."""
    right = axes.dataLim.x1
    ends = [np.asarray(one[x_axis.name]) / x_axis.divisor for one in surfaces.values()]
    x = np.unique(np.concatenate([*ends, [right]]))
    low, high = (_steps(surfaces[name], x, x_axis, y_axis) for name in ("worst", "best"))
    axes.fill_between(x, low, high, step="post", color=color, alpha=alpha, linewidth=0)


def _steps(surface: Mapping[str, Sequence[float]], x: Array, x_axis: _Axis, y_axis: _Axis) -> Array:
    """The best metric of a surface at each cost or less; NaN below its cheapest point."""
    costs = np.asarray(surface[x_axis.name]) / x_axis.divisor
    order = np.argsort(costs)
    best = np.maximum.accumulate(np.asarray(surface[y_axis.name])[order])
    last = np.searchsorted(costs[order], x, side="right") - 1
    return np.where(last >= 0, best[np.maximum(last, 0)], np.nan)


def _draw_front(axes: Axes, one: _Series, *, is_main: bool, has_band: bool) -> None:
    """All points faintly, the front as steps; seeds as a band, of a grid as bars."""
    rows = one.front
    axes.scatter(one.x, one.y, s=14, color=one.color, marker=one.marker, alpha=0.3, linewidths=0)
    x = np.append(one.x[rows], one.x.max())
    y, sd = (np.append(values[rows], values[rows[-1]]) for values in (one.y, one.sd))
    axes.step(x, y, where="post", color=one.color, linewidth=2.0 if is_main else 1.1)
    if one.is_amortised and has_band:
        alpha = 0.18 if is_main else 0.08
        axes.fill_between(x, y - sd, y + sd, step="post", color=one.color, alpha=alpha, linewidth=0)
    elif not one.is_amortised:
        _draw_errorbars(axes, one, rows, linewidth=0.0)
    if is_main:
        _name_settings(axes, one, rows)


def _name_settings(axes: Axes, one: _Series, rows: NDArray[np.intp]) -> None:
    """Write the setting beside a few points of a front, evenly spread over its rows."""
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, 5).round().astype(int))]:
        axes.plot(one.x[row], one.y[row], "o", color=one.color, markersize=4)
        axes.annotate(
            _setting(one.points[row]),
            (one.x[row], one.y[row]),
            xytext=(-5, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=one.color,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=8,
        )


def _mark_best(axes: Axes, series: Sequence[_Series], *, main: str) -> tuple[Line2D, ...]:
    """Star the best point of `main` and square those of the others; the legend entry for both."""
    marks = {}
    for one in series:
        marker, size = ("*", 14) if one.method == main else ("s", 8)
        axes.plot(
            one.x[one.best],
            one.y[one.best],
            marker,
            color=one.color,
            markersize=size,
            markeredgecolor="white",
            zorder=6,
        )
        on_val = ", chosen on validation" * ("validation_metrics" in one.points[0])
        marks[marker] = _legend_mark(marker, f"best of a method{on_val}", size=0.6 * size)
    return tuple(marks.values())


def _mark_iso_accuracy(
    axes: Axes, series: Sequence[_Series], *, metric: str, cost: str, main: str
) -> list[Line2D]:
    """Mark the cheapest point of `main` as good as the best of all others; its legend entry."""
    ours = next((one for one in series if one.method == main), None)
    others = [one for one in series if one is not ours]
    if ours is None or not others:
        return []
    rival = max(others, key=lambda one: float(one.choice.max()))
    enough = np.flatnonzero(ours.choice >= rival.choice[rival.best])
    if not enough.size:
        return []
    row = enough[np.argmin(ours.x[enough])]
    saving = 100 * (1 - ours.x[row] / rival.x[rival.best])
    axes.plot(
        ours.x[row], ours.y[row], "D", color=ours.color, markeredgecolor="white", ms=7, zorder=7
    )
    than = f"{abs(saving):.0f} % {'fewer' if saving >= 0 else 'more'}"
    text = f"same {_name(metric)} as the best {rival.method}, {than} {_cost_words(cost)[2]}"
    return [_legend_mark("D", text, size=5)]


def _legend_mark(marker: str, label: str, *, size: float) -> Line2D:
    return Line2D([], [], color=_GREY, linestyle="", marker=marker, markersize=size, label=label)


def _traces(one: _Series, *, against_cost: bool, split: str) -> list[go.Scatter]:
    """Front against a cost, mean and spread over seeds otherwise; markers tell all on hovering."""
    rows = one.front if against_cost else np.arange(len(one.x))
    shared = {"legendgroup": one.method, "showlegend": False}
    silent = {**shared, "mode": "lines", "hoverinfo": "skip"}
    line = go.Scatter(
        x=one.x[rows],
        y=one.y[rows],
        line={
            "color": one.color,
            "width": 2,
            "shape": "hv" if against_cost else "linear",
            "dash": one.dash[1],
        },
        name=html.escape(one.label),
        **{**silent, "showlegend": bool(one.category)},
    )
    band = go.Scatter(
        x=np.concatenate((one.x, one.x[::-1])),
        y=np.concatenate((one.y - one.sd, (one.y + one.sd)[::-1])),
        fill="toself",
        fillcolor=one.color,
        opacity=0.15,
        line={"width": 0},
        **silent,
    )
    opacity = np.full(len(one.x), 0.3)
    opacity[rows] = 1.0
    markers = go.Scatter(
        x=one.x,
        y=one.y,
        mode="markers",
        marker={
            "color": one.color,
            "size": 6 if one.is_amortised else 9,
            "symbol": "circle" if one.is_amortised else "square",
            "opacity": opacity,
        },
        name=html.escape(one.label),
        text=[_hover(point, split) for point in one.points],
        hovertemplate="%{text}<extra></extra>",
        **{**shared, "showlegend": against_cost},
    )
    return [line, markers] if against_cost else [band, line, markers]


def _hover(point: Point, split: str) -> str:
    """What the page says about a point, one fact a line."""
    lines = [f"<b>{html.escape(point['method'])}</b>  {html.escape(_setting(point))}"]
    for family, where in (("metrics", split), ("test_metrics", "test")):
        for name, value in point[family].items():
            spread = point["seed_sd"].get(name) if family == "metrics" else None
            text = f"{_name(name)} on {where}: {value:.4f}"
            lines.append(html.escape(text + (f" ± {spread:.4f}" if spread is not None else "")))
    for name, value in point["costs"].items():
        if name in _COSTS:
            divisor, prefix = _si_prefix(value)
            label, unit, _ = _COSTS[name]
            lines.append(f"{label}: {value / divisor:.4g} {prefix}{unit}")
    num_seeds = point["num_seeds"]
    return "<br>".join([*lines, f"mean of {num_seeds} seed{'' if num_seeds == 1 else 's'}"])
