"""The static figures of an exploration, by matplotlib.

Pure functions of the points of `explorer.series`; nothing here writes but `save_png`. All points of
one figure are means over rows of the one `split` that its axis names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from explorer.series import (
    PALETTE,
    Array,
    Axis,
    Point,
    Series,
    colors_of,
    conditioning_axis,
    cost_axis,
    cost_words,
    limits_of,
    metric_axis,
    name_of,
    series_of,
    setting_of,
)

_GREY = "#555555"
MAX_BESIDE = 46  # letters of a legend entry that has another beside it

Image: TypeAlias = NDArray[np.float32]


def metric_against_conditioning(
    points: Sequence[Point],
    *,
    metric: str = "dice",
    conditioning: str = "phi",
    split: str,
    main: str,
) -> Figure:
    """A metric as a function of one conditioning: mean and standard deviation over seeds.

    Where there are several conditionings, of the points at one value the best is drawn.

    Args:
        points: of one or several methods, in any order; those without the metric are left out.
        metric: a metric, or one label of it (`dice/nucleus`).
        conditioning: a numeric conditioning.
        split: the split that the points were measured on; it is named on the axis.
        main: the exploration's own method; it comes first in colours and legend.
    """
    x_axis, y_axis = conditioning_axis(conditioning), metric_axis(metric, split)
    series = series_of(points, x_axis=x_axis, y_axis=y_axis, main=main)
    figure, axes = _figure()
    of_all = len(series[0].x)
    series = [_best_at_each_x(one) for one in series]
    if len(series[0].x) < of_all:
        x_axis = replace(x_axis, label=f"{x_axis.label}, the other conditionings at their best")
    for one in series:
        if one.is_amortised:
            axes.plot(one.x, one.y, color=one.color, linewidth=1.8, linestyle=one.dash[0])
            axes.fill_between(
                one.x, one.y - one.sd, one.y + one.sd, color=one.color, alpha=0.18, linewidth=0
            )
        else:
            _draw_errorbars(axes, one, np.arange(len(one.x)), linewidth=0.8)
    handles = [_mark_best(axes, series, main=main)]
    _finish(figure, axes, series, x_axis=x_axis, y_axis=y_axis, handles=handles)
    return figure


def _best_at_each_x(one: Series) -> Series:
    order = np.lexsort((-one.choice, one.x))
    kept = order[np.diff(one.x[order], prepend=-np.inf) > 0]
    points = tuple(one.points[row] for row in kept)
    values = {name: getattr(one, name)[kept] for name in ("x", "y", "choice", "sd")}
    return replace(one, points=points, **values)


def metric_map(
    points: Sequence[Point],
    *,
    metric: str = "dice",
    conditionings: tuple[str, str],
    split: str,
    main: str,
) -> Figure:
    """A metric over two conditionings: the map of `main`, and what other methods have on it.

    Circles are points of the other methods in the colours of the map; a star marks the best point
    of `main`, a square the best of the others. Arguments are those of
    `metric_against_conditioning`, and `conditionings`: along x and along y.

    Source of the form: Hoopes et al., "HyperMorph", figure 4.
    """
    x_axis, y_axis = (conditioning_axis(name) for name in conditionings)
    z_axis = metric_axis(metric, split)
    figure, axes = _figure()
    series = series_of(points, x_axis=x_axis, y_axis=z_axis, main=main)
    low, high = limits_of(series)
    norm, cmap = Normalize(low, max(high, low + 1e-6)), "viridis"
    for one in series:
        x, y, is_main = one.x, y_axis.values(one.points), one.method == main
        if is_main and np.linalg.matrix_rank(np.stack([x - x[0], y - y[0]])) == 2:
            levels = np.linspace(low, max(high, low + 1e-6), 17)
            axes.tricontourf(x, y, one.y, levels=levels, extend="both", cmap=cmap, norm=norm)
        else:
            size = 25 if is_main else 60
            axes.scatter(x, y, c=one.y, s=size, edgecolors="white", zorder=5, cmap=cmap, norm=norm)
        axes.plot(
            x[one.best],
            y[one.best],
            "*" if is_main else "s",
            color=_GREY if is_main else "none",
            markeredgecolor="white",
            markersize=16 if is_main else 13,
            markeredgewidth=1 if is_main else 2,
            zorder=6,
        )
    figure.colorbar(ScalarMappable(norm, cmap), ax=axes, label=z_axis.label)
    axes.set_xlabel(x_axis.label)
    axes.set_ylabel(y_axis.label)
    others = [one.label for one in series if one.method != main]
    handles = [_legend_mark("*", f"best of {series[0].label}", size=9)]
    handles += [_legend_mark("o", f"{label}; square: its best", size=7) for label in others]
    draw_legend(figure, handles)
    return figure


def registration_panels(
    moving: Image, fixed: Image, rows: Sequence[tuple[str, Image, Image]], *, title: str
) -> Figure:
    """What a registration does to one pair: images, and the grid that the field draws.

    Args:
        moving: (H, W) intensities in [-1, 1].
        fixed: (H, W).
        rows: per setting its name, the moved image (H, W), and the displacement (2, H, W) in
            pixels at which the moving image is read.
        title: names the pair.
    """
    figure = Figure(figsize=(8, 1.65 * len(rows) + 0.6), layout="constrained")
    panels = figure.subplots(len(rows), 5, squeeze=False)
    lattice = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"))
    step = max(2, min(fixed.shape) // 20)
    for number, (name, moved, displacement) in enumerate(rows):
        y, x = lattice + displacement
        images = (moving, moved, fixed, np.abs(moved - fixed))
        names = ("moving", "moved", "fixed", "difference", "where it is read")
        for panel, image in zip(panels[number], images, strict=False):
            is_difference = image is images[3]
            low, cmap = (0, "magma") if is_difference else (-1, "gray")
            panel.imshow(image, cmap=cmap, vmin=low, vmax=1)
        grid = panels[number][4]
        grid.plot(x[::step].T, y[::step].T, color=_GREY, linewidth=0.6)
        grid.plot(x[:, ::step], y[:, ::step], color=_GREY, linewidth=0.6)
        grid.set_xlim(0, fixed.shape[1] - 1)
        grid.set_ylim(fixed.shape[0] - 1, 0)
        grid.set_aspect("equal")
        for panel, words in zip(panels[number], names, strict=True):
            panel.set_xticks([])
            panel.set_yticks([])
            if number == 0:
                panel.set_title(words, fontsize=9)
        panels[number][0].set_ylabel(name, fontsize=9)
    figure.suptitle(title, fontsize=9)
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
    x_axis, y_axis = cost_axis(points, cost, split), metric_axis(metric, split)
    series = series_of(points, x_axis=x_axis, y_axis=y_axis, main=main)
    figure, axes = _figure()
    # room for the names of the settings beside the cheapest points
    axes.margins(x=min(max(0.1, 0.014 * max(len(setting_of(p)) for p in points)), 0.3))
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
    for method, color in colors_of(histories, main).items():
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
    draw_legend(figure, handles)
    return figure


def training_cost_bars(costs: Mapping[str, float], *, main: str) -> Figure:
    """Training seconds of each method (all seeds and grid values together) as bars."""
    figure, axes = _figure(height=1.2 + 0.4 * len(costs))
    colors = colors_of(costs, main)
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
    colors = colors_of(methods.values(), main)
    losses = _draw_histories(left, histories, "train_loss", colors=colors, methods=methods)
    _draw_histories(right, histories, metric, colors=colors, methods=methods)
    if losses and min(losses) > 0:
        left.set_yscale("log")
    left.set_ylabel("Training loss")
    right.set_ylabel(metric_axis(metric, "val").label)
    num_trials = Counter(methods[trial_id] for trial_id in histories)
    handles = [
        Line2D([], [], color=color, label=f"{name} ({num_trials[name]} trained)")
        for name, color in colors.items()
    ]
    draw_legend(figure, handles)
    return figure


def optima(
    results: Sequence[Mapping[str, Any]], ranges: Mapping[str, tuple[float, float]]
) -> Figure:
    """The best setting of every group as a dot, sorted, and that of all samples as a line.

    Source: Hoopes et al., "HyperMorph", arXiv:2101.01035, figure 7.

    Args:
        results: what `explorer optimize` finds: all samples first, then the groups. Groups without
            a setting are left out.
        ranges: of the numeric conditionings that were searched, each drawn on an axis of its own;
            groups are sorted by the first.

    Raises:
        ValueError: no group has a setting.
    """
    everything, *groups = results
    names = list(ranges)
    rows = [one for one in groups if one["conditioning"]]
    if not rows:
        raise ValueError("expected a group with a setting, got none")
    rows.sort(key=lambda one: one["conditioning"][names[0]])
    figure = Figure(figsize=(1.5 + 4.5 * len(names), 1.4 + 0.28 * len(rows)), layout="constrained")
    for axes, name in zip(
        np.ravel(figure.subplots(1, len(names), sharey=True)), names, strict=True
    ):
        decorate(axes)
        axes.grid(visible=False, axis="x")
        low, high = ranges[name]
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        if everything["conditioning"]:
            best = everything["conditioning"][name]
            axes.axvline(best, color=_GREY, linestyle="--", linewidth=1.2)
        places = [one["conditioning"][name] for one in rows]
        axes.plot(places, range(len(rows)), "o", color=PALETTE[0], markersize=6)
        axes.set_xlabel(f"Best {conditioning_axis(name).label} on val")
    figure.axes[0].set_yticks(range(len(rows)), [one["group"] for one in rows])
    counts = sorted({one["num_pairs"] for one in rows})
    spread = "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    dots = Line2D([], [], color=PALETTE[0], linestyle="", marker="o")
    dots.set_label(f"by {rows[0]['by']} ({spread} samples each)")
    line = Line2D([], [], color=_GREY, linestyle="--", linewidth=1.2)
    line.set_label(f"all together ({everything['num_pairs']} samples)")
    draw_legend(figure, [dots, line])
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure at 150 dots per inch."""
    figure.savefig(path, dpi=150, format="png")


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
    decorate(axes)
    axes.set_xlabel("Epoch")
    return drawn


