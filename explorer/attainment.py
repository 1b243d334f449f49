"""What fronts attain: hypervolume as it grows, surfaces over seeds, one front against another.

Shapes: n points, m objectives. Everything is finite and minimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import moocore
import numpy as np
from numpy.typing import NDArray

from explorer.frontiers import hypervolume, nondominated_mask

Floats: TypeAlias = NDArray[np.float64]

MAX_STEPS = 200


def hypervolume_history(losses: Floats, ref_point: Floats) -> tuple[list[int], list[float]]:
    """Hypervolume of the first k points, for at most `MAX_STEPS` evenly spread values of k.

    Args:
        losses: (n, m) in the order of evaluation.
        ref_point: (m,) see `frontiers.hypervolume`.

    Returns:
        The values of k, ascending to n, and the hypervolume of each.
    """
    n = len(losses)
    counts = np.unique(np.linspace(1, n, min(n, MAX_STEPS)).round().astype(int)).tolist()
    front, volumes = losses[:0], []
    for start, stop in pairwise([0, *counts]):
        joined = np.concatenate([front, losses[start:stop]])
        front = joined[nondominated_mask(joined)]
        volumes.append(hypervolume(front, ref_point))
    return counts, volumes


def attainment_surfaces(fronts: Sequence[Floats]) -> dict[str, Floats] | None:
    """What the best, half and all of several runs attain.

    A point is attained by a run when some point of the run's front is nowhere worse. `best` is the
    front of what at least one run attains, `median` at least half of them, `worst` all of them.

    Args:
        fronts: (n, m) of each run.

    Returns:
        Each surface (k, m) by ascending first loss; None for other than two or three objectives,
        for which moocore has no algorithm.

    Source: Grunert da Fonseca, Fonseca & Hall (2001), "Inferential performance assessment of
    stochastic optimisers and the attainment function", doi:10.1007/3-540-44719-9_15.
    """
    if fronts[0].shape[1] not in (2, 3):
        return None
    runs = np.repeat(np.arange(len(fronts)), [len(front) for front in fronts])
    levels = {"best": 1, "median": -(-len(fronts) // 2), "worst": len(fronts)}
    points = moocore.eaf(np.concatenate(fronts), runs)
    surfaces = {}
    for name, level in levels.items():
        surface = points[np.round(points[:, -1] * len(fronts) / 100) == level, :-1]
        surfaces[name] = surface[np.lexsort(surface.T[::-1])]
    return surfaces


def share_dominated(front: Floats, by: Floats) -> float:
    """Share of a front's points that some point of another front dominates.

    Args:
        front: (n, m) nondominated, n > 0.
        by: (k, m) nondominated.

    Source: the coverage of two sets, Zitzler & Thiele (1999), doi:10.1109/4235.797969, here with
    dominance in the place of weak dominance, so that equal fronts do not dominate each other.
    """
    # No point of a front dominates another of its own: what falls is dominated by the other one.
    kept = nondominated_mask(np.concatenate([by, front]))[len(by) :]
    return float(1 - kept.mean())


def additive_epsilon(front: Floats, against: Floats, *, scale: Floats) -> float:
    """How far a front has to move in every objective to be nowhere worse than another one.

    Args:
        front: (n, m).
        against: (k, m).
        scale: (m,) what one unit of each objective is; at most zero means already nowhere worse.

    Source: the additive epsilon indicator, Zitzler et al. (2003), doi:10.1109/TEVC.2003.810758.
    """
    return float(moocore.epsilon_additive(front / scale, ref=against / scale))


def mean_gap(front: Floats, against: Floats, low: float, high: float) -> float:
    """Mean over an interval of the second loss of how much lower a front's first loss is.

    At each value of the second loss (a budget) a front's first loss is the lowest that it has
    within the budget.

    Args:
        front: (n, 2); some point has at most `low` as its second loss.
        against: (k, 2) likewise.
        low: lower end.
        high: upper end, above `low`.
    """
    inside = [points[:, 1] for points in (front, against)]
    ends = np.unique(np.concatenate([*inside, [low, high]]))
    ends = ends[(ends >= low) & (ends <= high)]
    gaps = best_within(against, ends[:-1]) - best_within(front, ends[:-1])
    return float(gaps @ np.diff(ends) / (high - low))


def best_within(points: Floats, budgets: Floats) -> Floats:
    """The lowest first loss of (n, 2) points whose second loss is within each budget, else NaN."""
    order = np.argsort(points[:, 1])
    lowest = np.minimum.accumulate(points[order, 0])
    last = np.searchsorted(points[order, 1], budgets, side="right") - 1
    return np.where(last >= 0, lowest[np.maximum(last, 0)], np.nan)
