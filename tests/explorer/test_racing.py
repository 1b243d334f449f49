"""When a setting may be given up, and how often wrongly."""

import numpy as np
import pytest
from scipy import stats

from explorer.queries import Bound
from explorer.racing import Race, Rival, mean_over_seeds
from search_spaces.problem import Objective
from search_spaces.rescaling import rescaling_space

DICE = Objective("dice", "maximize")
MACS = Objective("macs", "minimize")


def race(**changes):
    defaults = {
        "space": rescaling_space(),
        "objectives": (DICE, MACS),
        "bounds": (),
        "known_costs": frozenset({"macs"}),
        "num_samples": 40,
        "block_size": 10,
        "confidence": 0.95,
        "margin": 0.0,
        "seed": 0,
    }
    return Race(**(defaults | changes))


def rival(dice, macs=1.0, phi=0.0):
    return Rival({"phi": phi}, {"macs": macs}, {"dice": np.asarray(dice, dtype=np.float64)})


def noise(seed, scale=0.05):
    return np.random.default_rng(seed).normal(0, scale, 40)


def is_lost(rules, dice, seen, rivals, *, macs=1.0):
    return rules.is_lost({"macs": macs}, {"dice": dice[seen]}, seen, rivals)


def test_blocks_part_the_images_in_an_order_from_the_seed():
    blocks = race(num_samples=25, block_size=10).blocks
    assert [len(block) for block in blocks] == [10, 10, 5]
    assert sorted(np.concatenate(blocks).tolist()) == list(range(25))
    others = race(num_samples=25, block_size=10, seed=1).blocks
    assert np.concatenate(blocks).tolist() != np.concatenate(others).tolist()


def test_much_worse_setting_is_lost_to_one_of_equal_cost():
    seen = np.arange(10)
    assert is_lost(race(), 0.5 + noise(1), seen, [rival(0.9 + noise(2))])


def test_setting_is_never_lost_to_a_costlier_one():
    seen = np.arange(30)
    assert not is_lost(race(), 0.5 + noise(1), seen, [rival(0.9 + noise(2), 2.0)], macs=1.0)


def test_without_rivals_and_bounds_nothing_is_lost():
    assert not is_lost(race(), np.zeros(40), np.arange(30), [])


def test_few_images_decide_nothing():
    assert not is_lost(race(block_size=5), 0.1 + noise(1), np.arange(5), [rival(0.9 + noise(2))])


@pytest.mark.parametrize("beyond", [-1e-9, 1e-9])
@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_verdict_turns_at_the_confidence_limit_of_the_paired_difference(beyond, margin):
    rules, seen = race(margin=margin), np.arange(20)
    own, other = 0.7 + noise(3), 0.7 + noise(4)
    differences = other[seen] - own[seen]
    risk = 0.05 / 4  # one test, the second look
    error = differences.std(ddof=1) * np.sqrt((1 - 20 / 40) / 20)
    limit = differences.mean() - stats.t.ppf(1 - risk, 19) * error
    assert is_lost(rules, own, seen, [rival(other - limit - margin + beyond)]) == (beyond > 0)


@pytest.mark.parametrize("beyond", [-1e-9, 1e-9])
def test_neighbour_takes_the_place_of_the_rival_in_what_is_estimated(beyond):
    rules, seen = race(), np.arange(20)
    own = 0.7 + noise(3)
    near, far = own + noise(4, 0.002), 0.7 + noise(5)
    differences = near[seen] - own[seen]
    error = differences.std(ddof=1) * np.sqrt((1 - 20 / 40) / 20)
    limit = differences.mean() - stats.t.ppf(1 - 0.05 / 4, 19) * error - near.mean()
    far = far - far.mean() - limit + beyond
    arguments = ({"macs": 1.0}, {"dice": own[seen]}, seen, [rival(far)])
    assert rules.is_lost(*arguments, rival(near)) == (beyond > 0)
    assert not rules.is_lost(*arguments)  # the rival alone differs too much from image to image


