"""What analyses of rescaling factors choose among trainings, and what they count."""

import numpy as np
import pytest

from explorer.analyses import analyse, lacking_for
from explorer.explored import Explored
from explorer.rescaling_analyses import ANALYSES, _volumes
from explorer.rescalings import diagonal, drawn, one_way, points_of
from explorer.specs import load_spec
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from tests.conftest import columns_of, row
from trainables.base import Arrays

DICE, MACS = Objective("dice", "maximize"), Objective("macs", "minimize")


def explored(rows, settled, *, grid="{}", objectives=(DICE, MACS), changes=()):
    """Of rows of a table, of which those of the test split are samples too."""
    every = columns_of(rows)
    spec = load_spec("demo", ["baselines=[]", f"train.grid={grid}", *changes])
    is_test = every["split"] == "test"
    samples = {name: own[is_test] for name, own in every.items()}
    samples["sample_id"] = np.array([f"image{k}" for k in range(is_test.sum())], dtype=object)
    return Explored(
        "made-1",
        spec,
        objectives,
        every,
        samples,
        settled,
        model=lambda trial_id: pytest.fail(f"asked for {trial_id}"),
        images=lambda: pytest.fail("asked for images"),
        points=lambda columns, split: [],
    )


def both_splits(phi, dice, **changes):
    return [row(phi, dice, split=split, **changes) for split in ("val", "test")]


def ways():
    """Two widths of the prior and two shares of distillation; the narrow one with 1 is best."""
    rows, settled = [], {}
    for width, share, level in ((0.1, 0.0, 0.5), (0.1, 1.0, 0.8), (0.5, 0.0, 0.6), (0.5, 1.0, 0.7)):
        trial_id = f"sshn-{width}-{share}"
        settled[trial_id] = {"prior_width": width, "distillation": share}
        parameters = {"conditioning/prior_width": width, "conditioning/distillation": share}
        for phi in (0.0, 0.5):
            own = {"trial_id": trial_id, "setting_id": f"{trial_id}-{phi}", **parameters}
            rows += both_splits(phi, level + 0.1 * phi, **own)
    nothing = {"conditioning/prior_width": None, "conditioning/distillation": None}
    rows += both_splits(0.5, 0.9, method="fixed", setting_id="fixed", **nothing)
    settled["fixed-s0"] = {"phi": 0.5}
    return explored(rows, settled, grid="{prior_width: [0.1, 0.5], distillation: [0, 1]}")


def test_the_way_of_training_is_the_best_over_all_its_settings():
    chosen = one_way(ways())
    assert {p.conditioning["prior_width"] for p in points_of(chosen, "sshn")} == {0.1}
    assert {p.conditioning["distillation"] for p in points_of(chosen, "sshn")} == {1.0}
    assert len(points_of(chosen, "fixed")) == 1


def test_what_may_vary_stays_and_the_rest_is_chosen():
    points = points_of(one_way(ways(), vary=("prior_width",)), "sshn")
    assert {p.conditioning["prior_width"] for p in points} == {0.1, 0.5}
    assert {p.conditioning["distillation"] for p in points} == {1.0}


def test_settings_that_were_not_tested_are_left_out():
    rows = [*both_splits(0.0, 0.5), *both_splits(0.5, 0.7), row(0.25, 0.9)]
    chosen = one_way(explored(rows, {"sshn-s0": {}}))
    assert [p.conditioning["phi"] for p in points_of(chosen, "sshn")] == [0.0, 0.5]


def test_trainings_of_one_kind_of_draws_are_told_apart():
    rows, settled = [], {}
    for draws, dice in (("separate", 0.6), ("common", 0.9)):
        settled[draws] = {"draws": draws}
        own = {"trial_id": draws, "setting_id": draws, "conditioning/draws": draws}
        rows += both_splits(0.5, dice, **own)
    both = one_way(explored(rows, settled, grid="{}"), vary=("draws",))
    points = points_of(drawn(both, "separate"), "sshn")
    assert [p.metrics["dice"] for p in points] == [0.6]


@pytest.mark.parametrize(
    "objectives", [(MACS, DICE), (DICE,), (Objective("dice", "minimize"), MACS)]
)
def test_other_objectives_than_a_quality_and_a_cost_are_refused(objectives):
    made = explored(both_splits(0.5, 0.5), {"sshn-s0": {}}, objectives=objectives)
    with pytest.raises(InputError, match="a quality that is maximised and of a cost"):
        one_way(made)


