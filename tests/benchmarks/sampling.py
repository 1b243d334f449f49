"""Evaluations that samplers need: for the front of a dense grid, and for one constrained answer.

Samplers are driven one setting at a time over a table that was recorded before, linearly
interpolated between its grid points. EXPLORER_DENSE_TABLES names such tables: folders of finished
explorations by `grid`, separated by `:`. Without it, an analytic stand-in takes their place: the
costs are those of the real networks, the Dice is invented.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from explorer.frontiers import hypervolume, nondominated_mask
from explorer.measurements import columns_of
from explorer.queries import Bound
from explorer.samplers import SAMPLERS, NSGA2Sampler
from explorer.sampling import Sampler, SamplingTask
from explorer.store import measurements_store
from search_spaces.problem import Objective
from search_spaces.space import Config, FloatParameter, SearchSpace
from trainables.scale_space import ScaleSpaceSegmentation, SegmentationModel

DICE, MACS = Objective("dice", "maximize"), Objective("macs", "minimize")
SEEDS = range(10)
SHARE = 0.99  # of the dense grid's hypervolume
MARGIN = 0.01  # in multiply-adds, of the dense scan's answer
BUDGET = {1: 200, 2: 300, 3: 300}  # evaluations after which a run counts as failed
REACHES = {"50 %": 0.5, "90 %": 0.9, "infeasible": 1.1}  # α as a share of the range of Dice
SLOW = {"gp": 40}  # evaluations of samplers that take tenths of a second each
VARIABLE = "EXPLORER_DENSE_TABLES"


@dataclass(frozen=True)
class Landscape:
    """What there is to find.

    Attributes:
        name: for the tables, with where the values come from.
        space: d parameters.
        evaluate: metrics and costs of a setting.
        dense: (n, 2) losses in Dice and multiply-adds on the dense grid.
    """

    name: str
    space: SearchSpace
    evaluate: Callable[[Config], Mapping[str, float]]
    dense: np.ndarray

    def costs(self, config: Config) -> dict[str, float]:
        return {"macs": self.evaluate(config)["macs"]}


def measure() -> dict[str, list[dict[str, Any]]]:
    """Evaluations to 99 % of the dense grid's hypervolume, and to 1 % of Eq. 3's multiply-adds."""
    folders = [Path(one) for one in os.environ.get(VARIABLE, "").split(":") if one]
    landscapes = [recorded(one) for one in folders] or [stand_in(1), stand_in(3)]
    return {
        "front": list(itertools.chain.from_iterable(map(front_rows, landscapes))),
        "eq3": list(
            itertools.chain.from_iterable(
                eq3_rows(one) for one in landscapes if len(one.space) == 1
            )
        ),
    }


def front_rows(landscape: Landscape) -> list[dict[str, Any]]:
    """By sampler: evaluations until the hypervolume is SHARE of the dense grid's.

    Two reference points: `worst` has the worst value of each objective on the whole grid, as
    `explorer frontier --compare` has it; `front` lies a tenth of the front's ranges beyond its
    worst values, so that both ends of the front count.
    """
    dense = landscape.dense
    front = dense[nondominated_mask(dense)]
    worst = {"worst": dense.max(axis=0), "front": front.max(axis=0) + 0.1 * np.ptp(front, axis=0)}
    makers: dict[str, Callable[[SamplingTask], Sampler]] = {
        "random": SAMPLERS["random"],
        "sobol": SAMPLERS["sobol"],
        "tpe": SAMPLERS["tpe"],
        **{f"nsga2 {size}": partial(NSGA2Sampler, population_size=size) for size in (10, 20, 50)},
        "adaptive": SAMPLERS["adaptive"],
    }
    rows = []
    for name, make in makers.items():
        runs = [evaluations_to_front(landscape, make, seed, worst) for seed in SEEDS]
        rows.append(
            {
                "landscape": landscape.name,
                "dense_points": len(dense),
                "on_front": len(front),
                "sampler": name,
                **{f"median_{ref}": median([run[ref] for run in runs]) for ref in worst},
                **{f"range_{ref}": extremes([run[ref] for run in runs]) for ref in worst},
            }
        )
    return rows


def evaluations_to_front(
    landscape: Landscape,
    make: Callable[[SamplingTask], Sampler],
    seed: int,
    ref_points: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Evaluations until SHARE of each hypervolume was reached; infinite when it never was."""
    goals = {name: SHARE * hypervolume(landscape.dense, ref) for name, ref in ref_points.items()}
    found = dict.fromkeys(goals, np.inf)
    front = np.empty((0, 2))
    for count, outcome in enumerate(outcomes(landscape, make, seed, (DICE, MACS)), start=1):
        front = np.vstack([front, losses_of(outcome)])
        front = front[nondominated_mask(front)]
        for name, goal in goals.items():
            if found[name] == np.inf and hypervolume(front, ref_points[name]) >= goal:
                found[name] = count
        if max(found.values()) < np.inf:
            break
    return found