def _focus(axes: Axes, series: Sequence[Series]) -> list[Line2D]:
    """Set the range of y; mark what lies below it, and return the legend entry that says so."""
    low, high = limits_of(series)
    axes.set_ylim(low, high)
    lowest = min(float(one.y.min()) for one in series)
    if lowest >= low:
        return []
    for one in series:
        x = one.x[one.y < low]
        if x.size:  # an empty line would widen the picture
            axes.plot(
                x, np.full_like(x, low), "v", color=one.color, markersize=5, clip_on=False, zorder=5
            )
    return [_legend_mark("v", f"below the axis, down to {lowest:.3g}", size=5)]


def _figure(*, height: float = 4.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, height), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    return figure, axes


def decorate(axes: Axes) -> None:
    """The look of all axes: two spines and a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


def draw_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend below the axes."""
    labels = [
        handle[0].get_label() if isinstance(handle, tuple) else handle.get_label()
        for handle in handles
    ]
    is_wide = max((len(str(label)) for label in labels), default=0) > MAX_BESIDE
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=1 if is_wide else 2,
        fontsize=8.5,
        frameon=False,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )


def _finish(
    figure: Figure,
    axes: Axes,
    series: Sequence[Series],
    *,
    x_axis: Axis,
    y_axis: Axis,
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
    draw_legend(figure, [*lines, *handles, *_focus(axes, series)])


def _draw_errorbars(axes: Axes, one: Series, rows: NDArray[np.intp], *, linewidth: float) -> None:
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
    x_axis: Axis,
    y_axis: Axis,
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


def _steps(surface: Mapping[str, Sequence[float]], x: Array, x_axis: Axis, y_axis: Axis) -> Array:
    """The best metric of a surface at each cost or less; NaN below its cheapest point."""
    costs = np.asarray(surface[x_axis.name]) / x_axis.divisor
    order = np.argsort(costs)
    best = np.maximum.accumulate(np.asarray(surface[y_axis.name])[order])
    last = np.searchsorted(costs[order], x, side="right") - 1
    return np.where(last >= 0, best[np.maximum(last, 0)], np.nan)


def _draw_front(axes: Axes, one: Series, *, is_main: bool, has_band: bool) -> None:
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


def _name_settings(axes: Axes, one: Series, rows: NDArray[np.intp]) -> None:
    """Write the setting beside a few points of a front, evenly spread over its rows."""
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, 5).round().astype(int))]:
        axes.plot(one.x[row], one.y[row], "o", color=one.color, markersize=4)
        axes.annotate(
            setting_of(one.points[row]),
            (one.x[row], one.y[row]),
            xytext=(-5, 6),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=one.color,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=8,
        )


