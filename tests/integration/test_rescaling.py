"""Rescaling factors from training to every analysis, answers elsewhere, and a registration."""

import csv
import json

import numpy as np
import pytest
import yaml

from explorer import open_exploration
from search_spaces.errors import InputError

pytestmark = [pytest.mark.ray]  # explorations are made by a Ray of their own

COMMON = (
    "model.width=4",
    "model.hidden_sizes=[4, 4]",
    "train.learning_rate=1.0e-2",
    "train.batch_size=8",
    "explore.num_workers=0",
    "dataset={name: synthetic, size: [16, 16], options: {num_images: 60, num_labels: 2}}",
)
WIDTHS = (
    "name=widths",
    "train.epochs=12",
    "train.prior={phi: [0, 1]}",
    "train.grid={prior_width: [0, 0.5]}",
    "train.seeds=[0, 1]",
    "explore.num_points=5",
    "baselines=[{method: fixed, grid: {phi: [0.25, 0.5]}}]",
)
FACTORS = (
    "name=factors",
    "train.epochs=8",
    "model.stages=4",
    "model.num_factors=3",
    "train.prior={phi_0: [0, 1], phi_1: [0, 1], phi_2: [0, 1]}",
    "train.grid={draws: [separate, common]}",
    "explore.num_points=3",
    "baselines=[{method: fixed, grids: [{phi_0: [0.5], phi_1: [0.5], phi_2: [0.5]}, "
    "{phi_0: [1], phi_1: [1], phi_2: [1]}]}]",
)
PAIRS = (
    "name=pairs",
    "method=sshn-registration",
    "dataset.options.num_domains=1",
    "registration.num_pairs=6",
    "registration.smoothness=0.003",
    "train.epochs=2",
    "train.steps_per_epoch=10",
    "explore.num_points=3",
    "baselines=[{method: fixed-registration, grid: {phi: [0.5]}}]",
)
OF_ONE = (
    "structures",
    "iso-accuracy",
    "parameters",
    "training-cost",
    "prior-width",
    "transfer",
    "variation",
    "kernels",
    "feature-maps",
)