def eq3_rows(landscape: Landscape) -> list[dict[str, Any]]:
    """By α and sampler: evaluations until φ* has the scan's fewest multiply-adds, or 1 % more.

    Nothing is feasible for the last α: its rows count the settings until one comes within 0.001
    of the scan's best Dice. `grid` is the scan itself, from small φ to large.
    """
    dice, macs = -landscape.dense[:, 0], landscape.dense[:, 1]
    makers: dict[str, Callable[[SamplingTask], Sampler]] = {**SAMPLERS}
    makers["grid"] = partial(grid_up_to, 501)
    rows = []
    for title, reach in REACHES.items():
        alpha = float(dice.min() + reach * np.ptp(dice))
        kept = dice >= alpha
        limit = float(macs[kept].min() * (1 + MARGIN)) if kept.any() else np.inf
        least = alpha if kept.any() else float(dice.max()) - 1e-3
        for name, make in makers.items():
            budget, counts = SLOW.get(name, BUDGET[1]), []
            for seed in SEEDS[:1] if name == "grid" else SEEDS:
                bounds = (Bound("dice", "min", alpha),)
                told = outcomes(landscape, make, seed, (MACS,), bounds)
                good = (
                    count
                    for count, outcome in enumerate(itertools.islice(told, budget), start=1)
                    if outcome["dice"] >= least and outcome["macs"] <= limit
                )
                counts.append(next(good, np.inf))
            rows.append(
                {
                    "landscape": landscape.name,
                    "alpha": f"{title}: {alpha:.4f}",
                    "sampler": name,
                    "num_seeds": len(counts),
                    "median": median(counts),
                    "range": extremes(counts),
                }
            )
    return rows


def grid_up_to(num_points: int, task: SamplingTask) -> Sampler:
    """The dense scan itself, in its order."""
    return SAMPLERS["grid"](SamplingTask(task.space, task.objectives, num_points))


def outcomes(
    landscape: Landscape,
    make: Callable[[SamplingTask], Sampler],
    seed: int,
    objectives: tuple[Objective, ...],
    constraints: tuple[Bound, ...] = (),
) -> Any:
    """Ask for one setting at a time, tell what it gives, and pass that on."""
    task = SamplingTask(
        landscape.space,
        objectives,
        BUDGET[len(landscape.space)],
        seed=seed,
        constraints=constraints,
        costs=landscape.costs,
    )
    with warnings.catch_warnings(action="ignore"):
        sampler = make(task)
        while asked := sampler.ask(1):
            outcome = landscape.evaluate(asked[0])
            sampler.tell(asked, [outcome])
            yield outcome


