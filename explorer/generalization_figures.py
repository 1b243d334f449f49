"""The figures of a generalization, by matplotlib: pure functions of `explorer.generalizations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from explorer.figures import decorate, draw_legend
from explorer.series import PALETTE, colors_of, name_of

Floats = NDArray[np.float64]
Row = Mapping[str, Any]
_GREY = "#555555"


def bars(rows: Sequence[Row], *, metric: str, main: str, by: str) -> Figure:
    """A metric of every domain and of their mean: bars, with standard errors over seeds (dots).

    Args:
        rows: of `GeneralizationResults.domains_table`.
        metric: name of the values.
        main: the exploration's own method.
        by: name of the domain in a row.
    """
    domains = list(dict.fromkeys(row[by] for row in rows))
    colors = colors_of((row["method"] for row in rows), main)
    figure = Figure(figsize=(2 + 1.5 * len(domains), 4.4), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    width = 0.8 / len(colors)
    for k, (method, color) in enumerate(colors.items()):
        own = [row for row in rows if row["method"] == method]
        for row in own:
            x = domains.index(row[by]) + (k - (len(colors) - 1) / 2) * width
            axes.bar(x, row[metric], 0.9 * width, color=color, alpha=0.6)
            dots = list(row["seeds"].values())
            axes.plot([x] * len(dots), dots, ".", color=color, markersize=5)
            if row["error"] is not None:
                axes.errorbar(x, row[metric], row["error"], color=_GREY, linewidth=1.2)
    everything = [x for row in rows for x in row["seeds"].values()]
    low, high = min(everything), max(everything)
    axes.set_ylim(max(0.0, low - 0.25 * (high - low) - 1e-3), None)
    axes.set_xticks(range(len(domains)), domains)
    axes.set_xlabel("Domain held out" if by == "held_out" else "Domain")
    axes.set_ylabel(f"{name_of(metric)} on test")
    draw_legend(figure, [Patch(color=c, alpha=0.6, label=m) for m, c in colors.items()])
    return figure


def along_lines(rows: Sequence[Row], *, metric: str, by: str, read: Mapping[str, float]) -> Figure:
    """A metric on test along the lines between embeddings, a panel per domain.

    Args:
        rows: of `GeneralizationResults.interpolation`.
        metric: name of the values.
        by: name of the domain in a row.
        read: the metric of each domain where the embedding is read: dashed.
    """
    domains = list(dict.fromkeys(row[by] for row in rows))
    lines = list(dict.fromkeys(row["line"] for row in rows))
    colors = {line: PALETTE[k % len(PALETTE)] for k, line in enumerate(lines)}
    figure = Figure(figsize=(1 + 3.2 * len(domains), 5.2), layout="constrained")
    panels = figure.subplots(1, len(domains), squeeze=False, sharey=True)[0]
    for axes, domain in zip(panels, domains, strict=True):
        decorate(axes)
        for line, color in colors.items():
            own = sorted(
                (row for row in rows if row[by] == domain and row["line"] == line),
                key=lambda row: float(row["t"]),
            )
            if not own:
                continue
            x = np.array([row["t"] for row in own])
            y = np.array([row[metric] for row in own])
            errors = np.array([row["gain_error"] or 0.0 for row in own])
            ends = f"{own[0]['from']} → {own[0]['to']}"
            axes.plot(x, y, color=color, linewidth=1.6, label=ends)
            axes.fill_between(x, y - errors, y + errors, color=color, alpha=0.15, linewidth=0)
        axes.axhline(read[domain], color=_GREY, linestyle="--", linewidth=1.1)
        axes.set_title(f"{domain} held out" if by == "held_out" else domain, fontsize=10)
        axes.set_xlabel("t, share of the line")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, frameon=False)
    panels[0].set_ylabel(f"{name_of(metric)} on test")
    read_as = Line2D([], [], color=_GREY, linestyle="--", label="as the encoder reads it")
    draw_legend(figure, [read_as])
    return figure


def neighbours(places: Mapping[str, Floats], names: Mapping[str, NDArray[Any]]) -> Figure:
    """Domain features of images in two dimensions, a panel per domain held out.

    Args:
        places: (i, 2) by domain held out.
        names: (i,) domains of the same images.

    Source of the form: HyDA, figures 2 and 3.
    """
    everything = sorted({str(name) for own in names.values() for name in own})
    colors = {name: PALETTE[k % len(PALETTE)] for k, name in enumerate(everything)}
    figure = Figure(figsize=(1 + 3.0 * len(places), 3.8), layout="constrained")
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    for axes, (held_out, own) in zip(panels, places.items(), strict=True):
        decorate(axes)
        axes.set_xticks([])
        axes.set_yticks([])
        for name, color in colors.items():
            some = own[names[held_out] == name]
            is_new = name == held_out
            axes.plot(
                some[:, 0],
                some[:, 1],
                "x" if is_new else "o",
                color=color,
                markersize=5 if is_new else 3.5,
                alpha=0.9 if is_new else 0.5,
            )
        axes.set_title(f"{held_out} held out (×)", fontsize=10)
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="", label=name)
        for name, color in colors.items()
    ]
    draw_legend(figure, handles)
    return figure


def at_test_time(rows: Sequence[Row], *, metric: str, main: str) -> Figure:
    """A metric on test against the time per image, a point per method."""
    colors = colors_of((row["method"] for row in rows), main)
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    for row in rows:
        color = colors[row["method"]]
        axes.errorbar(
            row["latency_ms"], row[metric], row["error"], color=color, fmt="o", markersize=8
        )
    axes.set_xscale("log")
    axes.set_xlabel("Processor time per image, ms")
    axes.set_ylabel(f"{name_of(metric)} on test, mean over domains")
    handles = [
        Line2D([], [], color=color, marker="o", linestyle="", label=method)
        for method, color in colors.items()
    ]
    draw_legend(figure, handles)
    return figure


def against_parameters(rows: Sequence[Row], *, metric: str, main: str) -> Figure:
    """A metric on test against the number of parameters, a point per training setting, named.

    Args:
        rows: of `GeneralizationResults.parameters_table`.
        metric: name of the values.
        main: the exploration's own method.
    """
    colors = colors_of((row["method"] for row in rows), main)
    figure = Figure(figsize=(8.6, 1.4 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    names = []
    for place, row in enumerate(rows):
        color = colors[row["method"]]
        left.errorbar(row[metric], place, xerr=row["error"], color=color, fmt="o", markersize=6)
        left.plot(row["validation"], place, "|", color=color, markersize=12, markeredgewidth=2)
        right.barh(place, row["parameters"], 0.7, color=color, alpha=0.6)
        setting = row["setting"].items()
        values = ", ".join(f"{n} {x:g}" if isinstance(x, float) else str(x) for n, x in setting)
        names.append(f"{row['method']} {values}".rstrip())
    for axes in (left, right):
        decorate(axes)
    left.set_yticks(range(len(rows)), names)
    left.invert_yaxis()
    left.set_xlabel(f"{name_of(metric)}, mean over domains")
    right.set_xlabel("Parameters")
    test = Line2D([], [], color=_GREY, marker="o", linestyle="", label="test, domain held out")
    val = Line2D([], [], color=_GREY, marker="|", linestyle="", markersize=10, label="validation")
    draw_legend(figure, [test, val])
    return figure
