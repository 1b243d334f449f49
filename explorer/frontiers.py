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
    points = _validated(losses)
    if not len(points):
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(points, keep_weakly=True), dtype=np.bool_)


def hypervolume(losses: ArrayLike, ref_point: ArrayLike) -> float:
    """Volume dominated by a point set and bounded by a reference point.

    Args:
        losses: (n, m) finite, minimised; dominated and repeated rows are allowed.
        ref_point: (m,) same units as `losses`; rows not below it contribute zero.

    Raises:
        ValueError: wrong rank, mismatched m, or a non-finite entry.

    Source: While, Bradstreet & Barone (2012), eq. (6)-(7), doi:10.1109/TEVC.2010.2077298.
    """
    points = _validated(losses)
    ref = np.asarray(ref_point, dtype=np.float64)
    if ref.shape != (points.shape[1],) or not np.isfinite(ref).all():
        raise ValueError(
            f"ref_point must hold {points.shape[1]} finite numbers, one per objective, got {ref}"
        )
    inside = points[(points < ref).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=ref)) if len(inside) else 0.0


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
        kept = np.flatnonzero(nondominated_mask(points))
        kept = kept[np.lexsort(points[kept].T[::-1])]
        return cls(_read_only(points[kept]), _read_only(names[kept]))

    def __len__(self) -> int:
        return len(self.losses)

    def hypervolume(self, ref_point: ArrayLike) -> float:
        """Volume between the frontier and `ref_point`; see `hypervolume`."""
        return hypervolume(self.losses, ref_point)


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
