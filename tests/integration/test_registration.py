"""A registration from its training to its optimum and its hand-over."""

import json

import numpy as np
import pytest

from explorer import open_exploration
from explorer.exporting import load_network
from search_spaces.errors import InputError

pytestmark = [pytest.mark.ray]  # the exploration is made by a Ray of its own

CHANGES = (
    "name=pairs",
    "dataset.size=[24, 24]",
    "dataset.options={num_images: 30, num_domains: 1, num_labels: 3}",
    "registration.encoder_widths=[8, 12]",
    "registration.decoder_widths=[12, 12]",
    "registration.final_widths=[8]",
    "registration.num_pairs=12",
    "train.epochs=4",
    "model.hidden_sizes=[16, 16]",
    "explore.num_points=5",
    "baselines=[{method: voxelmorph, grid: {lambda: [0.2, 0.8]}}]",
)


@pytest.fixture(scope="module")
def runs_dir(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("registration")
    ended = explorer(
        "run",
        "hypermorph-demo",
        *(part for change in CHANGES for part in ("--set", change)),
        "--runs-dir",
        folder / "runs",
        "--json",
        MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
    )
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["num_measurements"] == 2 * (5 + 2)
    return folder / "runs"


def test_front_is_drawn_against_folding_and_compared(runs_dir):
    exploration = open_exploration("pairs-1", runs_dir)
    names = {path.name for path in (exploration.folder / "figures").glob("*.png")}
    assert {"dice-against-folded_share-val.png", "dice-against-lambda-test.png"} <= names
    assert "pair-val.png" in names
    assert (exploration.folder / "frontier.html").stat().st_size > 1e6
    assert set(exploration.compare()["methods"]) == {"hypermorph", "voxelmorph"}


def test_optimum_is_found_and_the_answer_to_a_query_handed_over(explorer, runs_dir, tmp_path):
    found = explorer("optimize", "pairs-1", "--by", "label", "--runs-dir", runs_dir, "--json")
    assert found.code == 0, found.stderr
    assert len(json.loads(found.stdout)["results"]) == 4
    for method in ("hypermorph", "voxelmorph"):
        output = tmp_path / method
        options = ("--method", method, "--output", output, "--runs-dir", runs_dir)
        assert explorer("export", "pairs-1", *options).code == 0
        assert load_network(output).num_integration_steps == 7
    refused = explorer("optimize", "pairs-1", "--method", "voxelmorph", "--runs-dir", runs_dir)
    assert refused.code == 2
    assert refused.error.startswith("voxelmorph is trained for each setting: there is nothing to")


def test_a_pair_is_registered_at_any_setting(runs_dir):
    pairs = open_exploration("pairs-1", runs_dir).registered_pairs(split="test")
    assert len(pairs) == 12
    still, moved = (pairs.at({"lambda": value}, row=3) for value in (1.0, 0.3))
    assert still.name == pairs.names[3]
    assert still.moving.shape == still.fixed.shape == still.moved.shape == (24, 24)
    assert still.displacement.shape == (2, 24, 24)
    assert abs(still.displacement).max() == 0  # the preset's shrinkage
    np.testing.assert_allclose(still.moved, still.moving, atol=1e-5)
    assert abs(moved.displacement).max() > 0
    assert len(pairs.figure([{"lambda": 0.1}], best={"lambda": 0.5}).axes) == 10
    with pytest.raises(InputError, match="voxelmorph was trained for one setting each"):
        open_exploration("pairs-1", runs_dir).registered_pairs(method="voxelmorph")
