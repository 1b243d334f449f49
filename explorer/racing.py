"""Racing: an evaluation stops once its setting can no longer matter.

The images are cut into blocks, in an order from a seed alone. After every block but the last, a
setting is given up when, at a stated confidence, it misses a bound on a metric, or in no measured
objective is better by more than a margin than a setting that was evaluated to the end and is no
worse in any known cost. With a margin of 0, only what is surely dominated is given up; a small one
saves what it takes to tell equals apart.

What tells equals apart is the spread of paired differences, and settings that are close together
differ little on any image. So the difference to a rival is taken in two steps: from the setting to
its nearest neighbour that was evaluated to the end, which is estimated, and from there to the
rival, which is known. This is unbiased whatever the neighbour, since that is chosen by its place
alone. It asks for settings in random order, so that neighbours are there early.

Shapes: N images in all, n of them seen so far; values are averaged over seeds, NaN where undefined.

Source: the idea of Maron & Moore (1994), Hoeffding races; paired differences as in Birattari et al.
(2002), racing algorithms. Their bounds need a range or many samples; here the images are a finite
set drawn without replacement, so that Student's interval with the correction of Cochran (1977),
Sampling Techniques, eq. 2.20, shrinks to nothing at the last block; the two steps are its
difference estimator (section 7.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist

from explorer.frontiers import Frontier
from explorer.queries import Bound
from search_spaces.problem import Objective
from search_spaces.space import Config, SearchSpace

Values = Mapping[str, NDArray[np.float64]]
ToLoss = Callable[[NDArray[np.float64]], NDArray[np.float64]]
MIN_SEEN = 8  # below, a sample says too little about its own spread


@dataclass(frozen=True)
class Rival:
    """A setting that was evaluated on every image.

    Attributes:
        setting: of the conditioning.
        costs: its known costs, by name.
        values: (N,) per metric, in the order of the images.
    """

    setting: Config
    costs: Mapping[str, float]
    values: Values


@dataclass(frozen=True)
class Race:
    """The rules of one exploration's races.

    Attributes:
        space: of the settings; says which are close together.
        objectives: of the front.
        bounds: on metrics; those on known costs were applied beforehand.
        known_costs: names that need no evaluation.
        num_samples: N.
        block_size: images per block.
        confidence: of every verdict, over all blocks and tests of a setting together: with a
            probability of at most 1 - confidence, a setting is given up that belongs on the front.
            The first look has half of that risk, each later one half of what is left: what ends
            early saves most.
        margin: of a measured objective, in its own unit: what is gained by less is not worth an
            evaluation.
        seed: of the order of the images.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    bounds: tuple[Bound, ...]
    known_costs: frozenset[str]
    num_samples: int
    block_size: int
    confidence: float
    margin: float
    seed: int

    @property
    def num_blocks(self) -> int:
        """How many blocks the images are cut into; the last may be smaller."""
        return math.ceil(self.num_samples / self.block_size)

    @property
    def blocks(self) -> list[NDArray[np.int64]]:
        """Indices of the images of each block; the same for every setting."""
        order = np.random.default_rng((self.seed, 4)).permutation(self.num_samples)
        size = self.block_size
        return [order[k * size : (k + 1) * size] for k in range(self.num_blocks)]

    def is_lost(
        self,
        costs: Mapping[str, float],
        values: Values,
        seen: NDArray[np.int64],
        rivals: Sequence[Rival],
        neighbour: Rival | None = None,
    ) -> bool:
        """Whether a setting may be given up.

        Args:
            costs: its known costs.
            values: (n,) per metric, what was seen of it.
            seen: (n,) indices of those images.
            rivals: what it runs against; see `keep_rivals`.
            neighbour: a setting that differs little on any image; see `nearest`.
        """
        opponents = self._opponents(costs, rivals)
        num_tests = len(opponents) + len(self.bounds)
        look = math.ceil(len(seen) / self.block_size) - math.ceil(MIN_SEEN / self.block_size) + 1
        if not num_tests or len(seen) == self.num_samples or look < 1:
            return False
        risk = (1 - self.confidence) / 2**look / num_tests

        def least(to_loss: ToLoss, name: str, other: Rival | None, known: float) -> float:
            """Lower limit of a mean loss: that over `other`, and what is known of `other`."""
            losses = to_loss(values[name])
            if other is not None:
                losses = losses - to_loss(other.values[name][seen])
                known += float(np.nanmean(to_loss(other.values[name])))
            return known + self._lower_limit(losses, risk)

        return any(least(b.violation, b.name, neighbour, 0.0) > 0 for b in self.bounds) or any(
            all(
                least(o.to_loss, o.name, neighbour or rival, -o.to_loss(_mean(rival.values, o)))
                > -self.margin
                for o in self._measured
            )
            for rival in opponents
        )

    def rival(self, setting: Config, costs: Mapping[str, float], values: Values) -> Rival:
        """A setting with (N,) values per metric, as far as they decide races."""
        needed = {o.name for o in self._measured} | {bound.name for bound in self.bounds}
        kept = {name: own for name, own in values.items() if name in needed}
        return Rival(setting, {n: c for n, c in costs.items() if n in self.known_costs}, kept)

    def nearest(self, settings: Sequence[Config], rivals: Sequence[Rival]) -> list[Rival]:
        """For each setting the nearest rival, the first of equals; nothing where there is none.

        Distances are sums over the unit cube's dimensions.
        """
        if not rivals:
            return []
        places, others = (self.space.encode(x) for x in (settings, [r.setting for r in rivals]))
        distances = cdist(places, others, "cityblock")
        return [rivals[index] for index in distances.argmin(axis=1)]

    @property
    def _measured(self) -> list[Objective]:
        return [o for o in self.objectives if o.name not in self.known_costs]

    def _losses(self, costs: Mapping[str, float]) -> list[float]:
        return [o.to_loss(costs[o.name]) for o in self.objectives if o.name in self.known_costs]

    def _opponents(self, costs: Mapping[str, float], rivals: Sequence[Rival]) -> list[Rival]:
        """Rivals that cost no more; with one measured objective the best alone is needed."""
        own = self._losses(costs)
        cheaper = [
            rival
            for rival in rivals
            if all(a <= b for a, b in zip(self._losses(rival.costs), own, strict=True))
        ]
        if len(self._measured) > 1 or not cheaper:
            return cheaper
        (objective,) = self._measured
        return [min(cheaper, key=lambda r: float(objective.to_loss(_mean(r.values, objective))))]

    def _lower_limit(self, differences: NDArray[np.float64], risk: float) -> float:
        """One-sided lower confidence limit of the mean over all N images; -inf while unknown."""
        present = differences[np.isfinite(differences)]
        n = len(present)
        if n < min(MIN_SEEN, self.num_samples):
            return -math.inf
        error = present.std(ddof=1) / math.sqrt(n) * math.sqrt(1 - n / self.num_samples)
        return float(present.mean()) - _quantile(risk, n - 1) * float(error)

    def keep_rivals(self, rivals: Sequence[Rival]) -> list[Rival]:
        """Those worth running against: within the bounds and nondominated, first of equal ones."""
        within = [
            rival
            for rival in rivals
            if all(b.violation(float(np.nanmean(rival.values[b.name]))) <= 0 for b in self.bounds)
        ]
        if not within:
            return []
        losses = [
            [*self._losses(r.costs), *(o.to_loss(_mean(r.values, o)) for o in self._measured)]
            for r in within
        ]
        _, first = np.unique(np.array(losses), axis=0, return_index=True)
        distinct = np.sort(first)
        front = Frontier.of(np.array(losses)[distinct], distinct)
        return [within[index] for index in sorted(front.ids)]


def mean_over_seeds(seeds: Sequence[Values]) -> dict[str, NDArray[np.float64]]:
    """Average values (n,) by metric over the seeds where they are defined."""
    averaged = {}
    for name in seeds[0]:
        stacked = np.stack([values[name] for values in seeds])
        present = np.isfinite(stacked)
        totals, counts = np.where(present, stacked, 0.0).sum(0), present.sum(0)
        averaged[name] = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    return averaged


def _mean(values: Values, objective: Objective) -> float:
    return float(np.nanmean(values[objective.name]))


@cache
def _quantile(risk: float, degrees: int) -> float:
    return float(stats.t.isf(risk, degrees))