def test_the_diagonal_goes_from_the_least_to_the_largest_factor():
    made = explored([*both_splits(0.1, 0.5), *both_splits(0.4, 0.6)], {"sshn-s0": {}})
    assert [own["phi"] for own in diagonal(made, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_structures_have_the_volume_of_their_own_labels_both_sides_together():
    masks = np.zeros((1, 4, 5), dtype=np.uint8)
    masks[0, 0] = 1  # 5 pixels of Right-Thalamus
    masks[0, 1, :3] = 2  # 3 of Brain-Stem
    masks[0, 2, :2] = 3  # 2 of Left-Thalamus
    test = Arrays(np.zeros((1, 1, 4, 5), dtype=np.float32), masks)
    found = _volumes(test, ["Right-Thalamus", "Brain-Stem", "Left-Thalamus"])
    assert found == {
        "Thalamus": (0.7, ["Right-Thalamus", "Left-Thalamus"]),
        "Brain-Stem": (0.3, ["Brain-Stem"]),
    }


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("parameters", "several ways of training, such as train.grid: "),
        ("prior-width", "several widths of the prior, such as train.grid: "),
        ("factors", r"several rescaling factors \(model.num_factors: 3\); there is phi"),
    ],
)
def test_what_a_spec_lacks_for_an_analysis_is_told_before_anything_is_read(name, lacking):
    made = explored(both_splits(0.5, 0.5), {"sshn-s0": {}})
    assert set(lacking_for(made.spec)) == {"parameters", "prior-width", "factors", "factor-fronts"}
    with pytest.raises(InputError, match=f"{name} needs {lacking}"):
        analyse(made, name)


def test_ways_of_training_are_told_by_thirds_of_the_factor():
    rows, settled = [], {"sshn-s0": {"distillation": 0.0}}
    for number in range(6):
        own = {"conditioning/distillation": 0.0, "setting_id": str(number)}
        rows += both_splits(number / 10, number / 10, **own)
    found = ANALYSES["parameters"].analyse(explored(rows, settled, grid="{distillation: [0]}"))
    (told,) = found.rows
    expected = {"first": 0.0, "small": 0.05, "middle": 0.25, "large": 0.45, "all": 0.25}
    assert {n: told[f"val_{n}"] for n in expected} == pytest.approx(expected)


def test_training_cost_is_that_of_one_seed_of_one_way():
    rows, settled = [], {}
    for seed, seconds in ((0, 10.0), (1, 30.0)):
        for phi in (0.0, 0.5):
            rows += both_splits(phi, 0.5, seed=seed, **{"cost/train_s": seconds})
        settled[f"sshn-s{seed}"] = {}
        for phi in (0.25, 0.5):
            own = {"trial_id": f"fixed-{phi}-s{seed}", "setting_id": f"fixed{phi}"}
            rows += both_splits(phi, 0.5, method="fixed", seed=seed, **own)
            settled[own["trial_id"]] = {"phi": phi}
    made = explored(
        rows, settled, changes=["baselines=[{method: fixed, grid: {phi: [0.25, 0.5]}}]"]
    )
    told = {r["method"]: r for r in ANALYSES["training-cost"].analyse(made).rows}
    assert told["sshn"]["train_s"] == 20
    assert (told["fixed"]["train_s"], told["fixed"]["trainings"]) == (20, 2)


def test_factors_explain_what_varies_with_them_alone():
    rows, settled = [], {"sshn-s0": {}}
    for a in (0.0, 0.5, 1.0):
        for b in (0.0, 1.0):
            own = {"conditioning/phi_0": a, "conditioning/phi_1": b, "setting_id": f"{a}-{b}"}
            rows += both_splits(None, 0.5 + 0.3 * a + 0.1 * b, **own)
    for each in rows:
        each.pop("conditioning/phi")
    made = explored(rows, settled, changes=["model.num_factors=2", "model.stages=3"])
    first, second = ANALYSES["factors"].analyse(made).rows
    variances = [0.09 * np.var([0, 0.5, 1]), 0.01 * 0.25]
    shares = np.array(variances) / sum(variances)
    assert [first["share_of_variance"], second["share_of_variance"]] == pytest.approx(shares)
    assert first["best_level"] == 1.0
