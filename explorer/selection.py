"""The best of many rows under limits, found without looking at most of them.

Rows lie in blocks whose extremes are known. Whatever is minimised rises with each of the losses
that it is made of, so that its value at a block's smallest losses is a lower bound for all rows of
the block: blocks that cannot meet a limit are left out, the others are visited by rising lower
bound until the best row found lies below the next one. The answer is exact whatever the order of
the rows; one in which neighbours are alike makes it fast.
Shapes: p rows, b blocks of `block_size` rows (the last one filled up with NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.problem import Objective

Floats: TypeAlias = NDArray[np.float64]
# Losses of an objective, of some rows or as lower bounds of some blocks.
Reader: TypeAlias = Callable[[Objective], Floats]
# What is minimised: a function that never falls when a loss rises.
Key: TypeAlias = Callable[[Reader], Floats]
# An objective and the largest loss in it that is allowed.
Limit: TypeAlias = tuple[Objective, float]

BLOCK_SIZE = 1024


@dataclass(frozen=True)
class _Column:
    """A quantity in blocks; NaN where it was not measured."""

    values: Floats  # (b, block_size)
    low: Floats  # (b,), NaN where the whole block is
    high: Floats
    has_nan: bool

    def lows(self, objective: Objective) -> Floats:
        """The smallest loss in each block."""
        return objective.to_loss(self.low if objective.direction == "minimize" else self.high)


class BlockSearch:
    """Finds rows of a table of named quantities.

    Args:
        columns: name to (p,) values, NaN where not measured; p > 0.
        order: (p,) rows in the order in which they are put into blocks.
        block_size: rows of a block.
    """

    def __init__(
        self,
        columns: Mapping[str, Floats],
        order: NDArray[np.int64],
        *,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        self._order = order
        self._shape = (-(-len(order) // block_size), block_size)
        self._columns = {
            name: _in_blocks(values, order, self._shape) for name, values in columns.items()
        }
        positions = np.full(self._shape, len(order), dtype=np.int64)
        positions.ravel()[: len(order)] = order
        self._positions = positions
        self._first_position = positions.min(axis=1)

    def range(self, name: str) -> float:
        """Largest minus smallest value of a quantity; NaN where nothing was measured."""
        column = self._columns[name]
        return float(np.fmax.reduce(column.high) - np.fmin.reduce(column.low))

    def first(
        self, keys: Sequence[Key], *, limits: Sequence[Limit] = (), required: Sequence[str] = ()
    ) -> int | None:
        """The row with the smallest keys, compared one after the other; the first of equals.

        Args:
            keys: what to minimise; NaN comes last.
            limits: every one is kept, which NaN never does.
            required: quantities that must have been measured.

        Returns:
            The row's position in the table, or None where no row is allowed.
        """
        required = [name for name in required if self._columns[name].has_nan]
        blocks = self._possible(limits, required)
        lows = [_nan_last(key(lambda o: self._columns[o.name].lows(o)[blocks])) for key in keys]
        lows.append(self._first_position[blocks].astype(np.float64))
        visits = np.lexsort(lows[::-1])
        best: tuple[float, ...] | None = None
        start, num_visited = 0, 1
        while start < len(visits):
            if best is not None and tuple(low[visits[start]] for low in lows) > best:
                break
            batch = blocks[visits[start : start + num_visited]]
            found = self._first_within(batch, keys, limits, required)
            best = min(filter(None, (best, found)), default=None)
            start, num_visited = start + num_visited, 2 * num_visited
        return None if best is None else int(best[-1])

    def _possible(self, limits: Sequence[Limit], required: Sequence[str]) -> NDArray[np.intp]:
        mask = np.ones(self._shape[0], dtype=np.bool_)
        for objective, limit in limits:
            mask &= self._columns[objective.name].lows(objective) <= limit
        for name in required:
            mask &= ~np.isnan(self._columns[name].low)
        return np.flatnonzero(mask)

    def _first_within(
        self,
        blocks: NDArray[np.intp],
        keys: Sequence[Key],
        limits: Sequence[Limit],
        required: Sequence[str],
    ) -> tuple[float, ...] | None:
        positions = self._positions[blocks].ravel()
        mask = positions < len(self._order)
        for objective, limit in limits:
            mask &= objective.to_loss(self._columns[objective.name].values[blocks].ravel()) <= limit
        for name in required:
            mask &= ~np.isnan(self._columns[name].values[blocks].ravel())
        ties = np.flatnonzero(mask)
        if not len(ties):
            return None
        found = []

        def read(objective: Objective) -> Floats:
            return objective.to_loss(
                self._columns[objective.name].values[blocks[ties // size], ties % size]
            )

        size = self._shape[1]
        for key in keys:
            values = _nan_last(key(read))
            found.append(float(values.min()))
            ties = ties[values == found[-1]]
        return (*found, float(positions[ties].min()))


def _in_blocks(values: Floats, order: NDArray[np.int64], shape: tuple[int, int]) -> _Column:
    blocks = np.full(shape, np.nan)
    rows = blocks.ravel()[: len(order)]
    np.take(values, order, out=rows)
    low, high = np.fmin.reduce(blocks, axis=1), np.fmax.reduce(blocks, axis=1)
    return _Column(blocks, low, high, has_nan=bool(np.isnan(rows).any()))


def _nan_last(values: Floats) -> Floats:
    return np.where(np.isnan(values), np.inf, values)
