"""Domains held out in turn, from training to the analyses and an answer."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from explorer import open_exploration
from search_spaces.errors import InputError

pytestmark = [pytest.mark.ray]  # the exploration is made by a Ray of its own

DOMAINS = ("domain_0", "domain_1", "domain_2")
CHANGES = (
    "name=held",
    "dataset={name: synthetic, size: [16, 16], "
    "options: {num_images: 90, num_domains: 3, shift: calibration}}",
    f"generalization.domains=[{', '.join(DOMAINS)}]",
    "generalization.options={widths: [4, 8]}",
    "generalization.reader.options={widths: [4, 6]}",
    "generalization.tent.num_steps=2",
    "train.epochs=3",
    f"train.grid={{held_out: [{', '.join(DOMAINS)}], external: [layer2, layer1-layer2]}}",
    "train.seeds=[0, 1]",
    "explore.num_points=3",
    "baselines=[{method: erm, epochs: 2}, {method: mdan, epochs: 2}, {method: tent}]",
)


@pytest.fixture(scope="module")
def runs_dir(explorer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generalization")
    ended = explorer(
        "run",
        "hyda-demo",
        *(part for change in CHANGES for part in ("--set", change)),
        "--runs-dir",
        folder / "runs",
        "--json",
        MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}",
    )
    assert ended.code == 0, ended.stderr
    # splits, domains held out, seeds; two kinds of hyda on four lines of three places
    num_rows = 2 * 3 * 2 * (2 * 12 + 3)
    assert json.loads(ended.stdout)["num_measurements"] == num_rows
    return folder / "runs"


def test_points_are_means_over_domains_and_seeds(runs_dir):
    exploration = open_exploration("held-1", runs_dir)
    table = exploration.points(method="hyda")
    points = [table.point(k) for k in range(len(table))]
    assert len(points) == 24
    assert {p.conditioning["external"] for p in points} == {"layer2", "layer1-layer2"}
    assert {p.num_seeds for p in points} == {2}
    assert all(len(p.trial_ids) == 6 for p in points)
    erm = exploration.points(method="erm").point(0)
    assert erm.costs["macs"] < min(p.costs["macs"] for p in points)
    by_domain = [erm.test_metrics[f"balanced_accuracy/{name}"] for name in DOMAINS]
    assert erm.test_metrics["balanced_accuracy"] == pytest.approx(np.mean(by_domain), rel=1e-12)


@pytest.mark.parametrize("name", ["domains", "parameters", "cost", "interpolation", "features"])
def test_analyses_leave_a_figure_and_a_table(runs_dir, explorer, name):
    ended = explorer("analyze", "held-1", name, "--runs-dir", runs_dir, "--json")
    assert ended.code == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert Path(told["figure"]).stat().st_size > 5000
    with Path(told["table"]).open() as file:
        assert len(list(csv.DictReader(file))) == len(told["rows"])
    rows = told["rows"]
    if name == "domains":
        assert [r["held_out"] for r in rows if r["method"] == "erm"] == [*DOMAINS, "mean"]
        means = {r["method"]: r for r in rows if r["held_out"] == "mean"}
        assert list(means) == ["hyda", "hyda by group", "erm", "mdan", "tent"]
        counts = [r["num_images"] for r in rows if r["method"] == "erm"]
        assert all(0 < count < 90 / 3 for count in counts[:-1])
        assert counts[-1] == sum(counts[:-1])
        for method, row in means.items():
            own = [r["balanced_accuracy"] for r in rows if r["method"] == method][:-1]
            assert row["balanced_accuracy"] == pytest.approx(np.mean(own), rel=1e-12)
        hyda, erm = (means[m]["balanced_accuracy"] for m in ("hyda", "erm"))
        assert means["hyda"]["gain"] == pytest.approx(hyda - erm, abs=1e-12)
    elif name == "parameters":
        assert [r["setting"].get("external") for r in rows] == [
            *["layer2", "layer1-layer2"] * 2,
            *[None] * 3,
        ]
        added = [r["added_parameters"] for r in rows]
        assert added[3] == added[1] > added[0] > 0 == added[4]
        assert all(0 <= r["validation"] <= 1 for r in rows)
    elif name == "cost":
        steps = {r["method"]: r["gradient_steps"] for r in rows}
        assert steps == {"hyda": 0, "hyda by group": 0, "erm": 0, "mdan": 0, "tent": 2}
        assert next(r["added_parameters"] for r in rows if r["method"] == "hyda") > 0
    elif name == "interpolation":
        assert len(rows) == 3 * 12
        start = [r for r in rows if r["from"] == "own" and r["t"] == 0]
        assert {r["gain"] for r in start} == {0.0}
        ends = {(r["from"], r["to"]) for r in rows if r["held_out"] == "domain_1"}
        assert ends == {
            ("own", "group"),
            ("own", "domain_0"),
            ("own", "domain_2"),
            ("domain_0", "domain_2"),
        }
    else:
        assert [r["held_out"] for r in rows] == list(DOMAINS)
        read = rows[1]["readings"]["source1-to-source2"]
        assert (read["from"], read["to"]) == ("domain_0", "domain_2")
        assert read["low"] <= read["median"] <= read["high"]
        assert any(note.startswith("domain_1 is read at ") for note in told["notes"])


def test_query_answers_within_a_budget(runs_dir, explorer):
    ended = explorer("query", "held-1", "--max", "macs=1M", "--runs-dir", runs_dir, "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["point"]["method"] == "hyda"


def test_what_cannot_be_asked_of_it_is_said(runs_dir):
    exploration = open_exploration("held-1", runs_dir)
    with pytest.raises(InputError, match="analyze held-1 interpolation"):
        exploration.optimize()


def test_a_method_without_settings_is_explored_with_one_source(explorer, tmp_path):
    ended = explorer(
        "run",
        "hyda-demo",
        *("--set", "method=erm", "--set", "baselines=[]", "--set", "train.epochs=2"),
        *("--set", "dataset={name: synthetic, size: [16, 16], options: {num_images: 160}}"),
        *("--set", "generalization.domains=[domain_0, domain_1]"),
        *("--set", "generalization.options={widths: [4, 8]}", "--set", "train.batch_size=4"),
        *("--set", "train.grid.held_out=[domain_0, domain_1]", "--set", "train.seeds=[0]"),
        *("--runs-dir", tmp_path / "runs"),
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    assert ended.code == 0, ended.stderr
    assert "nothing fits" not in ended.stdout  # the budget of the example
    exploration = open_exploration("hyda-demo-1", tmp_path / "runs")
    point = exploration.query([]).point
    assert (point.method, dict(point.conditioning)) == ("erm", {})
    assert len(point.trial_ids) == 2
