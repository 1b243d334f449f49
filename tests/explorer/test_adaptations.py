"""What is chosen where in an adaptation, and what its analyses tell of it."""

import numpy as np
import pytest

from explorer.adaptation_figures import against_blocks, against_price, on_network, violins
from explorer.adaptations import AdaptationResults
from explorer.measurements import setting_id
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from trainables.networks.residual_unet import ResidualUNet

PAIRS = ("a-to-b", "b-to-a")
IMAGES = {"a-to-b": ("b1", "b2", "b3"), "b-to-a": ("a1", "a2")}
QUALITY = {  # on val, by pair and lambda; on test ten points less
    ("spottunet-amortised", "a-to-b"): {0.0: 0.6, 0.01: 0.9, 0.02: 0.7},
    ("spottunet-amortised", "b-to-a"): {0.0: 0.8, 0.01: 0.5, 0.02: 0.6},
    ("spottunet", "a-to-b"): {0.01: 0.8},
    ("spottunet", "b-to-a"): {0.01: 0.6},
    ("finetune-all", "a-to-b"): {None: 0.75},
    ("finetune-all", "b-to-a"): {None: 0.70},
    ("finetune-last", "a-to-b"): {None: 0.65},
    ("finetune-last", "b-to-a"): {None: 0.72},
    ("no-adaptation", "a-to-b"): {None: 0.3},
    ("no-adaptation", "b-to-a"): {None: 0.4},
}
SETTLED = {
    f"{method}/{pair}/{amount}/{seed}": {"pair": pair, "amount": amount}
    for method, pair in QUALITY
    for amount in (8, 0)
    for seed in (0, 1)
}


def tables():
    """Measurements and values per test image; seed 1 is two points better, all images one."""
    rows, samples = [], []
    for (method, pair), own in QUALITY.items():
        for price, quality in own.items():
            for amount in (8, 0):
                for seed in (0, 1):
                    setting = {"lambda": price, "amount": amount}
                    if method == "no-adaptation":
                        setting.pop("amount")
                        if amount == 0:
                            continue
                    setting = {n: float(x) for n, x in setting.items() if x is not None}
                    mean = quality + 0.02 * seed + 0.01 * (amount == 0)
                    fixed = {
                        "trial_id": f"{method}/{pair}/{amount}/{seed}",
                        "method": method,
                        "seed": seed,
                        "setting_id": setting_id(setting),
                        "conditioning/lambda": setting.get("lambda", np.nan),
                        "conditioning/amount": setting.get("amount", np.nan),
                    }
                    blocks = 30 - 1000 * (price or 0)
                    for split, drop in (("val", 0.0), ("test", 0.1)):
                        rows.append(
                            {
                                **fixed,
                                "split": split,
                                "num_samples": 5,
                                "cost/train_s": 10.0 + seed,
                                "metric/dice": mean - drop + 0.05,
                                "metric/surface_dice": mean - drop,
                                "metric/fine_tuned_blocks": blocks,
                                "metric/fine_tuned/init_0": 0.5,
                                "metric/fine_tuned/out": 1.0,
                            }
                        )
                    for k, name in enumerate(IMAGES[pair]):
                        value = mean - 0.1 + 0.01 * (k - (len(IMAGES[pair]) - 1) / 2)
                        samples.append({**fixed, "sample_id": name, "metric/surface_dice": value})
                    # images of the other target have no value
                    other = next(iter(IMAGES[PAIRS[PAIRS.index(pair) - 1]]))
                    samples.append({**fixed, "sample_id": other, "metric/surface_dice": np.nan})
    return tuple(
        {name: np.array([row[name] for row in own]) for name in own[0]} for own in (rows, samples)
    )


@pytest.fixture(scope="module")
def results():
    columns, samples = tables()
    quality = Objective("surface_dice", "maximize")
    return AdaptationResults(
        columns, samples, SETTLED, objective=quality, main="spottunet-amortised"
    )


def test_amounts_ascend_and_all_images_are_the_last(results):
    assert results.pairs == list(PAIRS)
    assert results.amounts == [8, 0]
    assert results.methods[0] == "spottunet-amortised"


def test_lambda_of_a_direction_is_chosen_on_the_other(results):
    rows = {(r["pair"], r["amount"], r["method"]): r for r in results.strategies()}
    assert rows["a-to-b", 8, "spottunet-amortised"]["setting"] == {"lambda": 0.0}
    assert rows["b-to-a", 8, "spottunet-amortised"]["setting"] == {"lambda": 0.01}
    own = rows["a-to-b", 8, "spottunet-amortised"]
    assert own["chosen_on"] == ["b-to-a"]
    # test, mean of both seeds
    assert own["metrics"]["surface_dice"] == pytest.approx(0.6 - 0.1 + 0.01)
    assert own["seed_sd"]["surface_dice"] == pytest.approx(0.02 / np.sqrt(2))
    assert own["num_images"] == 3
    assert own["train_s"] == pytest.approx(10.5)
    every = rows["a-to-b", 0, "spottunet-amortised"]["metrics"]["surface_dice"]
    assert every == pytest.approx(0.52)


def test_method_that_needs_no_image_stands_at_every_amount(results):
    own = [r for r in results.strategies() if r["method"] == "no-adaptation"]
    assert [(r["pair"], r["amount"]) for r in own] == [(p, a) for p in PAIRS for a in (8, 0)]
    assert own[0]["metrics"] == own[1]["metrics"]


