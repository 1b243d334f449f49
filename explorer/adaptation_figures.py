"""The figures of an adaptation, by matplotlib: pure functions of `explorer.adaptations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from explorer.adaptations import Row
from explorer.figures import decorate, draw_legend
from explorer.points import Point
from explorer.series import colors_of, name_of
from trainables.networks.residual_unet import ResidualUNet

Floats = NDArray[np.float64]
Amount = int | None
Priced = Mapping[tuple[Amount, str], Sequence[Point]]
_GREY = "#555555"
_MARKERS = "sov^D"


def in_words(amount: Amount) -> str:
    """An amount of annotated images."""
    return "all images" if not amount else f"{amount} images"


def violins(
    values: Mapping[tuple[Amount, str], Floats], *, metric: str, main: str, needs_none: set[str]
) -> Figure:
    """A metric of the test images as violins with their means, by amount and method.

    Args:
        values: (i,) of every amount and method.
        metric: name of the values.
        main: the exploration's own method.
        needs_none: methods that train on no annotated image: the dashed lines are their means.

    Source of the form: Zakazov et al., figure 3.
    """
    amounts = list(dict.fromkeys(amount for amount, _ in values))
    colors = colors_of((method for _, method in values), main)
    methods = [method for method in colors if method not in needs_none]
    figure = Figure(figsize=(2 + 2.2 * len(amounts), 4.8), layout="constrained")
    axes = figure.subplots()
    decorate(axes)
    width = 0.8 / max(1, len(methods))
    for number, amount in enumerate(amounts):
        for k, method in enumerate(methods):
            if (amount, method) in values:
                x = number + (k - (len(methods) - 1) / 2) * width
                _violin(axes, values[amount, method], x, width=width, color=colors[method])
    handles: list[Artist] = [Patch(color=colors[m], alpha=0.6, label=m) for m in methods]
    for method in sorted(needs_none & colors.keys()):
        mean = float(values[amounts[0], method].mean())
        axes.axhline(mean, color=colors[method], linestyle="--", linewidth=1.1, zorder=1)
        label = f"{method}: {mean:.3f}"
        handles.append(Line2D([], [], color=colors[method], linestyle="--", label=label))
    axes.set_xticks(range(len(amounts)), [in_words(amount) for amount in amounts])
    axes.set_ylabel(f"{name_of(metric)} of test images; bar: mean")
    axes.set_xlabel("Annotated images of the target domain")
    draw_legend(figure, handles)
    return figure


def _violin(axes: Axes, values: Floats, x: float, *, width: float, color: str) -> None:
    if np.ptp(values) > 0:
        parts = axes.violinplot([values], positions=[x], widths=0.9 * width, showextrema=False)
        for body in parts["bodies"]:  # type: ignore[attr-defined]  # matplotlib's annotation
            body.set_facecolor(color)
            body.set_alpha(0.6)
    half = 0.4 * width
    mean = values.mean()
    axes.plot([x - half, x + half], [mean, mean], color=color, linewidth=2.5, zorder=4)


def against_price(priced: Priced, *, metric: str, main: str) -> Figure:
    """A metric and the fine-tuned blocks against lambda, a column per amount; stars: the best.

    Source of the form: Zakazov et al., figure 2.
    """
    amounts = list(dict.fromkeys(amount for amount, _ in priced))
    colors = colors_of((method for _, method in priced), main)
    figure = Figure(figsize=(1 + 3.4 * len(amounts), 5.4), layout="constrained")
    panels = figure.subplots(2, len(amounts), squeeze=False, sharex=True, sharey="row")
    for column, amount in enumerate(amounts):
        for row, name in enumerate((metric, "fine_tuned_blocks")):
            axes = panels[row][column]
            decorate(axes)
            for method, color in colors.items():
                points = priced.get((amount, method))
                if points:
                    _line(axes, points, name, color=color, is_main=method == main, by=metric)
            axes.set_xscale("symlog", linthresh=1e-3, linscale=0.5)
        panels[0][column].set_title(in_words(amount), fontsize=10)
        panels[1][column].set_xlabel("λ")
    panels[0][0].set_ylabel(f"{name_of(metric)} on val")
    panels[1][0].set_ylabel(f"{name_of('fine_tuned_blocks')} on val")
    handles = _method_handles(colors, main)
    handles.append(Line2D([], [], color=_GREY, marker="*", linestyle="", label="best λ"))
    draw_legend(figure, handles)
    return figure


def _line(
    axes: Axes, points: Sequence[Point], name: str, *, color: str, is_main: bool, by: str
) -> None:
    x = np.array([float(point.conditioning["lambda"]) for point in points])
    y = np.array([point.metrics[name] for point in points])
    sd = np.array([point.seed_sd.get(name, 0.0) for point in points])
    if is_main:
        axes.plot(x, y, color=color, linewidth=1.8)
        axes.fill_between(x, y - sd, y + sd, color=color, alpha=0.18, linewidth=0)
    else:
        axes.errorbar(x, y, sd, color=color, fmt="s", markersize=4, linewidth=0.8)
    best = int(np.argmax([point.metrics[by] for point in points]))
    axes.plot(x[best], y[best], "*", color=color, markersize=14, markeredgecolor="white", zorder=5)


def _method_handles(colors: Mapping[str, str], main: str) -> list[Line2D]:
    return [
        Line2D([], [], color=color, linewidth=1.8, label=f"{method}, every λ from one training")
        if method == main
        else Line2D(
            [], [], color=color, marker="s", linestyle="", label=f"{method}, a training each"
        )
        for method, color in colors.items()
    ]


def against_blocks(priced: Priced, *, metric: str, main: str) -> Figure:
    """A metric against the fine-tuned blocks on val: one training and the grid, overlaid."""
    amounts = list(dict.fromkeys(amount for amount, _ in priced))
    colors = colors_of((method for _, method in priced), main)
    figure = Figure(figsize=(1 + 3.4 * len(amounts), 3.8), layout="constrained")
    panels = figure.subplots(1, len(amounts), squeeze=False, sharey=True)[0]
    for axes, amount in zip(panels, amounts, strict=True):
        decorate(axes)
        for method, color in colors.items():
            points = priced.get((amount, method), ())
            x = [point.metrics["fine_tuned_blocks"] for point in points]
            y = [point.metrics[metric] for point in points]
            is_main = method == main
            axes.plot(x, y, "." if is_main else "s", color=color, markersize=5, zorder=4)
            if is_main:
                axes.plot(x, y, color=color, linewidth=1, alpha=0.6)
                continue
            for a, b, point in zip(x, y, points, strict=True):
                text = f"λ {float(point.conditioning['lambda']):g}"
                axes.annotate(text, (a, b), (4, 3), textcoords="offset points", fontsize=6.5)
        axes.set_title(in_words(amount), fontsize=10)
        axes.set_xlabel(name_of("fine_tuned_blocks"))
    panels[0].set_ylabel(f"{name_of(metric)} on val")
    draw_legend(figure, _method_handles(colors, main))
    return figure


def on_network(rows: Sequence[Row], network: ResidualUNet) -> Figure:
    """How often each block is fine-tuned, drawn on the U-Net, one below the other by amount.

    Source of the form: Zakazov et al., figure 4.
    """
    amounts = list(dict.fromkeys(row["amount"] for row in rows))
    figure = Figure(figsize=(9, 0.6 + 2.3 * len(amounts)), layout="constrained")
    panels = figure.subplots(len(amounts), 1, squeeze=False)[:, 0]
    norm, cmap = Normalize(0, 1), "viridis"
    scale = ScalarMappable(norm, cmap)
    path = [name for name in network.blocks if not name.startswith("shortcut")]
    places = {name: (float(k), -float(network.level(name))) for k, name in enumerate(path)}
    middle = (len(path) - 1) / 2
    for axes, amount in zip(panels, amounts, strict=True):
        shares = {row["block"]: row["share"] for row in rows if row["amount"] == amount}
        steps = [places[name] for name in path]
        axes.plot([x for x, _ in steps], [y for _, y in steps], color="#bbbbbb", zorder=1)
        for name, share in shares.items():
            x, y = places.get(name, (middle, -float(network.level(name))))
            if name not in places:
                ends = [x for x, at in steps if at == y]
                axes.plot([min(ends), max(ends)], [y, y], color="#bbbbbb", linestyle=":", zorder=1)
            red, green, blue, _ = scale.to_rgba(share)
            box = Rectangle((x - 0.44, y - 0.3), 0.88, 0.6, facecolor=(red, green, blue), zorder=2)
            axes.add_patch(box)
            is_dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            text = f"{100 * share:.0f}"
            color = "white" if is_dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color, zorder=3)
        axes.set_xlim(-0.8, len(path) - 0.2)
        axes.set_ylim(-network.num_levels - 0.5, 0.6)
        axes.set_xticks([])
        axes.set_yticks(
            [-float(k) for k in range(network.num_levels + 1)],
            [f"1/{2**k}" if k else "full" for k in range(network.num_levels + 1)],
            fontsize=8,
        )
        axes.spines[:].set_visible(False)
        axes.set_ylabel(in_words(amount), fontsize=9)
    title = "Images for which a block is fine-tuned (%); on dotted lines the shortcuts"
    panels[0].set_title(title, fontsize=10)
    figure.colorbar(scale, ax=list(panels), label="Share of test images", shrink=0.8)
    return figure
