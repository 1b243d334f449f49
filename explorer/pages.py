"""The interactive front of an exploration: one self-contained plotly page.

Pure functions of the points of `explorer.series`; nothing here writes but `write_html`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

from explorer.series import (
    COSTS,
    Point,
    Series,
    conditioning_axis,
    cost_axis,
    limits_of,
    metric_axis,
    name_of,
    series_of,
    setting_of,
    si_prefix,
)

pio.json.config.default_engine = "json"  # not orjson where it is installed: one page everywhere


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
    y_axis = metric_axis(metric, split)
    x_axes = [cost_axis(points, cost, split)]
    if conditioning is not None:
        x_axes.append(conditioning_axis(conditioning))
    figure = make_subplots(rows=1, cols=len(x_axes), shared_yaxes=True, horizontal_spacing=0.04)
    for column, x_axis in enumerate(x_axes, start=1):
        series = series_of(points, x_axis=x_axis, y_axis=y_axis, main=main)
        for one in series:
            for trace in _traces(one, against_cost=x_axis.family != "conditioning", split=split):
                figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(title_text=x_axis.label, row=1, col=column)
    low, high = limits_of(series)
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


def write_html(page: str, path: Path) -> None:
    """Write a page as UTF-8."""
    path.write_text(page, encoding="utf-8")


def _traces(one: Series, *, against_cost: bool, split: str) -> list[go.Scatter]:
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
    lines = [f"<b>{html.escape(point['method'])}</b>  {html.escape(setting_of(point))}"]
    for family, where in (("metrics", split), ("test_metrics", "test")):
        for name, value in point[family].items():
            spread = point["seed_sd"].get(name) if family == "metrics" else None
            text = f"{name_of(name)} on {where}: {value:.4f}"
            lines.append(html.escape(text + (f" ± {spread:.4f}" if spread is not None else "")))
    for name, value in point["costs"].items():
        if name in COSTS:
            divisor, prefix = si_prefix(value)
            label, unit, _ = COSTS[name]
            lines.append(f"{label}: {value / divisor:.4g} {prefix}{unit}")
    num_seeds = point["num_seeds"]
    return "<br>".join([*lines, f"mean of {num_seeds} seed{'' if num_seeds == 1 else 's'}"])