def test_neighbour_serves_bounds_too():
    rules = race(bounds=(Bound("dice", "min", 0.72),))
    own, seen = 0.7 + noise(3), np.arange(10)
    arguments = ({"macs": 1.0}, {"dice": own[seen]}, seen, [])
    assert not rules.is_lost(*arguments)
    assert rules.is_lost(*arguments, rival(own + noise(4, 0.001)))


def test_nearest_is_the_first_of_the_nearest_in_unit_coordinates():
    rules = race()
    rivals = [rival(np.zeros(40), phi=phi) for phi in (0.1, 0.3, 0.1, 0.4)]
    near = rules.nearest([{"phi": 0.05}, {"phi": 0.21}, {"phi": 0.5}], rivals)
    assert [id(one) for one in near] == [id(rivals[k]) for k in (0, 1, 3)]
    assert rules.nearest([{"phi": 0.1}], []) == []


def test_bound_that_is_surely_missed_ends_the_race():
    rules = race(bounds=(Bound("dice", "min", 0.8),))
    seen = np.arange(10)
    assert is_lost(rules, 0.5 + noise(1), seen, [])
    assert not is_lost(rules, 0.79 + noise(1), seen, [])


def test_every_measured_objective_must_be_worse():
    surface = Objective("surface", "maximize")
    rules = race(objectives=(DICE, surface, MACS))
    seen = np.arange(20)

    def values(dice, other):
        return {"dice": dice + noise(5), "surface": other + noise(6)}

    better = Rival({"phi": 0.0}, {"macs": 1.0}, {"dice": 0.9 + noise(7), "surface": 0.9 + noise(8)})
    for other, expected in ((0.5, True), (0.95, False)):
        own = {name: v[seen] for name, v in values(0.5, other).items()}
        assert rules.is_lost({"macs": 1.0}, own, seen, [better]) == expected


def test_undefined_images_are_left_out():
    other = 0.9 + noise(2)
    other[:5] = np.nan
    assert is_lost(race(), 0.5 + noise(1), np.arange(20), [rival(other)])
    assert not is_lost(race(), 0.5 + noise(1), np.arange(10), [rival(other)])  # five are left


@pytest.mark.parametrize("block_size", [5, 10])
def test_wrong_verdicts_are_rarer_than_the_confidence_says(block_size):
    generator = np.random.default_rng(0)
    wrong = 0
    for seed in range(400):
        rules = race(block_size=block_size, seed=seed)
        own, other = generator.normal(0.8, 0.1, (2, 40))
        own += (other - own).mean() + 1e-9  # on all images together it is as good
        blocks = rules.blocks
        seen = [np.concatenate(blocks[: k + 1]) for k in range(len(blocks))]
        near = rival(own + generator.normal(0, 0.01, 40)) if seed % 2 else None
        wrong += any(
            rules.is_lost({"macs": 1.0}, {"dice": own[images]}, images, [rival(other)], near)
            for images in seen
        )
    assert wrong <= stats.binom.ppf(0.999, 400, 0.05)


def test_rivals_are_the_front_of_those_within_the_bounds():
    good, cheap = rival(np.full(40, 0.9), 2.0), rival(np.full(40, 0.8), 1.0)
    twin, dominated = rival(np.full(40, 0.9), 2.0), rival(np.full(40, 0.7), 2.0)
    kept = race().keep_rivals([dominated, good, twin, cheap])
    assert [id(one) for one in kept] == [id(good), id(cheap)]
    bounded = race(bounds=(Bound("dice", "min", 0.85),))
    assert bounded.keep_rivals([cheap, good]) == [good]
    assert bounded.keep_rivals([cheap]) == []


def test_seeds_are_averaged_where_they_are_defined():
    seeds = [{"dice": np.array([0.2, np.nan, np.nan])}, {"dice": np.array([0.4, 0.6, np.nan])}]
    np.testing.assert_allclose(mean_over_seeds(seeds)["dice"], [0.3, 0.6, np.nan], rtol=1e-12)
