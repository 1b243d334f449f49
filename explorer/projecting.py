"""What MLflow shows of an exploration, read from its folder and from nothing else.

Child runs are for the front and for what was trained; all other points are in the table and the
Parquet file. The front is shown once it is known: when exploring on validation is over, or the
exploration has stopped. While it still moves, the parent's curves say how far it has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from explorer.frontiers import Frontier, hypervolume
from explorer.measurements import Columns, columns_of
from explorer.places import Place, files_in
from explorer.queries import Floats, PointTable
from explorer.specs import ExplorationSpec, load_spec
from explorer.store import measurements_store, read_json
from explorer.tracking import ExplorationRecord, TrackedPoint, TrackedTraining
from search_spaces.problem import Objective

_NUM_STEPS = 100  # of the parent's curves, over the planned settings of its own method


def uid_of(folder: Place, state: Mapping[str, Any]) -> str:
    """What an exploration is known by: two runs directories may share a server and a name."""
    return f"{folder.name}@{state['created']:.6f}"


def record_of(folder: Place) -> ExplorationRecord:
    """All that MLflow shall show of the exploration in a folder as it is now, but its files.

    Raises:
        InputError: its files are damaged.
    """
    state = read_json(folder / "state.json")
    spec = load_spec(folder / "spec.yaml")
    objectives = tuple(Objective(**objective) for objective in state["objectives"])
    columns = columns_of(measurements_store(folder).load())
    has_stopped = state["status"] != "running"
    is_front_known = has_stopped or "test" in columns["split"]
    return ExplorationRecord(
        exploration_id=folder.name,
        uid=uid_of(folder, state),
        status=state["status"],
        created=state["created"],
        params=spec.model_dump(mode="json"),
        tags={name: str(state[name]) for name in ("spec_digest", "data_digest", "code_version")},
        metrics={f"{stage}_s": seconds for stage, seconds in state["elapsed_s"].items()},
        history=_history(columns, spec, objectives, has_stopped=has_stopped),
        trainings=_trainings(folder, objectives[0]),
        points=_points(folder.name, columns, spec, objectives) if is_front_known else None,
        table=columns if has_stopped else None,
    )


def _points(
    exploration_id: str,
    columns: Columns,
    spec: ExplorationSpec,
    objectives: Sequence[Objective],
) -> list[TrackedPoint]:
    """The fronts of the exploration's own method, and every point of the grids."""
    grids = {baseline.method for baseline in spec.baselines if baseline.every_grid}
    on_validation = columns["method"][columns["split"] == "val"]
    points = []
    for method in dict.fromkeys(on_validation.tolist()):
        if method != spec.method and method not in grids:
            continue
        table = PointTable.of(columns, method=method)
        front = set(table.frontier(objectives).ids.tolist())
        for index in range(len(table)) if method in grids else sorted(front):
            point = table.point(index).to_json()
            setting = ",".join(f"{name}={value}" for name, value in point["conditioning"].items())
            points.append(
                TrackedPoint(f"{exploration_id}/{method}/{setting}", point, index in front)
            )
    return points


def _history(
    columns: Columns,
    spec: ExplorationSpec,
    objectives: Sequence[Objective],
    *,
    has_stopped: bool,
) -> list[dict[str, float]]:
    """How far the exploration had come after so many rows of the table, step by step.

    A row of the history depends on that many rows of the table alone, so that it is the same
    whenever it is sent. The reference point of its hypervolume is the worst value so far of every
    objective, over the points of the exploration's own method: the hypervolume never falls.
    """
    num_rows = len(columns["split"])
    every = max(1, spec.explore.num_points * len(spec.train.seeds) // _NUM_STEPS)
    steps = list(range(every, num_rows + 1, every))
    if has_stopped and num_rows % every:
        steps.append(num_rows)
    if not steps:
        return []
    times = np.maximum.accumulate(columns["time"])
    losses, last_rows = _losses_in_order(columns, spec.method, objectives)
    front, ref_point = losses[:0], np.full(len(objectives), -np.inf)
    history, num_seen = [], 0
    for step in steps:
        row = {"step": step, "time": float(times[step - 1]), "num_measurements": step}
        num_done = int(np.searchsorted(last_rows, step))
        if num_done > num_seen:
            new = losses[num_seen:num_done]
            ref_point = np.maximum(ref_point, new.max(axis=0))
            front = np.concatenate([front, new])
            front = Frontier.of(front, np.arange(len(front))).losses
            num_seen = num_done
        if num_seen:
            quality = objectives[0]
            row[f"best_{quality.name}"] = float(quality.from_loss(front[:, 0].min()))
            row["hypervolume"] = hypervolume(front, ref_point)
        history.append(row)
    return history


def _losses_in_order(
    columns: Columns, method: str, objectives: Sequence[Objective]
) -> tuple[Floats, Floats]:
    """Losses of a method's points (p, m) in the order of the table, and where each stands (p,)."""
    is_own = (columns["method"] == method) & (columns["split"] == "val")
    if not is_own.any():
        return np.empty((0, len(objectives))), np.empty(0)
    # A point's rows, one per seed, come side by side: their mean position tells its place.
    position = {"cost/position": np.arange(len(is_own), dtype=np.float64)}
    table = PointTable.of({**columns, **position}, method=method)
    losses = np.stack([o.to_loss(table.values(o.name)) for o in objectives], axis=1)
    order = np.argsort(table.costs["position"], kind="stable")
    order = order[~np.isnan(losses[order]).any(axis=1)]
    return losses[order], table.costs["position"][order]


def _trainings(folder: Place, quality: Objective) -> list[TrackedTraining]:
    """Trials that ended well; `val` of their histories is the first objective."""
    trainings = []
    for path in files_in(folder, "trials/*/trial.json"):
        record = read_json(path)
        trial: Mapping[str, Any] = record["trial"]
        if record["status"] != "ok":
            continue
        params = {name: trial[name] for name in ("method", "seed", "learning_rate")}
        names = {"epoch": "step", "val": quality.name}
        history = [
            {names.get(name, name): value for name, value in row.items()}
            for row in record["history"]
        ]
        trainings.append(
            TrackedTraining(trial["trial_id"], {**params, **trial["settled"]}, history)
        )
    return trainings


def files_of(folder: Place) -> list[Place]:
    """The figures, the tables of analyses and the page, as far as there are any."""
    page = folder / "frontier.html"
    drawn = [*files_in(folder, "figures/*.png"), *files_in(folder, "tables/*.csv")]
    return [*drawn, *([page] if page.is_file() else [])]
