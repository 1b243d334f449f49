"""What every entry of SAMPLERS must do."""

import copy
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from explorer.queries import Bound
from explorer.samplers import SAMPLERS
from explorer.sampling import Sampler, SamplingTask
from search_spaces.problem import Objective
from search_spaces.space import (
    CategoricalParameter,
    Config,
    FloatParameter,
    IntParameter,
    SearchSpace,
)

OBJECTIVES = (Objective("dice", "maximize"), Objective("macs", "minimize"))
SPACES = {
    "float": SearchSpace((FloatParameter("phi", 0.0, 0.5),)),
    "log": SearchSpace((FloatParameter("phi", 1e-3, 10.0, log=True),)),
    "mixed": SearchSpace(
        (
            FloatParameter("phi", -1.0, 1.0),
            IntParameter("k", 1, 4),
            CategoricalParameter("mode", ("a", "b")),
        )
    ),
}
# A grid of so many values per parameter has about as many settings as the others are asked for.
NUM_GRID_VALUES = {"float": 40, "log": 40, "mixed": 5}
# Gaussian processes take long: after ten told settings, which three batches use up, one learns.
NUM_SETTINGS = {"gp": 22}

SLOW = pytest.mark.timeout(60)  # loads torch, and fits

pytestmark = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) if name == "gp" else name for name in SAMPLERS]
)


@pytest.fixture(params=SPACES)
def task(request: pytest.FixtureRequest, name: str) -> SamplingTask:
    return SamplingTask(
        SPACES[request.param],
        OBJECTIVES,
        NUM_GRID_VALUES[request.param] if name == "grid" else NUM_SETTINGS.get(name, 40),
        seed=3,
        constraints=(Bound("dice", "min", 0.3),),
    )


def measure(config: Config) -> Mapping[str, float] | None:
    phi = float(config["phi"])
    if 0.20 < phi < 0.22:
        return None  # a failed evaluation
    return {"dice": math.sin(phi) ** 2 + (config.get("mode") == "a"), "macs": math.exp(-phi)}


def explore(
    sampler: Sampler, *, num_workers: int, batch_size: int = 7, shuffle_seed: int = 0
) -> Iterator[list[Config]]:
    """Ask as a driver does: workers end in any order, batches are told in the order asked."""
    rng = random.Random(shuffle_seed)
    asked = [sampler.ask(batch_size) for _ in range(num_workers)]
    yield from asked
    running, done, oldest = set(range(num_workers)), set(), 0
    while running:
        finished = rng.choice(sorted(running))
        running.remove(finished)
        done.add(finished)
        while oldest in done:
            sampler.tell(asked[oldest], [measure(config) for config in asked[oldest]])
            oldest += 1
            asked.append(sampler.ask(batch_size))
            yield asked[-1]
            if asked[-1]:
                running.add(len(asked) - 1)


def settings(name: str, task: SamplingTask, **options: int) -> list[Config]:
    batches = explore(SAMPLERS[name](task), **({"num_workers": 2} | options))
    return [config for batch in batches for config in batch]


def test_settings_are_valid_distinct_and_as_many_as_asked(name: str, task: SamplingTask) -> None:
    asked = settings(name, task)
    assert len(asked) == NUM_SETTINGS.get(name, 40)
    assert [task.space.validate(config) for config in asked] == asked
    assert all(list(config) == list(task.space.names) for config in asked)
    assert len({tuple(config.values()) for config in asked}) == len(asked)
    floats = [value for config in asked for value in config.values() if isinstance(value, float)]
    assert all(value == round(value, 12) for value in floats)


def test_same_seed_same_settings_whatever_the_timing(name: str, task: SamplingTask) -> None:
    first, *others = (settings(name, task, shuffle_seed=seed) for seed in range(3))
    assert others == [first, first]


def test_another_seed_gives_other_settings(name: str, task: SamplingTask) -> None:
    others = settings(name, replace(task, seed=4))
    assert (others == settings(name, task)) == (name == "grid")


def test_resumed_exploration_goes_on_as_it_would_have(
    name: str, task: SamplingTask, tmp_path: Path
) -> None:
    with_journal = replace(task, journal_path=tmp_path / "study.journal")
    whole = list(explore(SAMPLERS[name](task), num_workers=2))
    interrupted = explore(SAMPLERS[name](with_journal), num_workers=2, shuffle_seed=1)
    recorded = [next(interrupted) for _ in range(3)]
    interrupted.close()
    resumed = list(explore(SAMPLERS[name](with_journal), num_workers=2, shuffle_seed=2))
    assert recorded == whole[:3]
    assert resumed == whole


def test_inadmissible_settings_are_never_asked_for(name: str, task: SamplingTask) -> None:
    picky = replace(task, admissible=lambda config: float(config["phi"]) <= 0.3)
    asked = settings(name, picky)
    assert asked
    assert max(float(config["phi"]) for config in asked) <= 0.3


def test_finite_space_is_exhausted_without_repeats(name: str) -> None:
    space = SearchSpace((IntParameter("phi", 1, 3), CategoricalParameter("mode", ("a", "b"))))
    task = SamplingTask(space, OBJECTIVES, 30, admissible=lambda c: c != {"phi": 2, "mode": "b"})
    asked = settings(name, task, num_workers=1)
    assert {tuple(config.values()) for config in asked} == {
        (1, "a"), (1, "b"), (2, "a"), (3, "a"), (3, "b"),
    }  # fmt: skip
    assert len(asked) == 5


def test_told_settings_and_outcomes_stay_untouched(name: str, task: SamplingTask) -> None:
    sampler = SAMPLERS[name](task)
    batch = sampler.ask(5)
    outcomes = [measure(config) for config in batch]
    before = copy.deepcopy((batch, outcomes))
    sampler.tell(batch, outcomes)
    assert (batch, outcomes) == before
