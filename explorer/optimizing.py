"""The best setting for some validation samples: only the conditioning of frozen models varies.

With a gradient where the method has one (eq. 4 of the paper): the mean over pairs of the soft Dice
of linearly warped label maps, differentiated through the frozen network. Otherwise by asking for
the metric itself, setting by setting. Several seeds are averaged, as a query does.

Source: Hoopes, Hoffmann, Fischl, Guttag, Dalca, "HyperMorph", arXiv:2101.01035, section 3.3.
Shapes: n samples, d conditioning parameters, whose unit coordinates u in [0, 1] span the explored
ranges.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import minimize
from scipy.stats import qmc
from torch import nn

from explorer.grouping import Candidates, Group
from explorer.measurements import setting_id
from explorer.places import Place
from explorer.progress import ProgressReport
from explorer.reporting import plot_optima
from explorer.samplers import SAMPLERS
from explorer.sampling import SamplingTask, rounded
from explorer.specs import ExplorationSpec
from explorer.training import trained_model
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import CategoricalParameter, Config, SearchSpace
from trainables.base import Trainable
from trainables.hypermorph import Registration
from trainables.train_loop import evaluate_setting, evaluation_batch_size, memory_format

Array = NDArray[np.float64]

# in units of a range: settings nearer than CLOSEST are the same for all that matters
FAR, CLOSEST = 0.1, 5e-3
LEAST_GAIN = 1e-5  # of overlap, a thousandth of a Dice point
LEAST_PROMISE = 5e-4  # of overlap, by a slope that stayed what it is
DECIMALS = 4  # of unit coordinates: float32 tells no more
MAX_STEPS = 20  # of a line or of a descent from one start
GRADIENT_SHARE = 4  # of an evaluation's batch, since what a gradient needs is kept
NUM_POINTS = {"tpe": 50, "grid": 101}
NUM_GRID_POINTS_EACH = 21  # of several parameters, unless told


@dataclass(frozen=True)
class Optimum:
    """The best setting for a group of samples.

    Attributes:
        by: what the group is one of; None: all samples.
        group: its name.
        metric: that was asked for: of one label where grouped by labels.
        conditioning: the setting; None where the group has no sample.
        value: the metric at it, with labels warped to their nearest voxel.
        objective: what was maximised, or minimised, at it: with a gradient, soft Dice.
        num_pairs: samples of the group: pairs, or images.
        num_people: whose images they are.
        num_evaluations: passes of a network over all the samples, with a gradient or without.
        elapsed_s: wall-clock seconds.
    """

    by: str | None
    group: str
    metric: str
    conditioning: Config | None
    value: float | None
    objective: float | None
    num_pairs: int
    num_people: int
    num_evaluations: int
    elapsed_s: float


@dataclass(frozen=True)
class Optimisation:
    """What was asked, and the optimum of all samples before those of the groups.

    Attributes:
        exploration_id: whose models were asked.
        method: of the models.
        metric: that was optimised.
        solver: a name in `SOLVERS`.
        num_seeds: models that were averaged.
        ranges: that were searched, of numeric conditionings.
        results: never empty.
    """

    exploration_id: str
    method: str
    metric: str
    solver: str
    num_seeds: int
    ranges: dict[str, tuple[float, float]]
    results: tuple[Optimum, ...]

    def plot(self, path: str | Path) -> Path:
        """Draw the settings of the groups into a .png file; see `figures.optima`.

        Raises:
            InputError: another kind of file, or nothing to draw.
            RunError: it cannot be written.
        """
        target = Path(path)
        plot_optima(target, [asdict(one) for one in self.results], self.ranges)
        return target

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `explorer optimize --json` prints it."""
        everything = self.results[0]
        return {
            "exploration_id": self.exploration_id,
            "method": self.method,
            "metric": self.metric,
            "solver": self.solver,
            "num_pairs": everything.num_pairs,
            "num_people": everything.num_people,
            "num_seeds": self.num_seeds,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "results": [asdict(one) for one in self.results],
        }


def frozen_models(
    folder: Place, spec: ExplorationSpec, trial_ids: Sequence[str]
) -> list[tuple[Trainable, nn.Module]]:
    """The trainables and modules of an exploration's trials.

    Raises:
        InputError: a record or weights are missing or damaged.
    """
    torch.set_num_threads(spec.train.num_threads)
    return [trained_model(folder / "trials" / trial_id, spec) for trial_id in trial_ids]


