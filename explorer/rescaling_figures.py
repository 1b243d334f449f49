"""The figures of networks over rescaling factors, by matplotlib: pure functions of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from explorer.figures import decorate, draw_legend
from explorer.series import PALETTE, colors_of, cost_axis, name_of

Floats: TypeAlias = NDArray[np.float64]
Row: TypeAlias = Mapping[str, Any]
_GREY = "#555555"
_MASKED = "#c8c8c8"
_DASHES: dict[str, Literal[":", "-"]] = {"train": ":", "test": "-", "": "-"}


def structure_dots(rows: Sequence[Row], *, metric: str, conditioning: str) -> Figure:
    """Quality of every structure at several settings, the largest structure first.

    Args:
        rows: `structure`, `volume_share`, `method`, the conditioning, the metric and its `sd`.
        metric: name of the values.
        conditioning: name of what differs beside the method.
    """
    structures = {row["structure"]: row["volume_share"] for row in rows}
    names = list(dict.fromkeys((row["method"], row[conditioning]) for row in rows))
    figure = Figure(figsize=(2.5 + 0.62 * len(structures), 4.6), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    positions = {name: k for k, name in enumerate(structures)}
    handles = []
    for k, (method, at) in enumerate(names):
        own = [row for row in rows if (row["method"], row[conditioning]) == (method, at)]
        offset = 0.6 * (k / max(1, len(names) - 1) - 0.5)
        x = [positions[row["structure"]] + offset for row in own]
        color, marker = PALETTE[k % len(PALETTE)], "s" if k == 0 else "o"
        label = f"{method}, {conditioning} = {at:g}"
        axes.errorbar(
            x,
            [row[metric] for row in own],
            [row["sd"] or 0.0 for row in own],
            fmt=marker,
            color=color,
            markersize=5,
            linewidth=1,
        )
        handles.append(Line2D([], [], color=color, marker=marker, linestyle="", label=label))
    ticks = [f"{name}\n({100 * share:.1f} %)" for name, share in structures.items()]
    rotation = 60 if len(structures) > 4 else 0
    axes.set_xticks(list(positions.values()), ticks, rotation=rotation, fontsize=8)
    axes.set_ylabel(f"{name_of(metric)} on test")
    draw_legend(figure, handles)
    return figure


def lines_with_spread(
    lines: Sequence[tuple[str, str, Sequence[tuple[float, float, float | None]]]],
    levels: Sequence[tuple[str, str, float]],
    *,
    x_label: str,
    metric: str,
    main: str,
    split: str = "test",
    is_even: bool = False,
) -> Figure:
    """Quality of methods against a number, with bands of one standard deviation over seeds.

    Args:
        lines: method, split (`train`, `test`, or nothing) and (x, value, spread).
        levels: method, split and value of what does not depend on the number.
        x_label: what the number is.
        metric: name of the values.
        main: the exploration's own method.
        split: of lines that do not name one.
        is_even: the numbers are set side by side, however far they are from each other.
    """
    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    ticks = sorted({point[0] for *_, points in lines for point in points}) if is_even else []
    if is_even:
        lines = [
            (method, own_split, [(float(ticks.index(x)), y, sd) for x, y, sd in points])
            for method, own_split, points in lines
        ]
        axes.set_xticks(range(len(ticks)), [f"{x:g}" for x in ticks])
    colors = colors_of([name for name, *_ in [*lines, *levels]], main)
    handles = []
    for method, own_split, points in lines:
        x, y, sd = (np.array([p[k] or 0.0 for p in points], dtype=np.float64) for k in range(3))
        order = np.argsort(x)
        color, dash = colors[method], _DASHES[own_split]
        axes.plot(x[order], y[order], dash, color=color, marker=".", linewidth=1.6)
        low, high = (y - sd)[order], (y + sd)[order]
        axes.fill_between(x[order], low, high, color=color, alpha=0.15, linewidth=0)
        label = f"{method}, {own_split}" if own_split else method
        handles.append(Line2D([], [], color=color, linestyle=dash, marker=".", label=label))
    for method, own_split, value in levels:
        color, dash = colors[method], _DASHES[own_split]
        axes.axhline(value, color=color, linestyle=dash, linewidth=1)
        handles.append(
            Line2D([], [], color=color, linestyle=dash, linewidth=1, label=f"{method}, {own_split}")
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(name_of(metric) + (f" on {split}" if all(not s for _, s, _ in lines) else ""))
    draw_legend(figure, handles)
    return figure


def spreads_by_layer(values: Mapping[str, Floats]) -> Figure:
    """A box for each layer: median, half of the numbers, and nine tenths of them."""
    figure = Figure(figsize=(2 + 0.42 * len(values), 4.4), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    axes.boxplot(
        list(values.values()),
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": PALETTE[0], "alpha": 0.35, "linewidth": 0.8},
        medianprops={"color": PALETTE[0], "linewidth": 1.6},
    )
    if any((own > 0).any() for own in values.values()):
        axes.set_yscale("log")
    axes.set_xticks(range(1, len(values) + 1), list(values), rotation=70, fontsize=8)
    axes.set_ylabel("Coefficient of variation\nof predicted weights (σ / |μ|)")
    return figure


def kernel_maps(pictures: Mapping[str, Sequence[tuple[str, NDArray[Any]]]], *, ends: str) -> Figure:
    """Numbers of predicted kernels (rows of a picture) against the setting (its columns).

    Args:
        pictures: of each layer, name and (numbers, settings) of some kernels.
        ends: what the columns go through, in words.
    """
    most = max(len(own) for own in pictures.values())
    size = (1.3 + 1.25 * most, 0.7 + 1.05 * len(pictures))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(pictures), most, squeeze=False)
    for row, (layer, own) in zip(grid, pictures.items(), strict=True):
        limit = max(float(np.abs(kernel).max()) for _, kernel in own) or 1.0
        for axes in row:
            axes.set_axis_off()
        for axes, (name, kernel) in zip(row, own, strict=False):
            axes.set_axis_on()
            axes.imshow(
                kernel, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="none"
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name, fontsize=7, pad=2)
        row[0].set_ylabel(layer.removesuffix(".weight"), fontsize=7)
    figure.supxlabel(ends, fontsize=8)
    return figure


def picture_grid(pictures: Mapping[str, Mapping[str, NDArray[Any]]]) -> Figure:
    """Features (H, W) of layers (rows) at settings (columns), each stretched to its own range."""
    columns = list(next(iter(pictures.values())))
    size = (1.1 + 1.15 * len(columns), 0.4 + 1.15 * len(pictures))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(pictures), len(columns), squeeze=False)
    for number, (row, (layer, own)) in enumerate(zip(grid, pictures.items(), strict=True)):
        for axes, (name, features) in zip(row, own.items(), strict=True):
            axes.imshow(features, cmap="viridis", interpolation="nearest", aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            if number == 0:
                axes.set_title(name, fontsize=8, pad=3)
        row[0].set_ylabel(layer, fontsize=8)
    return figure


def factor_maps(
    factors: Floats,
    values: Floats,
    *,
    names: Sequence[str],
    metric: str,
    floor: float,
    star: Sequence[float],
) -> Figure:
    """Quality over the first two factors, a map for each value of the third; a grid of settings.

    Means over further factors. What is below the floor is grey; settings of equal factors have a
    white frame, a chosen one a star.

    Args:
        factors: (n, k).
        values: (n,).
        names: (k,).
        metric: name of the values.
        floor: below it nothing is told apart.
        star: (k,) factors of the one that was chosen.
    """
    third = factors[:, 2] if factors.shape[1] > 2 else np.zeros(len(factors))
    panels = np.unique(third)
    x, y = np.unique(factors[:, 1]), np.unique(factors[:, 0])
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)
    size = (1.2 + 2.3 * num_columns, 0.6 + 2.2 * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    best = int(np.abs(factors - np.array(star)).sum(axis=1).argmin())
    picture = None
    for k, axes in enumerate(grid.ravel()):
        if k >= len(panels):
            axes.set_axis_off()
            continue
        own = third == panels[k]
        image = np.full((len(y), len(x)), np.nan)
        for i, a in enumerate(y):
            for j, b in enumerate(x):
                there = own & (factors[:, 0] == a) & (factors[:, 1] == b)
                if there.any():
                    image[i, j] = values[there].mean()
        shown = np.ma.masked_less(np.ma.masked_invalid(image), floor)
        axes.set_facecolor(_MASKED)
        picture = axes.imshow(
            shown, origin="lower", cmap="viridis", vmin=floor, vmax=float(values.max())
        )
        for row in np.flatnonzero(own & (np.ptp(factors, axis=1) == 0)):
            place = np.searchsorted(x, factors[row, 1]), np.searchsorted(y, factors[row, 0])
            axes.plot(*place, "s", mfc="none", mec="white", markersize=7, mew=1.4)
        if own[best]:
            place = np.searchsorted(x, factors[best, 1]), np.searchsorted(y, factors[best, 0])
            axes.plot(*place, "*", color="#d62728", markersize=10, mec="white")
        steps = slice(None, None, max(1, len(x) // 5))
        axes.set_xticks(np.arange(len(x))[steps], [f"{v:.2g}" for v in x[steps]], fontsize=7)
        axes.set_yticks(np.arange(len(y))[steps], [f"{v:.2g}" for v in y[steps]], fontsize=7)
        if factors.shape[1] > 2:
            axes.set_title(f"{names[2]} = {panels[k]:.2g}", fontsize=8, pad=3)
        axes.set_xlabel(names[1], fontsize=8)
        axes.set_ylabel(names[0], fontsize=8)
    assert picture is not None
    bar = figure.colorbar(picture, ax=grid, shrink=0.8, label=f"{name_of(metric)} on test")
    bar.ax.tick_params(labelsize=8)
    return figure


def factor_fronts(
    points: Mapping[str, Sequence[Row]],
    fronts: Mapping[str, Sequence[Row]],
    *,
    metric: str,
    cost: str,
) -> Figure:
    """Quality on test against a cost: every setting as a dot, fronts as lines.

    Args:
        points: of each series, as the JSON of points.
        fronts: of each, those that no cheaper one equals on validation, by rising cost.
        metric: name of the quality.
        cost: name of the cost.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    x_axis = cost_axis([point for own in points.values() for point in own], cost, "test")
    handles, lows, highs = [], [], []
    for k, (name, own) in enumerate(points.items()):
        color = PALETTE[k % len(PALETTE)]
        values = np.array([point["test_metrics"][metric] for point in own])
        axes.plot(x_axis.values(own), values, ".", color=color, alpha=0.25, markersize=3, zorder=2)
        best = [point["test_metrics"][metric] for point in fronts[name]]
        axes.plot(x_axis.values(fronts[name]), best, ".-", color=color, linewidth=1.8, zorder=4)
        handles.append(Line2D([], [], color=color, marker=".", label=name))
        lows.append(float(np.quantile(values, 0.25)))
        highs.append(float(values.max()))
    axes.set_ylim(min(lows) - 0.02, max(highs) + 0.01)
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 1)))  # 40, not 4 x 10^1
    axes.set_xlabel(x_axis.label)
    axes.set_ylabel(f"{name_of(metric)} on test")
    handles.append(
        Line2D([], [], color=_GREY, marker=".", linestyle="", alpha=0.4, label="single settings")
    )
    draw_legend(figure, handles)
    return figure