@pytest.fixture(scope="module")
def runs_dir(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rescaling")
    for changes in (WIDTHS, FACTORS, PAIRS):
        ended = explorer(
            "run",
            "demo",
            *(part for change in (*COMMON, *changes) for part in ("--set", change)),
            "--runs-dir",
            folder / "runs",
            MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
        )
        assert ended.code == 0, ended.stderr
    return folder / "runs"


def analysed(runs_dir, exploration_id, name):
    found, figure, table = open_exploration(exploration_id, runs_dir).analyze(name)
    assert figure.stat().st_size > 5000
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == len(found.rows)
    return found.rows


def test_every_width_of_the_prior_is_a_point_of_its_own(runs_dir):
    table = open_exploration("widths-1", runs_dir).points(method="sshn")
    points = [table.point(index) for index in range(len(table))]
    assert [p.conditioning["prior_width"] for p in points].count(0.0) == 5
    assert len(points) == 10
    assert {p.num_seeds for p in points} == {2}


def test_the_best_width_is_compared_with_networks_that_have_none(runs_dir, explorer):
    exploration = open_exploration("widths-1", runs_dir)
    (found,) = exploration.compare()["paired_on_test"]
    assert found["against"] == "fixed"
    assert found["num_settings"] == 2
    (width,) = found["ways"]["sshn"].values()
    table, fixed = exploration.points(method="sshn"), exploration.points(method="fixed")
    means = {
        w: np.mean([p.metrics["dice"] for p in points if p.conditioning["prior_width"] == w])
        for points in [[table.point(index) for index in range(len(table))]]
        for w in (0.0, 0.5)
    }
    assert width == max(means, key=means.get)
    gains = [
        table.find({**point.conditioning, "prior_width": width}).test_metrics["dice"]
        - point.test_metrics["dice"]
        for point in (fixed.point(index) for index in range(len(fixed)))
    ]
    assert found["difference"] == pytest.approx(np.mean(gains), rel=1e-6)
    ended = explorer("frontier", "widths-1", "--compare", "--runs-dir", runs_dir)
    assert f"sshn (prior_width = {width:g}) minus fixed, dice on test: " in ended.stdout


def test_analyses_of_one_factor(runs_dir):
    rows = {name: analysed(runs_dir, "widths-1", name) for name in OF_ONE}
    shares = {r["structure"]: r["volume_share"] for r in rows["structures"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    cheapest, *_ = rows["iso-accuracy"]
    assert cheapest["saving"] > 0
    assert cheapest["setting"]["phi"] == 0
    ways = {r["training"]: r for r in rows["parameters"]}
    assert list(ways) == ["prior_width = 0", "prior_width = 0.5"]
    assert ways["prior_width = 0"]["test_first"] == pytest.approx(
        open_exploration("widths-1", runs_dir)
        .points()
        .find({"phi": 0, "prior_width": 0})
        .test_metrics["dice"]
    )
    trainings = {r["method"]: r["trainings"] for r in rows["training-cost"]}
    assert trainings == {"sshn": 1, "fixed": 2}  # of one way of training
    assert [(r["method"], r["prior_width"]) for r in rows["prior-width"]] == [
        ("sshn", 0.0),
        ("sshn", 0.5),
        ("fixed", None),
    ]
    layers = [r["layer"] for r in rows["variation"]]
    assert layers[0] == "encoder.0.conv0"
    assert layers[-1] == "head"
    assert sum(r["numbers"] for r in rows["variation"]) > 2000
    assert {r["layer"] for r in rows["feature-maps"]} >= {"encoder.0", "encoder.4", "decoder.3"}


def test_weights_that_belong_to_a_factor_are_what_the_exploration_measured(runs_dir):
    rows = analysed(runs_dir, "widths-1", "transfer")
    exploration = open_exploration("widths-1", runs_dir)
    at_home = {r["method"]: r["dice"] for r in rows if r["phi"] == 0.5}
    fixed = exploration.points(method="fixed").find({"phi": 0.5})
    assert at_home["fixed"] == pytest.approx(fixed.test_metrics["dice"], rel=1e-6)
    table = exploration.points(method="sshn")
    measured = [
        table.find({"phi": 0.5, "prior_width": width}).test_metrics["dice"] for width in (0, 0.5)
    ]
    assert any(at_home["sshn"] == pytest.approx(dice, rel=1e-6) for dice in measured)


def test_quality_on_test_in_the_middle_is_what_the_exploration_measured(runs_dir):
    rows = analysed(runs_dir, "widths-1", "prior-width")
    table = open_exploration("widths-1", runs_dir).points(method="sshn")
    for row in rows[:2]:
        point = table.find({"phi": 0.5, "prior_width": row["prior_width"]})
        assert row["test"] == pytest.approx(point.test_metrics["dice"], rel=1e-6)


def test_analyses_of_separate_factors(runs_dir):
    rows = analysed(runs_dir, "factors-1", "factors")
    assert [r["factor"] for r in rows] == ["phi_0", "phi_1", "phi_2"]
    shares = [r["share_of_variance"] for r in rows]
    assert 0 < sum(shares) <= 1 + 1e-9
    fronts = analysed(runs_dir, "factors-1", "factor-fronts")
    series = {r["series"] for r in fronts}
    assert series == {"sshn, separate factors", "sshn, a common factor", "fixed"}
    common = [r["setting"] for r in fronts if r["series"] == "sshn, a common factor"]
    assert all(len({s["phi_0"], s["phi_1"], s["phi_2"]}) == 1 for s in common)
    with pytest.raises(InputError, match="transfer needs one rescaling factor; there are phi_0"):
        open_exploration("factors-1", runs_dir).analyze("transfer")
    with pytest.raises(InputError, match=r"model\.num_factors: 3"):
        open_exploration("widths-1", runs_dir).analyze("factors")


def test_query_is_answered_by_another_data_set(runs_dir, explorer):
    other = "{options: {num_images: 20, num_labels: 2, seed: 1}}"
    question = ("query", "widths-1", "--maximize", "dice", "--max", "activation_bytes=1G")
    told = []
    for _ in range(2):
        ended = explorer(*question, "--evaluate-on", other, "--runs-dir", runs_dir, "--json")
        assert ended.code == 0, ended.stderr
        told.append(json.loads(ended.stdout))
        assert ("evaluating on synthetic" in ended.stderr) == (len(told) == 1)  # once is enough
    assert told[0] == told[1]
    assert told[0]["evaluated_on"]["num_samples"] == 20
    point = told[0]["point"]
    assert point["test_metrics"] == {}
    own = open_exploration("widths-1", runs_dir).points().find(point["conditioning"])
    assert own.costs["activation_bytes"] == point["costs"]["activation_bytes"]
    assert own.metrics["dice"] != point["metrics"]["dice"]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("synthetic", "60 of its 60 images are in the data set that the exploration was trained"),
        ("{options: {num_labels: 3}}", "expected labels structure_1, structure_2 as in the"),
        ("{size: [24, 24]}", "expected size 16, 16 as in the exploration, got 24, 24"),
        ("wbc", "expected labels structure_1, structure_2 as in the exploration, got nucleus"),
        ("{rot: DIR}", "unknown key; expected one of name, root, size"),
    ],
)
def test_other_data_that_cannot_answer_are_refused(runs_dir, dataset, expected):
    with pytest.raises(InputError, match=expected):
        open_exploration("widths-1", runs_dir).elsewhere(yaml.safe_load(dataset))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--evaluate-on", "[wbc]"), "expected the name of a data set, or a mapping"),
        (("--evaluate-on", "wbc", "--refine", "3"), "leave --evaluate-on out"),
    ],
)
def test_questions_elsewhere_that_make_no_sense_are_refused(
    runs_dir, explorer, arguments, expected
):
    ended = explorer("query", "widths-1", *arguments, "--runs-dir", runs_dir)
    assert ended.code == 2
    assert expected in ended.error