class Optimizer:
    """Frozen models, the ranges that are searched, and how.

    Args:
        models: a trainable and its module, one per seed.
        space: the conditioning with the explored ranges.
        objective: a metric, and which way is better.
        solver: a name in `SOLVERS`.
        starts: where a solver with a gradient begins: settings spread over the ranges; two per
            parameter unless told.
        num_points: settings of a solver without one; of a grid, values per parameter.
        channels_last: memory format of images and features.

    Raises:
        InputError: an unknown solver or metric, numbers below one, or no gradient.
    """

    def __init__(
        self,
        models: Sequence[tuple[Trainable, nn.Module]],
        space: SearchSpace,
        objective: Objective,
        *,
        solver: str = "gradient",
        starts: int | None = None,
        num_points: int | None = None,
        channels_last: bool = False,
    ) -> None:
        self.models, self.space, self.objective = models, space, objective
        self.solver, self.starts = solver, 2 * len(space) if starts is None else starts
        self.channels_last = channels_last
        if solver not in SOLVERS:
            raise unknown_name("--solver", solver, SOLVERS)
        if self.starts < 1 or (num_points is not None and num_points < 1):
            raise InputError(
                f"starts and num_points: expected at least 1, got {self.starts} and {num_points}"
            )
        default = NUM_GRID_POINTS_EACH if len(space) > 1 else NUM_POINTS["grid"]
        self.num_points = num_points or {**NUM_POINTS, "grid": default}.get(solver, 1)
        trainable, _ = models[0]
        if objective.name not in trainable.metrics:
            raise unknown_name("metric", objective.name, trainable.metrics)
        if solver == "gradient":
            self._require_gradient(trainable)
        self.measured: dict[bytes, dict[str, dict[str, float]]] = {}  # by samples and by setting
        for _, module in models:
            module.requires_grad_(requires_grad=False)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """That are searched, of the numeric conditionings."""
        numeric = [one for one in self.space if not isinstance(one, CategoricalParameter)]
        return {one.name: (one.low, one.high) for one in numeric}

    def _require_gradient(self, trainable: Trainable) -> None:
        others = "--solver tpe and --solver grid ask for any metric of any method"
        if not isinstance(trainable, Registration):
            raise InputError(
                f"--solver gradient: what {trainable.method} gives is no differentiable function "
                f"of {', '.join(self.space.names)}; {others}"
            )
        if not trainable.overlapping(self.objective.name):
            raise InputError(
                f"--solver gradient: {self.objective.name} has no gradient, as dice has, of all "
                f"labels or of some (dice/{trainable.model.labels[0]}); {others}"
            )

    def optimize(self, group: Group) -> Optimum:
        """The best setting for a group; of equals, the one that was asked for first.

        Raises:
            InputError: the method has no such metric of a label, or no sample has a value.
        """
        trainable, _ = self.models[0]
        if group.metric not in trainable.metrics:
            raise InputError(f"--by {group.by}: {trainable.method} has no {group.metric}")
        start = time.perf_counter()
        question = Question(self, group)
        found: Config | None = None
        value = reached = None
        if len(group.samples):
            found, reached = SOLVERS[self.solver](question)
            value = question.measure(found).get(group.metric)
        return Optimum(
            by=group.by,
            group=group.name,
            metric=group.metric,
            conditioning=found,
            value=value,
            objective=reached,
            num_pairs=len(group.samples),
            num_people=group.num_people,
            num_evaluations=question.num_evaluations,
            elapsed_s=time.perf_counter() - start,
        )


