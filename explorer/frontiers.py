"""Dominance, hypervolume, and the frontier of a set of points.

Shapes: n points, m objectives, f nondominated points. Everything is float64, finite and minimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def nondominated_mask(losses: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    One point dominates another when it is nowhere worse and somewhere better. Equal points do not
    dominate each other: every copy of a nondominated point is marked.

    Args:
        losses: (n, m) finite, minimised.

    Returns:
        (n,) mask in the order of the rows.

    Raises:
        ValueError: wrong rank, no objective, or a non-finite entry.
    """
    return _nondominated_mask(_validated(losses))


def hypervolume(losses: ArrayLike, ref_point: ArrayLike) -> float:
    """Volume dominated by a point set and bounded by a reference point.

    Args:
        losses: (n, m) finite, minimised; dominated and repeated rows are allowed.
        ref_point: (m,) same units as `losses`; rows not below it contribute zero.

    Raises:
        ValueError: wrong rank, mismatched m, or a non-finite entry.

    Source: While, Bradstreet & Barone (2012), eq. (6)-(7), doi:10.1109/TEVC.2010.2077298.
    """
    return _hypervolume(_validated(losses), ref_point)


def knee(losses: ArrayLike) -> int:
    """Position of the knee of a front: the point that lies farthest below the ends' chord.

    Losses are divided by their range over the front. The chord is the line through the two ends;
    with more objectives, the hyperplane through the point that is best in each. Where these points
    span none, or one that a gain in some objective leads away from (both only with more than two
    objectives), it is the one on which the scaled losses sum to one. Among equals the first point
    in order is taken; of a front that bulges away from the ideal point the knee is an end.

    Args:
        losses: (f, m) finite, minimised, nondominated; f > 0.

    Raises:
        ValueError: wrong rank, no point, no objective, or a non-finite entry.

    Source: Das (1999), "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary
    Intersection", Structural Optimization 18:107-115, doi:10.1007/BF01195985. He measures along
    the normal in unscaled losses and over the whole boundary; we compare the points at hand.
    """
    points = _validated(losses)
    if not len(points):
        raise ValueError("expected at least one point, got none")
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    normal = np.ones(points.shape[1])
    ends = scaled[np.argmin(scaled, axis=0)]
    if np.linalg.matrix_rank(ends) == len(ends):
        through_ends = np.linalg.solve(ends, np.ones(len(ends)))
        if (through_ends > 0).all():
            normal = through_ends
    # Rounding must not choose among equals.
    return int(np.argmin(np.round(scaled @ (normal / normal.sum()), 12)))


@dataclass(frozen=True, eq=False)
class Frontier:
    """The nondominated points of a set, ordered by their first loss (ties by the next ones).

    Attributes:
        losses: (f, m) read-only.
        ids: (f,) read-only; what the caller named each point.
    """

    losses: NDArray[np.float64]
    ids: NDArray[Any]

    @classmethod
    def of(cls, losses: ArrayLike, ids: Sequence[Any] | NDArray[Any]) -> Frontier:
        """Keep the nondominated of n points, every copy of equal ones, in order of first loss.

        Args:
            losses: (n, m) finite, minimised.
            ids: n names, of one type.

        Raises:
            ValueError: wrong rank, a non-finite entry, or another number of ids than of points.
        """
        points = _validated(losses)
        names = np.asarray(ids)
        if names.shape != (len(points),):
            raise ValueError(f"expected one id for each of {len(points)} points, got {len(names)}")
        kept = _sorted_rows(points, np.flatnonzero(_nondominated_mask(points)))
        return cls(_read_only(points.take(kept, axis=0)), _read_only(names.take(kept)))

    def __len__(self) -> int:
        return len(self.losses)

    def hypervolume(self, ref_point: ArrayLike) -> float:
        """Volume between the frontier and `ref_point`; see `hypervolume`."""
        return _hypervolume(self.losses, ref_point)


def _nondominated_mask(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)


def _hypervolume(points: NDArray[np.float64], ref_point: ArrayLike) -> float:
    ref = np.asarray(ref_point, dtype=np.float64)
    if ref.shape != (points.shape[1],) or not np.isfinite(ref).all():
        raise ValueError(
            f"ref_point must hold {points.shape[1]} finite numbers, one per objective, got {ref}"
        )
    return float(moocore.hypervolume(points, ref=ref)) if len(points) else 0.0


def _sorted_rows(points: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows by first loss, ties by the next ones, equal rows in their order."""
    first = points[:, 0].take(rows)
    if (first[1:] > first[:-1]).all():
        return rows
    order = np.argsort(first)  # several times faster than comparing whole points
    ascending = first.take(order)
    if not (ascending[1:] > ascending[:-1]).all():
        order = np.lexsort(points.take(rows, axis=0).T[::-1])
    return rows.take(order)


def _validated(losses: ArrayLike) -> NDArray[np.float64]:
    # moocore takes NaN for nondominated, so nothing unchecked may reach it.
    points = np.ascontiguousarray(losses, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"losses must have shape (points, objectives), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("losses must be finite, got NaN or infinity")
    return points


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