def _mark_best(axes: Axes, series: Sequence[Series], *, main: str) -> tuple[Line2D, ...]:
    """Star the best point of `main` and square those of the others; the legend entry for both."""
    marks = {}
    for method in dict.fromkeys(one.method for one in series):
        own = [one for one in series if one.method == method]
        one = max(own, key=lambda one: float(one.choice[one.best]))
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
    axes: Axes, series: Sequence[Series], *, metric: str, cost: str, main: str
) -> list[Line2D]:
    """Mark the cheapest point of `main` as good as the best of all others; its legend entry."""
    ours = next((one for one in series if one.method == main), None)
    others = [one for one in series if one is not ours]
    if ours is None or not others:
        return []
    rival = max(others, key=lambda one: float(one.choice.max()))
    enough = np.flatnonzero(ours.choice >= rival.choice[rival.best])
    if not enough.size or not rival.x[rival.best]:
        return []
    row = enough[np.argmin(ours.x[enough])]
    saving = 100 * (1 - ours.x[row] / rival.x[rival.best])
    axes.plot(
        ours.x[row], ours.y[row], "D", color=ours.color, markeredgecolor="white", ms=7, zorder=7
    )
    than = f"{abs(saving):.0f} % {'fewer' if saving >= 0 else 'more'}"
    where = " on validation" * ("validation_metrics" in ours.points[0])
    text = f"same {name_of(metric)}{where} as the best {rival.method}, {than} {cost_words(cost)[2]}"
    return [_legend_mark("D", text, size=5)]


def _legend_mark(marker: str, label: str, *, size: float) -> Line2D:
    return Line2D([], [], color=_GREY, linestyle="", marker=marker, markersize=size, label=label)
