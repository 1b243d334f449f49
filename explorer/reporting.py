"""What an exploration shows in its folder: figures and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from explorer.comparisons import front_statistics, method_costs, method_tables
from explorer.figures import (
    hypervolume_growth,
    learning_curves,
    metric_against_conditioning,
    metric_against_cost,
    metric_map,
    optima,
    save_png,
    training_cost_bars,
)
from explorer.measurements import Columns
from explorer.pages import frontier_html, write_html
from explorer.places import Place, written_locally
from explorer.queries import PointTable
from explorer.training import TrialRecord
from search_spaces.errors import InputError, RunError, unknown_name
from search_spaces.problem import Objective


def plot_frontier(
    path: Place,
    columns: Columns,
    objectives: Sequence[Objective],
    *,
    main: str,
    split: str,
    title: str,
) -> None:
    """Draw the fronts of all methods on a split into a .html or .png file.

    Raises:
        InputError: another kind of file, or a split without measurements.
        RunError: the file cannot be written.
    """
    splits = sorted(set(columns["split"].tolist()))
    if split not in splits:
        raise unknown_name("split", split, splits)
    points = points_as_json(columns, split)
    quality, cost = objectives[0].name, objectives[-1].name
    if path.suffix == ".html":
        page = frontier_html(
            points,
            metric=quality,
            cost=cost,
            conditioning=next(iter(conditioning_names(columns, main)), None),
            split=split,
            main=main,
            title=f"{title}: {quality} against {cost}",
        )
        with _writing(path) as local:
            write_html(page, local)
    elif path.suffix == ".png":
        statistics = front_statistics(columns, method_tables(columns), objectives)
        save_figure(_fronts(points, statistics, objectives, main=main, split=split), path)
    else:
        raise InputError(f"--plot {path}: expected a file name ending in .html or .png")


def plot_optima(
    path: Place, results: Sequence[Mapping[str, Any]], ranges: Mapping[str, tuple[float, float]]
) -> None:
    """Draw the best settings of groups, as `explorer optimize` finds them, into a .png file.

    Raises:
        InputError: another kind of file, or there is nothing to draw.
        RunError: the file cannot be written.
    """
    if path.suffix != ".png":
        raise InputError(f"--plot {path}: expected a file name ending in .png")
    if not ranges or not any(one["by"] and one["conditioning"] for one in results):
        raise InputError(f"--plot {path}: no group has a setting in numbers to draw")
    with _writing(path) as local:
        save_png(optima(results, ranges), local)


@contextmanager
def _writing(path: Place) -> Iterator[Path]:
    try:
        with written_locally(path) as local:
            yield local
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def save_figure(figure: Figure, path: Place) -> None:
    """Write a figure as PNG.

    Raises:
        RunError: the file cannot be written.
    """
    with _writing(path) as local:
        save_png(figure, local)


def draw(
    folder: Place,
    columns: Columns,
    objectives: Sequence[Objective],
    *,
    main: str,
    records: Mapping[str, TrialRecord],
) -> None:
    """Draw every figure of an exploration into its folder.

    Raises:
        RunError: a file cannot be written.
    """
    figures_dir = folder / "figures"
    if isinstance(figures_dir, Path):
        with _writing(figures_dir):
            figures_dir.mkdir(exist_ok=True)
    quality, cost = objectives[0].name, objectives[-1].name
    figures: dict[str, Figure] = {}
    names = conditioning_names(columns, main)
    statistics = front_statistics(columns, method_tables(columns), objectives)
    for split in sorted(set(columns["split"].tolist())):
        points = points_as_json(columns, split)
        for name in names:
            figures[f"{quality}-against-{name}-{split}"] = metric_against_conditioning(
                points, metric=quality, conditioning=name, split=split, main=main
            )
        if len(names) == 2 and not has_categories(columns):
            figures[f"{quality}-map-{split}"] = metric_map(
                points, metric=quality, conditionings=(names[0], names[1]), split=split, main=main
            )
        figures[f"{quality}-against-{cost}-{split}"] = _fronts(
            points, statistics, objectives, main=main, split=split
        )
    figures["hypervolume"] = hypervolume_growth(
        {name: one["hypervolume_history"] for name, one in statistics.items()}, main=main
    )
    seconds = {name: spent.train_s for name, spent in method_costs(columns).items()}
    figures["training-cost"] = training_cost_bars(seconds, main=main)
    figures["learning-curves"] = learning_curves(
        {name: _history(record, quality) for name, record in records.items()},
        methods={name: record.trial.method for name, record in records.items()},
        metric=quality,
        main=main,
    )
    for name, figure in figures.items():
        save_figure(figure, figures_dir / f"{name.replace('/', '-')}.png")
    page = folder / "frontier.html"
    plot_frontier(page, columns, objectives, main=main, split="val", title=folder.name)


def _fronts(
    points: Sequence[Mapping[str, Any]],
    statistics: Mapping[str, Any],
    objectives: Sequence[Objective],
    *,
    main: str,
    split: str,
) -> Figure:
    """The first objective against the last, all methods' fronts on a split."""
    return metric_against_cost(
        points,
        metric=objectives[0].name,
        cost=objectives[-1].name,
        split=split,
        main=main,
        attainment=_attainment(statistics, split),
    )


def _attainment(statistics: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Surfaces by method where the split is val: on test each seed would choose its own front."""
    if split != "val":
        return {}
    surfaces = {name: one["attainment"] for name, one in statistics.items()}
    names = ("best", "median", "worst")
    return {name: {n: own[n] for n in names} for name, own in surfaces.items() if own is not None}


def points_as_json(columns: Columns, split: str) -> list[dict[str, Any]]:
    """Every point of every method on a split, in the shape of the JSON contract.

    Points of the test split also hold `validation_metrics`, by which figures choose.
    """
    table = PointTable.of(columns, split=split)
    points = [table.point(index).to_json() for index in range(len(table))]
    if split == "val":
        return points
    validated = {_identity(point): point["metrics"] for point in points_as_json(columns, "val")}
    return [{**point, "validation_metrics": validated[_identity(point)]} for point in points]


def _identity(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return point["method"], *point["conditioning"].items()


def conditioning_names(columns: Columns, method: str) -> list[str]:
    """Names of a method's numeric conditionings, in the order of the columns.

    Not those that each of its several trainings has one value of, where others vary.
    """
    prefix, own = "conditioning/", columns["method"] == method
    numbers = [n for n in columns if n.startswith(prefix) and columns[n].dtype.kind == "f"]
    numbers = [n for n in numbers if np.isfinite(columns[n][own]).any()]
    _, codes = np.unique(columns["trial_id"][own].astype(str), return_inverse=True)
    varying = [n for n in numbers if _varies(columns[n][own], codes)]
    return [n.removeprefix(prefix) for n in varying or numbers]


def _varies(values: NDArray[np.float64], trials: NDArray[np.intp]) -> bool:
    """Whether a training has several values."""
    low, high = (np.full(trials.max() + 1, end) for end in (np.inf, -np.inf))
    np.minimum.at(low, trials, values)
    np.maximum.at(high, trials, values)
    return bool((low < high).any())


def has_categories(columns: Columns) -> bool:
    """Whether a conditioning is a category."""
    prefix = "conditioning/"
    return any(n.startswith(prefix) and columns[n].dtype.kind != "f" for n in columns)


def _history(record: TrialRecord, quality: str) -> list[dict[str, float]]:
    """A trial's validations, the metric under its own name."""
    return [{**row, quality: row["val"]} for row in record.history]
