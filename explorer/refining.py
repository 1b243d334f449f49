"""New settings around an answer: where to look next once a query has named a point.

Shapes: k explored settings, d parameters, m new settings; unit coordinates lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from explorer.sampling import rounded
from search_spaces.space import Config, SearchSpace

NUM_TRIES = 64  # candidates per wanted setting before a neighbourhood counts as exhausted
CLOSEST = 5e-4  # in units of a range: closer settings are the same network for all that matters


def settings_around(
    centre: Config,
    explored: Sequence[Config],
    space: SearchSpace,
    m: int,
    *,
    is_admissible: Callable[[Config], bool] = lambda setting: True,
) -> list[Config]:
    """Settings between a point and its nearest explored neighbours.

    The neighbourhood is the cube, in unit coordinates, that reaches to the 2d-th nearest explored
    setting, cut to the space: between the two neighbours in one dimension. It is filled evenly
    (Sobol points), so that asking again around the answer of a former call closes in on it.

    Args:
        centre: an explored setting.
        explored: all of them; none is returned again, nor one that is closer than CLOSEST to one.
        space: the conditioning parameters with the ranges that may be explored.
        m: how many.
        is_admissible: whether bounds on known costs allow a setting.

    Returns:
        At most m settings, fewer where the neighbourhood holds no more.
    """
    units = space.encode(explored)
    own = space.encode([centre])[0]
    distances = np.sort(np.abs(units - own).max(axis=1))
    distances = distances[distances > 0]
    reach = float(distances[: 2 * len(space)].max(initial=0.0)) or 1.0
    low, high = np.clip(own - reach, 0, 1), np.clip(own + reach, 0, 1)
    found: list[Config] = []
    for unit in _sobol(len(space), m * NUM_TRIES):
        if len(found) == m:
            break
        (setting,) = space.decode((low + unit * (high - low))[None])
        setting = rounded(space, setting)
        places = space.encode([setting])
        if np.abs(units - places).max(axis=1).min() < CLOSEST or not is_admissible(setting):
            continue
        units = np.vstack([units, places])
        found.append(setting)
    return found


def _sobol(d: int, n: int) -> NDArray[np.float64]:
    """(n, d) points of the Sobol sequence, without its first, the corner."""
    power = int(np.ceil(np.log2(n + 1)))
    points: NDArray[np.float64] = qmc.Sobol(d, scramble=False).random_base2(power)[1 : n + 1]
    return points