@dataclass
class Question:
    """What a group asks of the models; every answer is kept, and counted once.

    What was measured on the same samples for another group is known already.
    """

    optimizer: Optimizer
    group: Group
    num_evaluations: int = 0
    slopes: dict[tuple[float, ...], tuple[float, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measured = self.optimizer.measured.setdefault(self.group.rows.tobytes(), {})

    @property
    def objective(self) -> Objective:
        """The metric of the group, and which way is better."""
        return Objective(self.group.metric, self.optimizer.objective.direction)

    def measure(self, setting: Config) -> dict[str, float]:
        """Means over seeds and samples of every metric that is defined for one of them."""
        key = setting_id(setting)
        if key not in self.measured:
            layout = self.optimizer.channels_last
            values = [
                evaluate_setting(
                    trainable, module, self.group.samples, setting, channels_last=layout
                )
                for trainable, module in self.optimizer.models
            ]
            self.num_evaluations += len(values)
            means = {name: [_mean(one[name]) for one in values] for name in values[0]}
            self.measured[key] = {
                name: float(np.mean(own)) for name, own in means.items() if np.isfinite(own).all()
            }
        return self.measured[key]

    def loss(self, u: Array) -> tuple[float, Array]:
        """The objective as it is minimised, and its gradient, at unit coordinates (d,)."""
        key = tuple(float(one) for one in np.round(u, 2 * DECIMALS))
        if key not in self.slopes:
            found = [self._overlap(t, m, u) for t, m in self.optimizer.models]
            self.num_evaluations += len(found)
            value = float(np.mean([value for value, _ in found]))
            gradient = np.mean([gradient for _, gradient in found], axis=0)
            self.slopes[key] = self.objective.to_loss(value), self.objective.to_loss(gradient)
        return self.slopes[key]

    def _overlap(self, trainable: Trainable, module: nn.Module, u: Array) -> tuple[float, Array]:
        """Mean soft Dice over the samples, and its gradient (d,)."""
        assert isinstance(trainable, Registration)
        samples, device = self.group.samples, next(module.parameters()).device
        low, high = (self._features(end) for end in (0.0, 1.0))
        units = torch.tensor(u, dtype=torch.float32, device=device, requires_grad=True)
        layout = memory_format(self.optimizer.channels_last, samples.images.ndim - 2)
        labels = trainable.overlapping(self.group.metric)
        size = max(1, evaluation_batch_size(samples.images.shape[2:]) // GRADIENT_SHARE)
        total, count = 0.0, 0
        for first in range(0, len(samples), size):
            images, masks = samples.batch(slice(first, first + size))
            features = torch.lerp(low.to(device), high.to(device), units)
            values = trainable.overlap(
                trainable.network_at(module, features),
                torch.from_numpy(images).to(device).contiguous(memory_format=layout),
                torch.from_numpy(masks).to(device).long(),
                labels,
            )
            values = values[~values.isnan()]  # pairs with none of the labels
            if len(values):
                values.sum().backward()
            total, count = total + float(values.detach().double().sum()), count + len(values)
        if not count or units.grad is None:
            raise InputError(f"{self.group.metric}: none of the pairs has one of its labels")
        return total / count, units.grad.double().cpu().numpy() / count

    def _features(self, unit: float) -> torch.Tensor:
        """What the network reads at an end of the explored ranges, between which it is affine."""
        space = self.optimizer.space
        trainable, _ = self.optimizer.models[0]
        (end,) = space.decode(np.full((1, len(space)), unit))
        values = trainable.problem.space.conditioning.features([end])[0]
        return torch.tensor(values, dtype=torch.float32)


def optimize_all(
    optimizer: Optimizer,
    candidates: Candidates,
    *,
    by: str | None,
    num_samples: int,
    progress: ProgressReport,
) -> tuple[Optimum, ...]:
    """The optimum of all samples, and then of every group.

    Args:
        optimizer: what is asked.
        candidates: samples of validation.
        by: `label`, `subject`, a column; None for no groups.
        num_samples: of each group at most.
        progress: shown per group.

    Raises:
        InputError: as `Candidates.groups` does.
    """
    metric = optimizer.objective.name
    groups = [candidates.everything(metric, num_samples)]
    if by is not None:
        groups += candidates.groups(by, metric, num_samples)
    progress.phase("optimizing", len(groups))
    found = []
    for group in groups:
        found.append(optimizer.optimize(group))
        progress.update(group.name, 1.0, f"{found[-1].num_evaluations} evaluations")
    return tuple(found)


def _by_gradient(question: Question) -> tuple[Config, float]:
    space, starts = question.optimizer.space, question.optimizer.starts
    if len(space) == 1:
        minimise_line(lambda u: on_line(question, u), num_starts=starts)
        for end in (0.0, 1.0):  # no slope tells of a jump there, as where a field vanishes
            on_line(question, end)
    else:
        power = math.ceil(math.log2(starts + 1))
        points = qmc.Sobol(len(space), scramble=False).random_base2(power)  # the first is a corner
        for start in points[1 : starts + 1]:
            minimize(
                question.loss,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, 1.0)] * len(space),
                options={"maxiter": MAX_STEPS, "ftol": LEAST_GAIN, "gtol": 1e-4},
            )
    best = min(question.slopes, key=lambda u: question.slopes[u][0])
    (setting,) = space.decode(np.round([best], DECIMALS))  # and to the nearest whole number
    setting = rounded(space, setting)
    loss, _ = question.loss(space.encode([setting])[0])
    return setting, question.objective.from_loss(loss)


def on_line(question: Question, u: float) -> tuple[float, float]:
    """The objective of one conditioning as it is minimised, and its slope, at a unit coordinate."""
    loss, gradient = question.loss(np.array([u]))
    return loss, float(gradient[0])


def minimise_line(loss: Callable[[float], tuple[float, float]], *, num_starts: int = 2) -> float:
    """Where a function is least on [0, 1], in few calls.

    Two neighbouring points with their slopes give a cubic; the lowest of all the cubics' minima is
    looked at next, until none lies lower than what was seen, or all lie beside it; far from all
    that was seen, hardly higher is enough. Outside the outermost points, where a slope promises
    more: at the root of the line through the last two slopes, at least half of the way to the end.
    A cubic knows little of a plateau beside a cliff: as long as the lowest point's slope promises
    more on its way to the next point, their middle is looked at.

    Args:
        loss: value and slope at a place; need not be convex.
        num_starts: places that are looked at first, the middles of as many equal parts; at
            least 1. A valley that no slope tells of is not found.
    """
    seen = {float(u): loss(float(u)) for u in (np.arange(num_starts) + 0.5) / num_starts}
    for _ in range(MAX_STEPS):
        places = np.array(sorted(seen))
        values, slopes = np.array([seen[u] for u in places.tolist()]).T
        guesses = [*_turns(places, values, slopes), *_outside(places, values, slopes)]
        if guesses:
            _, place = min(guesses)
        else:
            row = int(values.argmin())
            other = row + 1 if slopes[row] < 0 else row - 1
            width = abs(places[other] - places[row]) if 0 <= other < len(places) else 0.0
            if width < 2 * CLOSEST or abs(slopes[row]) * width < LEAST_PROMISE:
                break
            place = (places[row] + places[other]) / 2
        place = round(float(place), DECIMALS)
        if place in seen:
            break
        seen[place] = loss(place)
    return min(seen, key=lambda u: seen[u][0])


def _turns(places: Array, values: Array, slopes: Array) -> list[tuple[float, float]]:
    """Where the cubics between neighbours may lie lower than all that was seen: value, place."""
    if len(places) < 2:
        return []
    cubics = CubicHermiteSpline(places, values, slopes)
    turns = cubics.derivative().roots(extrapolate=False)
    turns = turns[np.isfinite(turns)]
    distances = np.abs(turns[:, None] - places).min(axis=1)
    gains = values.min() - cubics(turns)
    is_unknown = (distances >= FAR) & (gains > -LEAST_PROMISE)
    turns = turns[is_unknown | ((distances >= CLOSEST) & (gains > LEAST_GAIN))]
    return list(zip(cubics(turns).tolist(), turns.tolist(), strict=True))


def _outside(places: Array, values: Array, slopes: Array) -> list[tuple[float, float]]:
    """Where the function may fall below all that was seen on its way to an end: value, place."""
    guesses = []
    for end, row, inner in ((0.0, 0, 1), (1.0, -1, -2)):
        gain = -slopes[row] * (end - places[row])  # at the end, if the slope stays what it is
        if gain < LEAST_PROMISE or values[row] - gain > values.min() - LEAST_PROMISE:
            continue
        place = (places[row] + end) / 2
        if len(places) > 1 and slopes[row] / slopes[inner] < 1 and slopes[inner] * slopes[row] > 0:
            step = slopes[row] * (places[row] - places[inner]) / (slopes[inner] - slopes[row])
            place = float(np.clip(places[row] + step, *sorted((place, end))))
        guesses.append((values[row] + slopes[row] * (place - places[row]) / 2, place))
    return guesses


def _by_asking(question: Question, *, sampler: str) -> tuple[Config, float]:
    """The best of a sampler's settings, by the metric itself."""
    optimizer, objective = question.optimizer, question.objective
    task = SamplingTask(optimizer.space, (objective,), optimizer.num_points)
    source = SAMPLERS[sampler](task)
    best: tuple[float, Config] | None = None
    while settings := source.ask(1):
        metrics = question.measure(settings[0])
        if objective.name not in metrics:
            raise InputError(f"{objective.name}: none of the samples has a value")
        source.tell(settings, [metrics])
        loss = objective.to_loss(metrics[objective.name])
        if best is None or loss < best[0]:
            best = loss, settings[0]
    assert best is not None
    return best[1], objective.from_loss(best[0])


def _mean(values: Array) -> float:
    """Mean of the values that are defined; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


SOLVERS: dict[str, Callable[[Question], tuple[Config, float]]] = {
    "gradient": _by_gradient,
    "tpe": partial(_by_asking, sampler="tpe"),
    "grid": partial(_by_asking, sampler="grid"),
}