def recorded(folder: Path) -> Landscape:
    """The validation table of a finished exploration by `grid`; seeds are averaged."""
    columns = columns_of(measurements_store(folder).load())
    names = sorted(name for name in columns if name.startswith("conditioning/"))
    amortised = columns["method"][0]
    kept = (columns["split"] == "val") & (columns["method"] == amortised)
    places = np.column_stack([columns[name][kept].astype(float) for name in names])
    axes = [np.unique(column) for column in places.T]
    index = tuple(np.searchsorted(a, c) for a, c in zip(axes, places.T, strict=True))
    values = {}
    for objective, column in ((DICE, "metric/dice"), (MACS, "cost/macs")):
        sums, counts = np.zeros([len(a) for a in axes]), np.zeros([len(a) for a in axes])
        np.add.at(sums, index, columns[column][kept].astype(float))
        np.add.at(counts, index, 1)
        if not counts.all():
            raise SystemExit(f"{folder}: expected a full grid, found {int((counts > 0).sum())}")
        values[objective.name] = sums / counts
    keys = [name.removeprefix("conditioning/") for name in names]
    space = SearchSpace(
        tuple(FloatParameter(k, float(a[0]), float(a[-1])) for k, a in zip(keys, axes, strict=True))
    )
    lookups = {name: RegularGridInterpolator(axes, table) for name, table in values.items()}

    def evaluate(config: Config) -> dict[str, float]:
        place = [float(config[key]) for key in keys]
        return {name: float(lookup(place)[0]) for name, lookup in lookups.items()}

    dense = np.column_stack([-values["dice"].ravel(), values["macs"].ravel()])
    return Landscape(f"{folder.name} (recorded)", space, evaluate, dense)


def stand_in(num_factors: int) -> Landscape:
    """Dice that collapses where features get tiny and saturates, over the costs of a real U-Net.

    A U-Net of 16 features at 64 × 64: four downsampling steps with one φ in [0, 0.5], or as many
    steps as factors, each in [0, 1]. Dice follows the rounded sizes, and carries a smooth ripple
    of standard deviation 0.002, always the same.
    """
    levels = 4 if num_factors == 1 else num_factors
    model = ScaleSpaceSegmentation(
        "sshn",
        SegmentationModel(
            in_channels=3,
            labels=("nucleus", "cytoplasm"),
            size=(64, 64),
            encoder_widths=(16,) * (levels + 1),
            decoder_widths=(16,) * levels,
            num_factors=num_factors,
        ),
    )
    high = 0.5 if num_factors == 1 else 1.0
    space = model.space.narrowed(dict.fromkeys(model.space.names, (0.0, high)))
    rng = np.random.default_rng(0)
    waves = rng.normal(0.0, 2 * np.pi / high, (64, num_factors))
    phases = rng.uniform(0.0, 2 * np.pi, 64)
    shares, scales = np.array([0.022, 0.012, 0.008, 0.004]), np.array([4.0, 3.0, 2.0, 2.0])

    @cache
    def at(place: tuple[float, ...]) -> dict[str, float]:
        config: Config = dict(zip(space.names, place, strict=True))
        sizes = np.maximum(1, np.round(64 * np.cumprod(model.factors(config))))
        lost = shares[:levels] * np.exp(-(sizes - 1) / scales[:levels])
        ripple = 0.002 * np.sqrt(2 / 64) * np.cos(waves @ place + phases).sum()
        # Large features everywhere leave the deepest level blind to context.
        blind = 0.02 * (sizes[0] / 64) ** 2 + 0.02 * sizes[-1] / 64
        return {"dice": float(0.945 - lost.sum() - blind + ripple), **model.costs(config)}

    def evaluate(config: Config) -> dict[str, float]:
        return at(tuple(float(value) for value in config.values()))

    num_points = 501 if num_factors == 1 else 11
    axes = [np.linspace(0.0, high, num_points)] * num_factors
    grid = [
        evaluate(dict(zip(space.names, map(float, row), strict=True)))
        for row in itertools.product(*axes)
    ]
    dense = np.array([losses_of(outcome) for outcome in grid])
    return Landscape(f"{num_factors}-D analytic stand-in", space, evaluate, dense)


def losses_of(outcome: Mapping[str, float]) -> list[float]:
    return [objective.to_loss(outcome[objective.name]) for objective in (DICE, MACS)]


def median(counts: list[float]) -> float | str:
    value = float(np.median(counts))
    return value if np.isfinite(value) else "not reached"


def extremes(counts: list[float]) -> str:
    return "..".join(
        "never" if count == np.inf else f"{count:g}" for count in (min(counts), max(counts))
    )
