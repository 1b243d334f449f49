"""Adaptive refinement: where it starts, which gaps it fills, bounds, batches in flight."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer.adaptive import AdaptiveSampler
from explorer.frontiers import hypervolume
from explorer.queries import Bound
from explorer.sampling import SamplingTask
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from search_spaces.space import CategoricalParameter, Config, FloatParameter, SearchSpace

DICE, MACS = Objective("dice", "maximize"), Objective("macs", "minimize")
Outcome = Mapping[str, float]


def cube(num_dims: int) -> SearchSpace:
    return SearchSpace(tuple(FloatParameter(f"phi_{i}", 0.0, 1.0) for i in range(num_dims)))


def saturating(config: Config) -> Outcome:
    """Dice that rises steeply at small phi, over a quadratic cost."""
    phi = float(config["phi_0"])
    return {"dice": 1 - np.exp(-phi / 0.05), "macs": phi**2}


def macs_of(config: Config) -> Outcome:
    return {"macs": float(config["phi_0"]) ** 2}


def explore(
    sampler: AdaptiveSampler, evaluate: Callable[[Config], Outcome | None], *, batch_size: int = 1
) -> list[Config]:
    asked: list[Config] = []
    while batch := sampler.ask(batch_size):
        sampler.tell(batch, [evaluate(config) for config in batch])
        asked += batch
    return asked


def phis(configs: list[Config]) -> list[float]:
    return [float(config["phi_0"]) for config in configs]


@pytest.mark.parametrize("num_dims", [1, 2, 3])
def test_both_ends_come_first(num_dims: int) -> None:
    asked = AdaptiveSampler(SamplingTask(cube(num_dims), (DICE,), 10)).ask(2)
    assert [set(config.values()) for config in asked] == [{0.0}, {1.0}]


def test_every_category_has_its_own_start_and_the_better_one_is_refined() -> None:
    space = SearchSpace((*cube(1), CategoricalParameter("mode", ("a", "b"))))

    def evaluate(config: Config) -> Outcome:
        shift = 0.0 if config["mode"] == "b" else -5.0
        return {**saturating(config), "dice": saturating(config)["dice"] + shift}

    sampler = AdaptiveSampler(SamplingTask(space, (DICE, MACS), 30, costs=macs_of))
    asked = explore(sampler, evaluate)
    assert [config["mode"] for config in asked[:8]] == ["a"] * 4 + ["b"] * 4
    assert sum(config["mode"] == "b" for config in asked[8:]) >= 18


def test_front_is_refined_where_its_neighbours_are_farthest_apart() -> None:
    def steep(config: Config) -> Outcome:
        phi = float(config["phi_0"])
        return {"dice": 1 - np.exp(-phi / 0.02), "macs": phi}

    def missing(asked: list[float]) -> float:
        """Hypervolume that these settings leave of the whole front's."""
        losses = np.column_stack([np.exp(-np.array(asked) / 0.02) - 1, asked])
        # From the whole front: the integral of dice over the cost, 1 - 0.02 (1 - exp(-50)).
        return 0.98 - hypervolume(losses, [0, 1])

    task = SamplingTask(cube(1), (DICE, MACS), 24, costs=lambda c: {"macs": c["phi_0"]})
    asked = phis(explore(AdaptiveSampler(task), steep))
    assert missing(asked) < 0.5 * missing(np.linspace(0, 1, 24).tolist())
    assert np.mean(np.array(asked) < 0.1) > 0.25  # of an even grid: a tenth


@pytest.mark.parametrize("costs", [None, macs_of])
@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_least_cost_with_a_bounded_quality_is_found(
    alpha: float, costs: Callable[[Config], Outcome] | None
) -> None:
    bounds = (Bound("dice", "min", alpha),)
    task = SamplingTask(cube(1), (MACS,), 30, constraints=bounds, costs=costs)
    asked = explore(AdaptiveSampler(task), saturating)
    kept = [phi for phi in phis(asked) if 1 - np.exp(-phi / 0.05) >= alpha]
    assert min(kept) ** 2 <= 1.01 * (0.05 * np.log(1 / (1 - alpha))) ** 2


def test_what_comes_closest_is_sought_while_nothing_keeps_the_bounds() -> None:
    def evaluate(config: Config) -> Outcome:
        return {"dice": 0.9 - (float(config["phi_0"]) - 0.37) ** 2, "macs": 1.0}

    bounds = (Bound("dice", "min", 0.95),)
    task = SamplingTask(cube(1), (MACS,), 25, constraints=bounds)
    asked = explore(AdaptiveSampler(task), evaluate)
    assert min(abs(phi - 0.37) for phi in phis(asked)) < 0.01


def test_batches_in_flight_stay_apart() -> None:
    sampler = AdaptiveSampler(SamplingTask(cube(1), (DICE, MACS), 40, costs=macs_of))
    first = sampler.ask(6)
    sampler.tell(first, [saturating(config) for config in first])
    pending = [sampler.ask(4) for _ in range(3)]
    everything = np.sort(phis([*first, *(config for batch in pending for config in batch)]))
    assert np.diff(everything).min() > 1e-3


def test_a_failed_region_is_left_alone() -> None:
    def evaluate(config: Config) -> Outcome | None:
        return None if 0.0 < float(config["phi_0"]) < 0.2 else saturating(config)

    sampler = AdaptiveSampler(SamplingTask(cube(1), (DICE, MACS), 40, costs=macs_of))
    asked = phis(explore(sampler, evaluate))
    assert len(asked) == 40
    assert sum(0.0 < phi < 0.2 for phi in asked) < 20


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    scale=st.sampled_from([2.0**-20, 8.0, 2.0**30]),
)
def test_units_of_an_objective_change_nothing(seed: int, sizes: list[int], scale: float) -> None:
    def run(factor: float) -> list[Config]:
        def scaled(config: Config) -> Outcome:
            return {**saturating(config), "macs": factor * saturating(config)["macs"]}

        sampler = AdaptiveSampler(SamplingTask(cube(1), (DICE, MACS), 20, seed=seed))
        asked = []
        for size in sizes:
            batch = sampler.ask(size)
            sampler.tell(batch, [scaled(config) for config in batch])
            asked += batch
        return asked

    assert run(scale) == run(1.0)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (cube(4), "one to 3 numeric conditionings, got 4; use tpe or nsga2"),
        (SearchSpace((CategoricalParameter("mode", ("a", "b")),)), "got 0; use grid"),
    ],
)
def test_other_dimensions_are_refused(space: SearchSpace, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaptiveSampler(SamplingTask(space, (DICE,), 10))
