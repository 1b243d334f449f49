"""An adaptation from the source network to the answer to a query."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from explorer import open_exploration
from explorer.answering import Explorations
from explorer.store import samples_store
from search_spaces.errors import InputError

pytestmark = [pytest.mark.ray]  # the exploration is made by a Ray of its own

CHANGES = (
    "name=moved",
    "dataset.size=[16, 16]",
    "dataset.options={num_images: 60, num_domains: 2, num_labels: 1}",
    "model.width=2",
    "adaptation.num_levels=2",
    "adaptation.policy_widths=[2, 4]",
    "adaptation.pretraining={epochs: 2, learning_rate: 3.0e-3}",
    "train.epochs=2",
    "train.steps_per_epoch=4",
    "train.seeds=[0, 1]",
    "train.grid={pair: [domain_0-to-domain_1, domain_1-to-domain_0], amount: [8, 0]}",
    "explore.num_points=5",
    "explore.settings={lambda: [0.1, 0.3]}",
    "baselines=[{method: spottunet, grid: {lambda: [0.1], temperature: [0.1], amount: [8]}}, "
    "{method: finetune-first}, {method: no-adaptation}, "
    "{method: oracle, grid: {fold: [0, 1, 2]}}]",
)
NUM_POINTS = {
    "spottunet-amortised": 12,  # two amounts, 5 of the grid and one more
    "spottunet": 1,
    "finetune-first": 2,
    "no-adaptation": 1,
    "oracle": 1,  # the mean of three folds
}


@pytest.fixture(scope="module")
def runs_dir(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaptation")
    ended = explorer(
        "run",
        "spottunet-demo",
        *(part for change in CHANGES for part in ("--set", change)),
        "--runs-dir",
        folder / "runs",
        "--json",
        MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
    )
    assert ended.code == 0, ended.stderr
    num_rows = 2 * 2 * 2 * (sum(NUM_POINTS.values()) + 2)  # splits, pairs, seeds
    assert json.loads(ended.stdout)["num_measurements"] == num_rows
    assert "completed. Last result" not in ended.stderr
    return folder / "runs"


@pytest.fixture
def exploration(runs_dir):
    return open_exploration("moved-1", runs_dir)


def test_every_method_has_its_points_of_both_seeds(exploration):
    for method, count in NUM_POINTS.items():
        points = exploration.points(method=method)
        assert len(points) == count
        assert {points.point(index).num_seeds for index in range(count)} == {2}
    names = exploration.points(method="spottunet").point(0).conditioning
    assert set(names) == {"lambda", "temperature", "amount"}
    assert dict(exploration.points(method="no-adaptation").point(0).conditioning) == {}


def test_source_is_trained_once_for_each_seed_and_all_start_from_it(exploration):
    records = {path.parent.name for path in (exploration.folder / "trials").glob("*/trial.json")}
    sources = {name for name in records if name.startswith("source")}
    assert sources == {f"source-domain-domain_{d}-s{s}" for d in (0, 1) for s in (0, 1)}
    assert len(records) == 4 + 2 * 2 * (2 + 1 + 2 + 1 + 3)
    still = exploration.points(method="no-adaptation").point(0)
    assert still.metrics["fine_tuned_blocks"] == 0
    first = exploration.points(method="finetune-first").point(0)
    assert first.metrics["fine_tuned_blocks"] == 2
    assert first.metrics["fine_tuned/init_0"] == 1


def test_each_test_image_is_judged_by_the_oracle_that_did_not_see_it(exploration):
    table = samples_store(exploration.folder).load().to_pandas()
    own = table[(table.method == "oracle") & (table.seed == 0)]
    judged = own.groupby("sample_id")["metric/fine_tuned_blocks"].count()
    assert (judged == 1).all()
    assert len(judged) == table[table.method == "no-adaptation"].sample_id.nunique()


def test_query_and_comparison_answer(explorer, runs_dir, exploration):
    bound = ("--max", "fine_tuned_blocks=12", "--runs-dir", runs_dir, "--json")
    asked = explorer("query", "moved-1", *bound)
    assert asked.code in (0, 3), asked.stderr
    answer = json.loads(asked.stdout)
    point = answer["point"] or answer["nearest"]
    assert set(point["conditioning"]) == {"lambda", "amount"}
    compared = exploration.compare()
    assert set(compared["methods"]) == set(NUM_POINTS)
    tests = {row["against"]: row for row in compared["significance_on_test"]}
    assert set(tests) == set(NUM_POINTS) - {"spottunet-amortised"}
    assert {row["num_samples"] for row in tests.values()} == {12}
    names = {path.name for path in (exploration.folder / "figures").glob("*.png")}
    assert {
        "surface_dice-against-fine_tuned_blocks-val.png",
        "surface_dice-against-lambda-test.png",
    } <= names
    others = ("fold", "temperature", "amount", "map")
    assert not any(other in name for name in names for other in others)
    values = exploration.points().values("fine_tuned_blocks")
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", ["strategies", "lambda", "blocks", "amortisation"])
def test_analysis_is_printed_drawn_and_kept(explorer, runs_dir, exploration, name):
    ended = explorer("analyze", "moved-1", name, "--runs-dir", runs_dir, "--json")
    assert ended.code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["rows"]
    assert found["notes"]
    assert found["figure"].endswith(f"figures/analysis-{name}.png")
    assert (exploration.folder / "figures" / f"analysis-{name}.png").stat().st_size > 5000
    lines = Path(found["table"]).read_text(encoding="utf-8").splitlines()
    assert len(list(csv.DictReader(lines))) == len(found["rows"])
    told = explorer("analyze", "moved-1", name, "--runs-dir", runs_dir)
    assert all(note in told.stdout for note in found["notes"])


def test_analyses_are_listed_and_others_refused(explorer, runs_dir, exploration):
    listed = json.loads(explorer("analyze", "moved-1", "--runs-dir", runs_dir, "--json").stdout)
    assert set(listed["analyses"]) == {"strategies", "lambda", "blocks", "amortisation"}
    refused = explorer("analyze", "moved-1", "fig2", "--runs-dir", runs_dir)
    assert refused.code == 2
    assert "unknown analysis of moved-1 'fig2'; known: amortisation, blocks" in refused.error


def test_amortised_model_meets_the_grid_at_its_lambda(exploration):
    found, _, _ = exploration.analyze("amortisation")
    assert [row["setting"]["lambda"] for row in found.rows] == [0.1, 0.1]
    assert {row["pair"] for row in found.rows} == {
        "domain_0-to-domain_1",
        "domain_1-to-domain_0",
    }
    table = samples_store(exploration.folder).load().to_pandas()
    twice = table.groupby(["trial_id", "setting_id", "sample_id"]).size()
    assert twice.max() == 1  # 0.3 is of the grid, too


def test_unmeasured_setting_is_that_of_one_amount(exploration):
    there = exploration.at({"lambda": 0.01, "amount": 8})
    assert not there.metrics
    assert there.costs["macs"] > 0
    assert len(there.trial_ids) == 4
    assert all("amount8" in name for name in there.trial_ids)
    with pytest.raises(InputError, match="amount: needed"):
        exploration.at({"lambda": 0.01})
    with pytest.raises(InputError, match="was not trained for amount = 9"):
        exploration.at({"lambda": 0.01, "amount": 9})


def test_models_of_several_pairs_predict_nothing_and_are_not_optimized(explorer, runs_dir):
    exploration = open_exploration("moved-1", runs_dir)
    with pytest.raises(InputError, match=r"several pairs of domains.*--set train.grid.pair="):
        Explorations(runs_dir).choose(exploration, {"lambda": 0.01, "amount": 8})
    refused = explorer("optimize", "moved-1", "--solver", "grid", "--runs-dir", runs_dir)
    assert refused.code == 2
    assert "judged by images of their own domains" in refused.error


def test_refined_answer_is_of_one_amount_and_leaves_the_analyses(explorer, runs_dir, exploration):
    before = exploration.analyze("strategies")[0].rows
    bounds = ("--max", "amount=8", "--min", "amount=8")
    asked = explorer("query", "moved-1", *bounds, "--refine", "4", "--runs-dir", runs_dir, "--json")
    assert json.loads(asked.stdout)["point"]["conditioning"]["amount"] == 8
    assert len(exploration.points()) > NUM_POINTS["spottunet-amortised"]
    assert exploration.analyze("strategies")[0].rows == before


def test_network_of_an_adaptation_is_not_exported_yet(explorer, runs_dir, tmp_path):
    refused = explorer("export", "moved-1", "--output", tmp_path / "out", "--runs-dir", runs_dir)
    assert refused.code == 2
    assert "method spottunet-amortised: its networks cannot be handed over" in refused.error
