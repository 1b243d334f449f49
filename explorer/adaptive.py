"""Adaptive refinement: settings where the front of what was measured has its widest gaps.

A few settings that span the space come first. From then on, every candidate setting is predicted
from the settings around it, and the one is asked for that lies farthest outside the front, or
deepest in a gap between two of its points, on the scale of the front's own ranges. Settings that
were asked for and not told yet count as if they had come out as predicted, so that a batch, and
batches in flight, spread over different gaps.

Shapes: k settings asked for, c candidates, e encoded coordinates, m objectives, f front, b bounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial.distance import cdist
from scipy.special import ndtr
from scipy.stats import qmc

from explorer.frontiers import nondominated_mask
from explorer.sampling import DrawingSampler, Fate, SamplingTask, key_of, rounded, value_of
from search_spaces.errors import InputError
from search_spaces.space import CategoricalParameter, Config, Value

Floats = NDArray[np.float64]

MAX_DIMENSIONS = 3
NUM_CANDIDATES = 256  # spread over the space, drawn once
NUM_LOCAL = 128  # around the front, drawn anew for every batch
NUM_NEIGHBORS = 50  # for a prediction, once there are more than eight times as many settings
CLOSEST = 1e-6  # candidates are farther than this from every setting, in units of the range
UNEXPLORED = 0.1  # optimism per unit of distance, as a share of the front's range
COST_WEIGHT = 3.0  # of the rank of a known cost beside a unit coordinate
DECAY = 4.0  # of a setting's weight with its distance, in the uncertainty


class AdaptiveSampler(DrawingSampler):
    """Refines the front where its neighbouring points are farthest apart.

    For cheap evaluations in one to three numeric dimensions; categories count as places one range
    apart. Objectives that are known costs are never predicted: `task.costs` says them. Their ranks
    are coordinates too: settings that cost alike are neighbours, and steps that change little are
    short ones. Bounds on measured quantities weigh a candidate by the chance of keeping them, so
    that the search closes in where a bound is kept on one side and broken on the other; while no
    setting keeps them, the one is asked for that may come closest.

    The PyPI package `adaptive` (Nijholt et al., doi:10.5281/zenodo.1182437) refines simplices by a
    loss of their own corners. Whether a region belongs to the front depends on all others, so that
    its loss functions do not fit; it also knows neither seeds nor bounds.

    Args:
        task: what to sample.

    Raises:
        InputError: not one to three numeric dimensions.

    Sources: the distance outside the front is the maximin improvement of Svenson & Santner (2016),
        doi:10.1016/j.csda.2015.08.011; interpolation by radial functions with an uncertainty from
        inverse distances follows Bemporad (2020), doi:10.1007/s10589-020-00215-w.
    """

    def __init__(self, task: SamplingTask) -> None:
        super().__init__(task)
        if not task.objectives:
            raise ValueError("expected at least one objective, got none")
        self._choices = [p.choices for p in task.space if isinstance(p, CategoricalParameter)]
        self._num_dims = len(task.space) - len(self._choices)
        if not 1 <= self._num_dims <= MAX_DIMENSIONS:
            raise InputError(
                f"sampler adaptive: expected one to {MAX_DIMENSIONS} numeric conditionings, "
                f"got {self._num_dims}; use {'tpe or nsga2' if self._num_dims else 'grid'}"
            )
        self._combinations = itertools.cycle(itertools.product(*self._choices))
        self._sequence = qmc.Sobol(self._num_dims, seed=np.random.default_rng(task.seed))
        self._start = self._starting_settings()
        self._pool: list[Config] | None = None
        self._told: dict[tuple[Value, ...], tuple[Config, list[float]]] = {}
        self._pending: dict[tuple[Value, ...], Config] = {}
        self._failed: set[tuple[Value, ...]] = set()

    def tell(
        self, configs: Sequence[Config], outcomes: Sequence[Mapping[str, float] | None]
    ) -> None:
        for config, outcome in zip(configs, outcomes, strict=True):
            key = key_of(self._task.space, config)
            if key not in self._pending or key in self._failed:
                raise ValueError(
                    f"expected a setting that was asked for and not told, got {config}"
                )
            if outcome is None:
                self._failed.add(key)  # goes on counting as predicted: nothing is to be had there
                continue
            losses = [o.to_loss(value_of(outcome, o.name)) for o in self._task.objectives]
            bounds = self._task.constraints
            violations = [bound.violation(value_of(outcome, bound.name)) for bound in bounds]
            self._told[key] = self._pending.pop(key), losses + violations

    def _start_batch(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._refinement: _Refinement | None = None

    def _draw(self) -> Config:
        if self._start:
            return self._start.pop(0)
        if self._refinement is None and self._told:
            self._refinement = self._new_refinement()
        if self._refinement is None or not self._refinement.candidates:
            return self._config(self._sequence.random(1)[0], next(self._combinations))
        return self._refinement.best()

    def _settle(self, config: Config, fate: Fate) -> None:
        if fate == "kept":
            self._pending[key_of(self._task.space, config)] = config
        if self._refinement is not None and self._refinement.candidates:
            self._refinement.settle(is_kept=fate == "kept")

    def _config(self, units: Floats, choices: Sequence[str]) -> Config:
        space, numbers, names = self._task.space, iter(units), iter(choices)
        return rounded(
            space,
            {
                p.name: next(names)
                if isinstance(p, CategoricalParameter)
                else p.from_unit(float(next(numbers)))
                for p in space
            },
        )

    def _starting_settings(self) -> list[Config]:
        """Both ends and some settings between them, for every combination of categories."""
        rng = np.random.default_rng(self._task.seed)
        num_inner = 2 if self._num_dims == 1 else 2 * self._num_dims + 1
        settings = []
        for choices in itertools.product(*self._choices):
            inner = qmc.LatinHypercube(self._num_dims, seed=rng).random(num_inner)
            ends = np.array([[0.0], [1.0]]).repeat(self._num_dims, axis=1)
            settings += [self._config(units, choices) for units in np.vstack([ends, inner])]
        return settings

    def _spread_settings(self) -> list[Config]:
        corners = np.array(list(itertools.product((0.0, 1.0), repeat=self._num_dims)))
        settings = [
            self._config(units, choices)
            for choices in itertools.product(*self._choices)
            for units in corners
        ]
        settings += [
            self._config(units, choices)
            for units, choices in zip(
                self._sequence.random(NUM_CANDIDATES), self._combinations, strict=False
            )
        ]
        return list(filter(self._task.is_admissible, settings))

    def _encode(self, configs: Sequence[Config]) -> Floats:
        """Return (c, e) coordinates: unit values, and categories one unit of distance apart."""
        columns = [np.empty((len(configs), 0))]
        for p in self._task.space:
            if isinstance(p, CategoricalParameter):
                values = np.array([config[p.name] for config in configs], dtype=object)
                columns.append((values[:, None] == np.array(p.choices, dtype=object)) / 2**0.5)
            else:
                units = np.array([p.to_unit(config[p.name]) for config in configs])
                columns.append(units[:, None])
        return np.hstack(columns)

    def _known(self, configs: Sequence[Config]) -> Floats:
        """Return (c, m + b) losses by the known costs; NaN for what must be measured."""
        values = np.full(
            (len(configs), len(self._task.objectives) + len(self._task.constraints)), np.nan
        )
        if self._task.costs is None:
            return values
        for row, config in zip(values, configs, strict=True):
            costs = self._task.costs(config)
            for column, objective in enumerate(self._task.objectives):
                if objective.name in costs:
                    row[column] = objective.to_loss(costs[objective.name])
        return values

    def _new_refinement(self) -> _Refinement:
        if self._pool is None:
            self._pool = self._spread_settings()
            self._pool_known = self._known(self._pool)
        settings = [config for config, _ in self._told.values()] + list(self._pending.values())
        known = self._known(settings)
        places = self._places(settings, known)
        told = np.array([row for _, row in self._told.values()])
        predicted = _interpolation(places[: len(told)], told)
        pending = _filled(known[len(told) :], predicted(places[len(told) :]))
        values = np.vstack([told, pending])
        local = self._local_settings(settings, places, values)
        candidates = [*self._pool, *local]
        known = np.vstack([self._pool_known, self._known(local)])
        coordinates = self._places(candidates, known)
        return _Refinement(
            candidates=candidates,
            coordinates=coordinates,
            distances=cdist(coordinates, places),
            predicted=_filled(known, predicted(coordinates)),
            is_measured=np.asarray(np.isnan(known).any(axis=0)),
            values=values,
            num_objectives=len(self._task.objectives),
        )

    def _places(self, configs: Sequence[Config], known: Floats) -> Floats:
        """Return (c, e) coordinates: the encoded setting, and how its known costs rank."""
        columns = [self._encode(configs)]
        for column in np.flatnonzero(~np.isnan(self._pool_known).any(axis=0)):
            among = np.sort(self._pool_known[:, column])
            rank = np.interp(known[:, column], among, np.linspace(0, 1, len(among)))
            columns.append(COST_WEIGHT * rank[:, None])
        return np.hstack(columns)

    def _local_settings(
        self, settings: Sequence[Config], places: Floats, values: Floats
    ) -> list[Config]:
        """Settings around the front, up to as far away as its next neighbour."""
        front = np.flatnonzero(_front_mask(values, len(self._task.objectives)))
        distances = cdist(places[front], places)
        distances[distances <= CLOSEST] = np.inf
        reach = np.minimum(distances.min(axis=1), 1.0)
        chosen = self._rng.integers(len(front), size=NUM_LOCAL)
        steps = self._rng.uniform(-1, 1, (NUM_LOCAL, self._num_dims)) * reach[chosen, None]
        local = [
            self._moved(settings[front[i]], step) for i, step in zip(chosen, steps, strict=True)
        ]
        return list(filter(self._task.is_admissible, local))

    def _moved(self, config: Config, step: Floats) -> Config:
        steps = iter(step)
        return rounded(
            self._task.space,
            {
                p.name: config[p.name]
                if isinstance(p, CategoricalParameter)
                else p.from_unit(min(max(p.to_unit(config[p.name]) + float(next(steps)), 0), 1))
                for p in self._task.space
            },
        )


class _Refinement:
    """The candidates of one batch, and what they promise.

    Args:
        candidates: c settings; they are used up.
        coordinates: (c, e) of the candidates.
        distances: (c, k) from the candidates to the settings asked for.
        predicted: (c, m + b) losses and violations of the candidates.
        is_measured: (m + b,) false where predictions are exact.
        values: (k, m + b) of the settings asked for.
        num_objectives: m.
    """

    def __init__(
        self,
        *,
        candidates: list[Config],
        coordinates: Floats,
        distances: Floats,
        predicted: Floats,
        is_measured: NDArray[np.bool_],
        values: Floats,
        num_objectives: int,
    ) -> None:
        is_new = distances.min(axis=1) > CLOSEST
        self.candidates = [config for config, new in zip(candidates, is_new, strict=True) if new]
        self._coordinates, self._distances = coordinates[is_new], distances[is_new]
        self._predicted, self._is_measured = predicted[is_new], is_measured
        self._values, self._num_objectives = values, num_objectives
        self._best = 0

    def best(self) -> Config:
        """The most promising candidate that is left; the first of equal ones."""
        # Rounded, so that the last digits of a machine's arithmetic decide nothing.
        self._best = int(np.argmax(np.round(self._promise(), 9)))
        return self.candidates[self._best]

    def settle(self, *, is_kept: bool) -> None:
        """Use the best candidate up; once kept, it counts as if it had come out as predicted."""
        best, coordinates = self._best, self._coordinates
        if is_kept:
            self._values = np.vstack([self._values, self._predicted[best]])
            added = cdist(coordinates, coordinates[best : best + 1])
            self._distances = np.hstack([self._distances, added])
        del self.candidates[best]
        self._coordinates = np.delete(coordinates, best, axis=0)
        self._distances = np.delete(self._distances, best, axis=0)
        self._predicted = np.delete(self._predicted, best, axis=0)

    def _promise(self) -> Floats:
        m = self._num_objectives
        front = self._values[_front_mask(self._values, m)]
        spread = np.where(self._is_measured, self._uncertainty(_ranges(front, self._values)), 0.0)
        optimistic = self._predicted - spread
        if (front[:, m:] > 0).any():  # nothing keeps the bounds yet
            scaled = optimistic[:, m:] / _ranges(self._values, self._values)[m:]
            return np.asarray(-scaled.max(axis=1))
        ahead = (front[None, :, :m] - optimistic[:, None, :m]) / _ranges(front, self._values)[:m]
        margin: Floats = ahead.max(axis=2).min(axis=1)
        chance = ndtr(-self._predicted[:, m:] / np.maximum(spread[:, m:], 1e-12)).prod(axis=1)
        return np.where(margin > 0, margin * chance, margin)

    def _uncertainty(self, ranges: Floats) -> Floats:
        """Return (c, m + b): how much the settings around differ, and more the farther they are."""
        weights = np.maximum(self._distances, CLOSEST) ** -DECAY
        weights /= weights.sum(axis=1, keepdims=True)
        centre = self._values.mean(axis=0)  # squares of large numbers would drown differences
        values, predicted = self._values - centre, self._predicted - centre
        variance = weights @ values**2 - 2 * (weights @ values) * predicted + predicted**2
        nearest = self._distances.min(axis=1, keepdims=True)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)) + UNEXPLORED * nearest * ranges)


def _interpolation(places: Floats, values: Floats) -> RBFInterpolator:
    # -r: in one dimension the straight lines between neighbours; it overshoots nowhere.
    neighbors = NUM_NEIGHBORS if len(places) > 8 * NUM_NEIGHBORS else None
    return RBFInterpolator(places, values, kernel="linear", degree=0, neighbors=neighbors)


def _filled(known: Floats, predicted: Floats) -> Floats:
    return np.where(np.isnan(known), predicted, known)


def _front_mask(values: Floats, num_objectives: int) -> NDArray[np.bool_]:
    """Mark the nondominated among those that keep the bounds; if none does, what comes closest."""
    violations = values[:, num_objectives:]
    kept = (violations <= 0).all(axis=1)
    if not kept.any():
        worst = (np.maximum(violations, 0) / _ranges(values, values)[num_objectives:]).max(axis=1)
        return np.asarray(worst == worst.min())
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[np.flatnonzero(kept)[nondominated_mask(values[kept, :num_objectives])]] = True
    return mask


def _ranges(front: Floats, values: Floats) -> Floats:
    """The front's range per column, else that of all values, else one."""
    ranges = np.ptp(front, axis=0)
    ranges = np.where(ranges > 0, ranges, np.ptp(values, axis=0))
    return np.where(ranges > 0, ranges, 1.0)
