"""A model conditioned on a number and a category, from its training to its hand-over."""

import json
import sqlite3

import numpy as np
import pytest
import torch

from explorer import Bound, open_exploration
from explorer.exporting import load_network
from explorer.models import build_trainable
from explorer.splits import load_data
from explorer.training import read_record, read_weights
from search_spaces.errors import InputError
from trainables.datasets.base import split_indices
from trainables.metrics.segmentation import dice_per_label, mean_over_labels
from trainables.networks.unet import UNet
from trainables.train_loop import load_tensors

pytestmark = [pytest.mark.ray]  # the exploration is made by a Ray of its own

SPEC = """
name: modes
dataset: {name: synthetic, size: [16, 16], options: {num_images: 60, num_labels: 2}}
model: {width: 6, stages: 3, choices: {interpolation: [linear, nearest]}}
train: {epochs: 60, batch_size: 6, learning_rate: 1.0e-2}
explore: {num_points: 5}
baselines:
- {method: fixed, grid: {phi: [0.25], interpolation: [linear, nearest]}}
- {method: stochastic}
"""
MODES = ("linear", "nearest")


@pytest.fixture(scope="module")
def runs_dir(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("categories")
    (folder / "modes.yaml").write_text(SPEC)
    runs = folder / "runs"
    ended = explorer(
        "run",
        folder / "modes.yaml",
        "--runs-dir",
        runs,
        "--json",
        MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
    )
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["num_measurements"] == 2 * (10 + 2 + 10)
    return runs


@pytest.fixture
def modes(runs_dir):
    return open_exploration("modes-1", runs_dir)


def test_every_choice_is_explored_at_every_number(modes):
    table = modes.table()
    rows = (table["method"] == "sshn") & (table["split"] == "val")
    pairs = set(
        zip(table["conditioning/phi"][rows], table["conditioning/interpolation"][rows], strict=True)
    )
    assert pairs == {(phi, mode) for phi in (0, 0.125, 0.25, 0.375, 0.5) for mode in MODES}
    trials = {row["trial_id"]: row["settled"] for row in modes.trials()}
    assert trials["fixed-phi0.25-interpolation-nearest-s0"] == {
        "phi": 0.25,
        "interpolation": "nearest",
    }


@torch.no_grad()
def test_rows_are_those_of_plain_networks_with_the_weights_at_the_choice(modes):
    """Second way to every row: the weights predicted at [phi, one-hot], in a U-Net of its own."""
    spec, table = modes.spec, modes.table()
    dataset = load_data(spec)
    rows = split_indices(dataset, seed=0)["val"]
    images, masks = (torch.from_numpy(a[rows]) for a in (dataset.images, dataset.masks))
    module = build_trainable(spec).build(0)
    load_tensors(module, read_weights(modes.folder / "trials" / "sshn-s0"), "sshn-s0")
    seen = {}
    for phi in (0.0, 0.25, 0.5):
        for mode, one_hot in zip(MODES, ([1.0, 0.0], [0.0, 1.0]), strict=True):
            network = UNet(
                in_channels=1,
                out_channels=len(dataset.labels) + 1,
                encoder_widths=(6, 6, 6),
                decoder_widths=(6, 6),
                interpolation=mode,
            )
            network.load_state_dict(module.weights(torch.tensor([phi, *one_hot])))
            answer = network(images, (phi, phi)).argmax(1)
            dice = mean_over_labels(
                dice_per_label(answer, masks.long(), num_labels=len(dataset.labels))
            )
            is_row = (table["method"] == "sshn") & (table["split"] == "val")
            is_row &= table["conditioning/phi"] == phi
            is_row &= table["conditioning/interpolation"] == mode
            seen[phi, mode] = table["metric/dice"][is_row].item()
            assert seen[phi, mode] == pytest.approx(dice.nanmean().item(), abs=1e-4)
    assert len(set(seen.values())) > 3  # the choice matters


def test_training_draws_the_category_and_learns_from_it(modes):
    """The inputs of both choices, one-hot and complemented, have moved from where they began."""
    before = build_trainable(modes.spec).build(0).state_dict()
    after = read_weights(modes.folder / "trials" / "sshn-s0")
    moved = (after["hypernetwork.hidden.0.weight"] - before["hypernetwork.hidden.0.weight"]).abs()
    assert (moved.sum(0) > 1e-3).all()
    assert moved.shape[1] == 2 * (1 + 2)
    history = read_record(modes.folder / "trials" / "sshn-s0").history
    assert max(row["val"] for row in history) > history[0]["val"]


def test_questions_are_answered_with_a_choice(modes):
    points = modes.points()
    best = modes.query()
    assert best.point.metrics["dice"] == points.metrics["dice"].max()
    assert best.point.conditioning["interpolation"] in MODES
    at_most = modes.query([Bound("macs", "max", points.costs["macs"].min())]).point
    assert at_most.conditioning["phi"] == 0
    twins = [points.point(i) for i in range(len(points))]
    (other,) = (
        p for p in twins if p.conditioning["phi"] == 0 and p.conditioning != at_most.conditioning
    )
    assert at_most.costs == other.costs
    assert at_most.metrics["dice"] >= other.metrics["dice"]
    assert modes.knee().point.conditioning["interpolation"] in MODES
    front = modes.frontier()
    assert len({p.costs["macs"] for p in front}) == len(front)  # of equal cost the better alone


def test_front_is_compared_and_held_by_bounds_on_numbers_alone(modes):
    comparison = modes.compare(ranges={"phi": (0.2, 0.3)})
    paired = {row["against"]: row["num_settings"] for row in comparison["paired_on_test"]}
    assert paired == {"fixed": 2, "stochastic": 2}
    assert comparison["methods"]["fixed"]["num_trainings"] == 2
    json.dumps(comparison, allow_nan=False)
    with pytest.raises(InputError, match="interpolation is a category: it has choices, not a"):
        modes.compare(ranges={"interpolation": (0, 1)})


def test_figures_and_page_show_each_choice(modes, tmp_path):
    drawn = {path.stem for path in (modes.folder / "figures").glob("*.png")}
    assert {"dice-against-phi-val", "dice-against-macs-test"} <= drawn
    assert "dice-against-interpolation-val" not in drawn
    page = (modes.folder / "frontier.html").read_text(encoding="utf-8")
    assert "sshn, nearest (1 seed)" in page
    assert modes.plot(tmp_path / "front.png").stat().st_size > 10_000


def test_choice_is_tracked_as_a_parameter(modes):
    with sqlite3.connect(modes.folder.parents[1] / "mlflow.db") as database:
        query = "select distinct value from params where key = 'interpolation'"
        assert {value for (value,) in database.execute(query)} == set(MODES)


@torch.no_grad()
def test_exported_network_is_that_of_the_choice(modes, tmp_path):
    points = modes.points()
    for index in (0, len(points) - 1):
        point = points.point(index)
        exported = modes.export(point, tmp_path / str(index))
        description = json.loads((exported.folder / "network.json").read_text())
        mode = point.conditioning["interpolation"]
        assert description["arguments"]["interpolation"] == mode
        assert description["conditioning"] == dict(point.conditioning)
        network = load_network(exported.folder)
        trainable = build_trainable(modes.spec)
        module = trainable.build(0)
        load_tensors(module, read_weights(modes.folder / "trials" / "sshn-s0"), "sshn-s0")
        images = torch.linspace(-1, 1, 512).view(2, 1, 16, 16)
        expected = trainable.materialize(module, dict(point.conditioning))(images)
        torch.testing.assert_close(network(images), expected, rtol=0, atol=0)


def test_refining_finds_new_settings_of_the_choices(modes):
    before = modes.query()
    answer = modes.refine(4)
    assert answer.point.metrics["dice"] >= before.point.metrics["dice"]
    table = modes.table()
    is_new = ~np.isin(table["conditioning/phi"], [0, 0.125, 0.25, 0.375, 0.5])
    assert is_new.sum() == 4
    assert set(table["conditioning/interpolation"][is_new]) <= set(MODES)


def test_cost_is_asked_with_the_choice(explorer, runs_dir):
    spec = runs_dir.parent / "modes.yaml"
    at = ("--at", "phi=0.5", "--at", "interpolation=nearest")
    document = json.loads(explorer("cost", spec, *at, "--json").stdout)
    assert document["conditioning"] == {"phi": 0.5, "interpolation": "nearest"}
    assert explorer("cost", spec, "--at", "phi=0.5").code == 2
