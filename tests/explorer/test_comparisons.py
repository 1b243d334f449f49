"""Statistics between methods: against closed forms, t intervals and hand-made tables."""

import math

import numpy as np
import pytest
from scipy import stats

from explorer.comparisons import (
    compare,
    in_best_ways,
    method_costs,
    paired_difference,
    paired_differences,
)
from explorer.measurements import setting_id
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from tests.conftest import columns_of, row

DICE = Objective("dice", "maximize")
MACS = Objective("macs", "minimize", "MAC")


def sample(method, phi, image, dice, *, seed=0):
    return {
        "trial_id": f"{method}-s{seed}",
        "method": method,
        "seed": seed,
        "split": "test",
        "setting_id": f"phi{phi}",
        "sample_id": image,
        "conditioning/phi": phi,
        "metric/dice": dice,
    }


def normal_pair(rng, *, num_images=60, num_seeds=1, difference=0.0):
    """Images of different difficulty, the same for both methods; seeds add their own error."""
    images = rng.normal(0.8, 0.1, num_images)
    first, second = (
        images
        + rng.normal(0, 0.03, (num_seeds, num_images))
        + rng.normal(0, 0.01 if num_seeds > 1 else 0, (num_seeds, 1))
        for _ in range(2)
    )
    return first + difference, second


# The paired difference


def test_constant_difference_has_no_spread():
    second = np.random.default_rng(0).random((1, 40))
    mean, low, high = paired_difference(second + 0.25, second)
    np.testing.assert_allclose([mean, low, high], 0.25, rtol=1e-9)


def test_difference_is_that_of_the_means():
    rng = np.random.default_rng(1)
    first, second = rng.random((3, 20)), rng.random((2, 20))
    mean, low, high = paired_difference(first, second)
    assert mean == pytest.approx(first.mean() - second.mean(), rel=1e-12)
    assert low < mean < high


def test_one_seed_gives_the_t_interval_of_the_images():
    rng = np.random.default_rng(2)
    first, second = normal_pair(rng, num_images=200, difference=0.01)
    gaps = (first - second)[0]
    half = stats.t.ppf(0.975, 199) * gaps.std(ddof=1) / math.sqrt(200)
    mean, low, high = paired_difference(first, second)
    # the bootstrap of 200 images with 10,000 resamples: ends within 5 % of the half width
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.05 * half)


def test_pairing_takes_the_difficulty_of_images_out():
    rng = np.random.default_rng(3)
    first, second = normal_pair(rng, num_images=100)
    _, low, high = paired_difference(first, second)
    shuffled = second[:, rng.permutation(100)]
    _, wide_low, wide_high = paired_difference(first, shuffled)
    assert high - low < 0.5 * (wide_high - wide_low)


def test_more_seeds_that_err_alike_do_not_narrow_the_interval():
    first, second = normal_pair(np.random.default_rng(4), num_images=50)
    _, low, high = paired_difference(first, second)
    _, again_low, again_high = paired_difference(first.repeat(3, 0), second.repeat(3, 0))
    assert again_high - again_low == pytest.approx(high - low, rel=0.05)