def test_registration_shrinks_its_features_for_fewer_operations(runs_dir):
    exploration = open_exploration("pairs-1", runs_dir)
    table = exploration.points()
    points = [table.point(index) for index in range(len(table))]
    macs = [p.costs["macs"] for p in points]
    assert macs == sorted(macs)
    assert macs[0] < macs[-1]
    assert {"dice", "folded_share", "displacement"} <= points[0].test_metrics.keys()
    fixed = exploration.points(method="fixed-registration").point(0)
    assert fixed.costs["macs"] == points[-1].costs["macs"]
    pairs = exploration.registered_pairs()
    moved = [pairs.at({"phi": phi}).displacement for phi in (0.0, 0.5)]
    assert np.abs(moved[0] - moved[1]).max() > 0


def test_registration_is_handed_over_and_registers(runs_dir, tmp_path):
    import torch

    from explorer.networks import load_network

    exploration = open_exploration("pairs-1", runs_dir)
    exported = exploration.export(exploration.at({"phi": 0.25}), tmp_path / "network")
    network = load_network(exported.folder)
    pairs = exploration.registered_pairs()
    one = pairs.at({"phi": 0.25})
    pair = torch.from_numpy(np.stack([one.moving, one.fixed]))[None]
    with torch.inference_mode():
        assert np.array_equal(network(pair)[0].numpy(), one.displacement)
    assert "registration at phi = 0.25" in (exported.folder / "README.md").read_text()


def test_factors_have_no_gradient_to_follow(runs_dir):
    with pytest.raises(InputError, match="no differentiable function of phi"):
        open_exploration("pairs-1", runs_dir).optimize()