def test_rival_is_the_fixed_strategy_that_is_best_on_the_same_images(results):
    rows = {(r["pair"], r["amount"], r["method"]): r for r in results.strategies()}
    versus = rows["a-to-b", 8, "spottunet"]["against_best_fixed"]
    assert versus["method"] == "finetune-all"
    assert versus["gain"] == pytest.approx(0.05)
    assert versus["error"] == pytest.approx(0, abs=1e-9)
    versus = rows["b-to-a", 8, "spottunet"]["against_best_fixed"]
    assert versus["method"] == "finetune-last"
    assert versus["gain"] == pytest.approx(-0.12)
    assert rows["a-to-b", 8, "finetune-all"]["against_best_fixed"] is None


def test_single_pair_chooses_for_itself():
    columns, samples = tables()
    settled = {name: own for name, own in SETTLED.items() if own["pair"] == "a-to-b"}
    only = AdaptationResults(
        columns,
        samples,
        settled,
        objective=Objective("surface_dice", "maximize"),
        main="spottunet-amortised",
    )
    (own,) = [
        row
        for row in only.strategies()
        if (row["method"], row["amount"]) == ("spottunet-amortised", 8)
    ]
    assert own["chosen_on"] == ["a-to-b"]
    assert own["setting"] == {"lambda": 0.01}


def test_settings_without_test_values_are_passed_over():
    """As those that a query refined are."""
    columns, samples = tables()
    is_best = (columns["method"] == "spottunet-amortised") & (columns["conditioning/lambda"] == 0)
    kept = ~(is_best & (columns["split"] == "test"))
    columns = {name: own[kept] for name, own in columns.items()}
    refined = AdaptationResults(
        columns,
        samples,
        SETTLED,
        objective=Objective("surface_dice", "maximize"),
        main="spottunet-amortised",
    )
    assert refined.judged("spottunet-amortised", "a-to-b", 8).conditioning["lambda"] == 0.02


def test_pair_with_the_same_target_does_not_choose():
    columns, samples = tables()
    settled = {
        name: {**own, "pair": "c-to-b" if own["pair"] == "b-to-a" else own["pair"]}
        for name, own in SETTLED.items()
    }
    both = AdaptationResults(
        columns,
        samples,
        settled,
        objective=Objective("surface_dice", "maximize"),
        main="spottunet-amortised",
    )
    assert both.others("a-to-b") == ["a-to-b"]


def test_amortised_and_trained_are_compared_at_one_lambda(results):
    rows = results.amortisation()
    assert [(r["pair"], r["amount"], r["setting"]) for r in rows] == [
        (pair, amount, {"lambda": 0.01}) for amount in (8, 0) for pair in PAIRS
    ]
    assert [r["difference"]["surface_dice"] for r in rows[:2]] == pytest.approx([0.1, -0.1])
    assert rows[0]["difference"]["fine_tuned_blocks"] == 0


def test_best_price_is_that_of_all_pairs_together(results):
    rows = {(r["amount"], r["method"]): r for r in results.optima()}
    # 0.7, 0.7 and 0.65 on average: of equals the smaller
    best = rows[8, "spottunet-amortised"]
    assert best["num_prices"] == 3
    assert best["setting"]["lambda"] in (0.0, 0.01)
    assert best["metrics"]["surface_dice"] == pytest.approx(0.71)


def test_values_of_images_are_means_over_seeds(results):
    values = results.qualities("surface_dice")
    assert values[8, "finetune-all"] == pytest.approx([0.65, 0.66, 0.67, 0.605, 0.615])


def test_blocks_are_told_by_name(results):
    rows = results.blocks()
    assert [(r["amount"], r["block"], r["share"]) for r in rows] == [
        (amount, block, share)
        for amount in (8, 0)
        for block, share in (("init_0", 0.5), ("out", 1))
    ]


def test_figures_show_every_amount_and_method(results, tmp_path):
    priced = results.priced()
    drawn = against_price(priced, metric="surface_dice", main=results.main)
    assert [axes.get_title() for axes in drawn.axes] == ["8 images", "all images", "", ""]
    (line,) = [own for own in drawn.axes[0].lines if len(own.get_xdata()) == 3]
    assert line.get_ydata() == pytest.approx([0.71, 0.71, 0.66])
    overlaid = against_blocks(priced, metric="surface_dice", main=results.main)
    assert {text.get_text() for text in overlaid.axes[0].texts} == {"λ 0.01"}
    values = results.qualities("surface_dice")
    figure = violins(values, metric="surface_dice", main=results.main, needs_none={"no-adaptation"})
    labels = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert {"spottunet-amortised", "finetune-last", "no-adaptation: 0.250"} == labels - {
        "spottunet",
        "finetune-all",
    }
    network = ResidualUNet(in_channels=1, out_channels=2, width=2)
    on_image = on_network(results.blocks(), network)
    assert [text.get_text() for text in on_image.axes[0].texts] == ["50", "100"]
    for name, one in {"a": drawn, "b": overlaid, "c": figure, "d": on_image}.items():
        one.savefig(tmp_path / f"{name}.png")


def test_other_explorations_are_refused():
    columns, samples = tables()
    settled = {name: {"phi": 0.5} for name in SETTLED}
    with pytest.raises(InputError, match="expected an exploration of adaptation"):
        AdaptationResults(
            columns, samples, settled, objective=Objective("dice", "maximize"), main="sshn"
        )