def test_seeds_that_differ_widen_the_interval():
    first, second = normal_pair(np.random.default_rng(5), num_images=50)
    offsets = np.array([[-0.05], [0.0], [0.05]])
    _, low, high = paired_difference(first + 0 * offsets, second + 0 * offsets)
    _, wide_low, wide_high = paired_difference(first + offsets, second)
    assert wide_high - wide_low > 1.5 * (high - low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(60):
        _, low, high = paired_difference(*normal_pair(rng, num_images=60, difference=0.02))
        hits += low <= 0.02 <= high
    # 95 % of 60 is 57; fewer than 51 has a probability below 1 %
    assert hits >= 51


def test_undefined_values_take_no_part():
    first = np.array([[0.5, np.nan, 0.7, 0.9]])
    second = np.array([[0.4, 0.1, np.nan, 0.8]])
    mean, low, high = paired_difference(first, second)
    assert mean == pytest.approx((0.5 + 0.7 + 0.9) / 3 - (0.4 + 0.1 + 0.8) / 3)
    assert np.isfinite([low, high]).all()


def test_same_input_gives_the_same_interval():
    pair = normal_pair(np.random.default_rng(7), num_seeds=3)
    assert paired_difference(*pair) == paired_difference(*pair)


# From the table of samples


def test_differences_are_taken_on_common_settings_within_the_range():
    rows = []
    for seed in (0, 1):
        for image in ("a", "b", "c"):
            for phi in (0.1, 0.2, 0.3):
                rows.append(sample("sshn", phi, image, 0.8, seed=seed))
            for phi in (0.2, 0.3, 0.4):
                rows.append(sample("fixed", phi, image, 0.8 - phi, seed=seed))
    rows += [sample("other", 0.9, image, 0.5) for image in ("a", "b", "c")]
    (all_of,) = paired_differences(columns_of(rows), method="sshn", metric="dice", ranges={})
    assert (all_of.method, all_of.against, all_of.metric) == ("sshn", "fixed", "dice")
    assert (all_of.num_settings, all_of.num_images, all_of.num_seeds) == (2, 3, 2)
    assert all_of.difference == pytest.approx(0.25)
    (narrow,) = paired_differences(
        columns_of(rows), method="sshn", metric="dice", ranges={"phi": (0.25, 0.3)}
    )
    assert (narrow.num_settings, narrow.difference) == (1, pytest.approx(0.3))
    assert not paired_differences(
        columns_of(rows), method="sshn", metric="dice", ranges={"phi": (0.5, 0.6)}
    )


def test_images_are_paired_by_id_and_not_by_order():
    rows = [sample("sshn", 0.1, image, value) for image, value in (("a", 0.9), ("b", 0.1))]
    rows += [sample("fixed", 0.1, image, value) for image, value in (("b", 0.0), ("a", 0.8))]
    (found,) = paired_differences(columns_of(rows), method="sshn", metric="dice", ranges={})
    np.testing.assert_allclose([found.difference, found.low, found.high], 0.1)


def trained(method, phi, dice, split, **training):
    """A row of the measurements, and one of the samples, of a network trained in some way."""
    way = {f"conditioning/{name}": value for name, value in training.items()}
    name = "-".join([method, *map(str, training.values())])
    setting = setting_id({"phi": phi, **training})
    made = row(phi, dice, method=method, split=split, trial_id=name, setting_id=setting, **way)
    return {**made, "sample_id": "a"}


def test_each_method_is_compared_in_its_best_way_of_training():
    rows = [
        trained(method, phi, dice + (0.05 if split == "test" else 0), split, **training)
        for split in ("val", "test")
        for phi in (0.1, 0.2)
        for method, dice, training in [
            ("sshn", 0.7, {"prior_width": 0.1, "draws": "common"}),
            ("sshn", 0.9, {"prior_width": 0.5, "draws": "common"}),
            ("sshn", 0.8, {"prior_width": 0.5, "draws": "separate"}),
            ("film", 0.65, {"prior_width": 0.1}),
            ("film", 0.6, {"prior_width": 0.5}),
            ("fixed", 0.5, {}),
        ]
    ]
    columns = columns_of(rows)
    samples = {name: own[columns["split"] == "test"] for name, own in columns.items()}
    question = {"method": "sshn", "objectives": (DICE, MACS), "ranges": {}}
    found = compare(columns, samples, **question, ways=["prior_width", "draws", "power"])
    film, fixed = found["paired_on_test"]
    assert (film["against"], fixed["against"]) == ("film", "fixed")
    assert film["difference"] == pytest.approx(0.9 - 0.65)
    assert fixed["difference"] == pytest.approx(0.9 - 0.5)
    assert film["num_settings"] == fixed["num_settings"] == 2
    best = {"prior_width": 0.5, "draws": "common"}
    assert fixed["ways"] == {"sshn": best}
    assert film["ways"] == {"sshn": best, "film": {"prior_width": 0.1}}
    assert compare(columns, samples, **question)["paired_on_test"] == []


def test_ways_that_all_methods_have_are_settings_like_others():
    rows = [
        trained(method, 0.1, dice, split, amount=amount)
        for split in ("val", "test")
        for amount in (8.0, 24.0)
        for method, dice in (("sshn", amount / 100), ("fixed", 0.0))
    ]
    columns = columns_of(rows)
    held, best = in_best_ways(columns, columns, ways=["amount"], quality=DICE)
    assert held is columns
    assert best == {}


def test_unknown_conditioning_in_a_range_is_refused():
    rows = [sample("sshn", 0.1, "a", 0.9), sample("fixed", 0.1, "a", 0.8)]
    with pytest.raises(InputError, match="unknown conditioning 'psi'; known: phi"):
        paired_differences(
            columns_of(rows), method="sshn", metric="dice", ranges={"psi": (0.0, 1.0)}
        )


def test_category_has_no_range_to_compare_within():
    rows = [{**sample("sshn", 0.1, "a", 0.9), "conditioning/mode": "linear"}]
    with pytest.raises(InputError, match="mode is a category: it has choices, not a range"):
        paired_differences(
            columns_of(rows), method="sshn", metric="dice", ranges={"mode": (0.0, 1.0)}
        )


# From the table of measurements


def hand_made():
    rows = []
    for split, drop in (("val", 0.0), ("test", 0.02)):
        for seed in (0, 1):
            shared = {"seed": seed, "split": split}
            for phi, dice in ((0.0, 0.7), (0.25, 0.9), (0.5, 0.88)):
                rows.append(row(phi, dice - drop, **shared, **{"cost/train_s": 12.0}))
            for phi, dice in ((0.25, 0.80), (0.5, 0.89)):
                trial_id = f"fixed-phi{phi}-s{seed}"
                rows.append(row(phi, dice - drop, method="fixed", trial_id=trial_id, **shared))
    return rows


def test_costs_count_every_training_once_and_validation_alone():
    costs = method_costs(columns_of(hand_made()))
    sshn, fixed = costs["sshn"], costs["fixed"]
    assert (sshn.train_s, sshn.num_trainings, sshn.num_settings) == (24.0, 2, 3)
    assert sshn.evaluation_s == 6 * 0.5
    assert (fixed.train_s, fixed.num_trainings, fixed.num_settings) == (40.0, 4, 2)
    assert fixed.evaluation_s == 4 * 0.5


def test_comparison_of_a_hand_made_table():
    found = compare(
        columns_of(hand_made()), None, method="sshn", objectives=(DICE, MACS), ranges={}
    )
    assert found["method"] == "sshn"
    assert found["paired_on_test"] == []
    sshn, fixed = found["methods"]["sshn"], found["methods"]["fixed"]
    assert (sshn["train_ratio"], sshn["total_ratio"]) == (1.0, 1.0)
    assert fixed["train_ratio"] == pytest.approx(40 / 24)
    assert fixed["total_ratio"] == pytest.approx(42 / 27)
    # chosen on validation, the test value beside it
    assert sshn["best"]["conditioning"] == {"phi": 0.25}
    assert sshn["best"]["metrics"]["dice"] == pytest.approx(0.9)
    assert sshn["best"]["test_metrics"]["dice"] == pytest.approx(0.88)
    assert fixed["best"]["conditioning"] == {"phi": 0.5}
    # the worst of each objective over all points: losses -0.7 and 1.5e6
    assert found["ref_point"] == pytest.approx({"dice": -0.7, "macs": 1.5e6})
    # sshn: (0.25: 0.9) adds 0.2 x 0.25e6; fixed: (0.25: 0.8) adds 0.1 x 0.25e6, the rest nothing
    assert sshn["hypervolume"] == pytest.approx(0.2 * 0.25e6)
    assert fixed["hypervolume"] == pytest.approx(0.1 * 0.25e6)
    # sshn reaches fixed's 0.89 with 1.25e6 instead of 1.5e6
    saving = found["iso_accuracy"]["fixed"]
    assert saving["target"] == pytest.approx(0.89)
    assert saving["point"]["conditioning"] == {"phi": 0.25}
    assert saving["saving"] == pytest.approx(1 - 1.25 / 1.5)


def test_comparison_tells_what_fronts_attain():
    found = compare(
        columns_of(hand_made()), None, method="sshn", objectives=(DICE, MACS), ranges={}
    )
    sshn = found["methods"]["sshn"]
    # 0.7 at 1e6 is the worst dice, 0.9 at 1.25e6 is all that is gained, then nothing more
    history = sshn["hypervolume_history"]
    assert history["num_settings"] == [1, 2, 3]
    assert history["hypervolume"] == pytest.approx([0, 0.2 * 0.25e6, 0.2 * 0.25e6])
    assert history["hypervolume"][-1] == sshn["hypervolume"]
    # both seeds are alike: every surface is their front
    front = {"dice": pytest.approx([0.9, 0.7]), "macs": [1.25e6, 1e6]}
    assert sshn["attainment"] == {"num_seeds": 2} | dict.fromkeys(
        ("best", "median", "worst"), front
    )


def test_comparison_tells_the_gain_at_equal_cost_and_dominance():
    found = compare(
        columns_of(hand_made()), None, method="sshn", objectives=(DICE, MACS), ranges={}
    )
    gain = found["iso_cost"]["fixed"]
    # fixed's best costs 1.5e6, where sshn has 0.9; both cover 1.25e6 to 1.5e6, at 0.9 and 0.8
    assert gain["cost"] == 1.5e6
    assert gain["point"]["conditioning"] == {"phi": 0.25}
    assert gain["gain"] == pytest.approx(0.01)
    assert gain["range"] == [1.25e6, 1.5e6]
    assert gain["mean_gain"] == pytest.approx(0.1)
    # sshn's 0.9 at 1.25e6 dominates all of fixed's front; moved by 0.01 of 0.2, fixed's 0.89 at
    # 1.5e6 would be as good but for its macs, by 0.25 of 0.5; its cheapest lacks 0.25 of 0.5
    shares = found["dominance"]["fixed"]
    assert (shares["share_of_other_dominated"], shares["share_of_own_dominated"]) == (1, 0)
    assert shares["epsilon_of_other"] == pytest.approx(0.5)
    assert shares["epsilon"] == pytest.approx(0.0)


def test_one_seed_has_no_attainment_and_no_common_costs_no_mean_gain():
    rows = [row(0.1, 0.5), row(0.2, 0.9, method="fixed", trial_id="fixed-phi0.2-s0")]
    found = compare(columns_of(rows), None, method="sshn", objectives=(DICE, MACS), ranges={})
    assert found["methods"]["sshn"]["attainment"] is None
    gain = found["iso_cost"]["fixed"]
    assert (gain["gain"], gain["mean_gain"], gain["range"]) == (pytest.approx(-0.4), None, None)


def test_a_method_that_is_dearer_throughout_has_no_point_at_the_cost():
    rows = [row(0.3, 0.9), row(0.2, 0.8, method="fixed", trial_id="fixed-phi0.2-s0")]
    found = compare(columns_of(rows), None, method="sshn", objectives=(DICE, MACS), ranges={})
    assert (found["iso_cost"]["fixed"]["point"], found["iso_cost"]["fixed"]["gain"]) == (None, None)


def test_unreached_accuracy_saves_nothing():
    rows = [row(0.1, 0.5), row(0.1, 0.9, method="fixed", trial_id="fixed-phi0.1-s0")]
    found = compare(columns_of(rows), None, method="sshn", objectives=(DICE, MACS), ranges={})
    saving = found["iso_accuracy"]["fixed"]
    assert (saving["point"], saving["saving"]) == (None, None)


def test_samples_add_the_paired_difference():
    rows = [row(0.1, 0.5), row(0.1, 0.9, method="fixed", trial_id="fixed-phi0.1-s0")]
    samples = [sample(m, 0.1, i, v) for m, v in (("sshn", 0.5), ("fixed", 0.9)) for i in "ab"]
    found = compare(
        columns_of(rows),
        columns_of(samples),
        method="sshn",
        objectives=(DICE, MACS),
        ranges={"phi": (0, 1)},
    )
    (difference,) = found["paired_on_test"]
    assert difference["difference"] == pytest.approx(-0.4)
    assert set(difference) == {
        "method",
        "against",
        "metric",
        "difference",
        "low",
        "high",
        "num_settings",
        "num_images",
        "num_seeds",
        "ways",
    }


def test_interval_over_pairs_is_that_of_their_images():
    # values of pairs are sums of what their images bring: 6 images decide, not 30 pairs
    members = np.array([(a, b) for a in range(6) for b in range(6) if a != b])
    covered = widths = 0
    for repeat in range(60):
        rng = np.random.default_rng(repeat)
        values = rng.normal(size=6)[members].sum(axis=1)[None]
        _, low, high = paired_difference(values, np.zeros_like(values), members=members)
        _, narrow_low, narrow_high = paired_difference(values, np.zeros_like(values))
        covered += low <= 0 <= high
        widths += (high - low) > 1.5 * (narrow_high - narrow_low)
    assert covered >= 45  # six images are few for a percentile bootstrap
    assert widths >= 55
