"""The command line: what it prints, where, and with which exit code."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from explorer import cli
from explorer.exporting import _best_trial, _point_of, load_network
from explorer.models import build_trainable
from explorer.points import Point
from explorer.queries import PointTable
from explorer.specs import load_spec
from explorer.splits import load_data
from explorer.store import write_lock
from explorer.training import read_record, read_weights
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from tests.conftest import columns_of, row
from trainables.train_loop import load_tensors

pytestmark = [pytest.mark.ray]  # the shared exploration is made by a Ray of its own

POINT_KEYS = {
    "conditioning",
    "metrics",
    "standard_errors",
    "seed_sd",
    "num_seeds",
    "costs",
    "test_metrics",
    "method",
    "trial_ids",
}


class Printed:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def error(self):
        """The one line of a refusal, after lines of progress; stdout stays empty."""
        assert self.out == ""
        (line,) = (one for one in self.err.splitlines() if one.startswith("error: "))
        assert self.err.endswith(f"{line}\n")
        return line.removeprefix("error: ").strip()


@pytest.fixture
def call(finished, monkeypatch, capsys):
    """A command in this process, asked of the shared exploration."""
    handler = signal.getsignal(signal.SIGTERM)

    def command(*arguments):
        monkeypatch.setenv("EXPLORER_RUNS_DIR", str(finished.runs_dir))
        monkeypatch.setattr(sys, "argv", ["explorer", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return Printed(code, *capsys.readouterr())

    yield command
    signal.signal(signal.SIGTERM, handler)


def achievable(call, name="macs"):
    points = call("frontier", "tiny-1", "--json").json["frontier"]
    return sorted(point["costs"][name] for point in points), points


def all_costs():
    """MACs of the five explored settings, ascending in phi."""
    trainable = build_trainable(load_spec("demo", TINY_CHANGES))
    return [trainable.costs({"phi": phi})["macs"] for phi in np.linspace(0, 0.5, 5)]


TINY_CHANGES = ("dataset.size=[16,16]", "model.width=4", "model.stages=3")


def assert_is_point(point):
    assert set(point) == POINT_KEYS
    assert {"macs", "flops", "parameters", "activation_bytes"} == set(point["costs"])
    assert point["costs"]["flops"] == 2 * point["costs"]["macs"]
    for family in ("metrics", "test_metrics", "standard_errors", "seed_sd", "costs"):
        assert all(isinstance(value, float) for value in point[family].values())
    assert "dice" in point["metrics"]
    assert set(point["conditioning"]) == {"phi"}


# run


def test_run_prints_its_contract_and_nothing_else(finished):
    document = json.loads(finished.ended.stdout)
    assert set(document) == {
        "exploration_id",
        "name",
        "status",
        "num_measurements",
        "frontier",
        "elapsed_s",
    }
    assert (document["exploration_id"], document["name"]) == ("tiny-1", "tiny")
    # five settings and two networks, on validation and on test
    assert document["num_measurements"] == 14
    assert document["frontier"]
    for point in document["frontier"]:
        assert_is_point(point)
        assert (point["method"], point["num_seeds"]) == ("sshn", 1)
        assert point["trial_ids"] == ["sshn-s0"]
        assert set(point["test_metrics"]) == set(point["metrics"])
    stages = {"training", "exploring", "testing", "reporting"}
    assert set(document["elapsed_s"]) == {*stages, "total"}
    assert document["elapsed_s"]["total"] == pytest.approx(
        sum(document["elapsed_s"][stage] for stage in stages)
    )


def test_run_tells_its_progress_on_stderr(finished):
    lines = finished.ended.stderr.splitlines()
    assert lines[:4] == [
        "checking the spec",
        "reading the data set synthetic",
        "starting Ray on this machine",
        "training: 3",
    ]
    assert "exploring on validation: 5" in lines
    assert "final pass on test: 5" in lines
    assert not [line for line in lines if "Traceback" in line or "WARNING" in line]


def test_run_leaves_figures_a_page_and_its_whole_spec(finished):
    figures = {path.stem for path in (finished.folder / "figures").glob("*.png")}
    assert {
        "dice-against-macs-val",
        "dice-against-phi-test",
        "training-cost",
        "learning-curves",
    } <= figures
    assert "plotly" in (finished.folder / "frontier.html").read_text(encoding="utf-8")
    spec = load_spec(finished.folder / "spec.yaml")
    assert spec.digest == json.loads((finished.folder / "state.json").read_text())["spec_digest"]
    assert (spec.explore.seed, spec.train.betas) == (0, (0.9, 0.99))


def test_run_is_tracked(finished):
    with sqlite3.connect(finished.runs_dir / "mlflow.db") as database:
        query = "select count(*) from tags where key = 'mlflow.parentRunId'"
        (num_children,) = database.execute(query).fetchone()
    # at least the three trainings, the two baselines and the front
    front = json.loads(finished.ended.stdout)["frontier"]
    assert num_children == 3 + 2 + len(front)
    assert json.loads((finished.folder / "state.json").read_text())["tracking"] == "delivered"


# query


def test_query_between_at_below_and_above_what_can_be_had(call):
    costs = all_costs()
    _, points = achievable(call)
    best = max(point["metrics"]["dice"] for point in points)
    below = call("query", "tiny-1", "--max", f"macs={costs[0] - 1}", "--json")
    assert below.code == 3
    assert below.json["feasible"] is False
    assert below.json["bounds"] == {"macs": {"max": costs[0] - 1}}
    assert "macs" in below.json["reason"]
    assert below.json["nearest"]["costs"]["macs"] == costs[0]
    assert_is_point(below.json["nearest"])
    at = call("query", "tiny-1", "--max", f"macs={costs[0]}", "--json")
    assert at.code == 0
    assert set(at.json) == {"feasible", "point", "bounds", "status"}
    assert_is_point(at.json["point"])
    assert at.json["point"]["costs"]["macs"] == costs[0]
    between = call("query", "tiny-1", "--max", f"macs={(costs[0] + costs[1]) / 2}", "--json")
    assert between.json["point"]["conditioning"] == at.json["point"]["conditioning"]
    above = call("query", "tiny-1", "--max", "macs=1G", "--json")
    assert above.json["point"]["metrics"]["dice"] == best
    free = call("query", "tiny-1", "--json")
    assert free.json["point"] == above.json["point"]


def test_query_takes_flops_and_suffixes(call):
    costs = all_costs()
    in_macs = call("query", "tiny-1", "--max", f"macs={costs[2] / 1000:.6f}k", "--json")
    in_flops = call("query", "tiny-1", "--max", f"flops={2 * costs[2] / 1e6:.9f}M", "--json")
    assert in_macs.json["point"] == in_flops.json["point"]
    assert in_macs.json["point"]["costs"]["macs"] <= costs[2]


def test_query_minimises_within_a_lower_bound(call):
    _, points = achievable(call)
    best = max(point["metrics"]["dice"] for point in points)
    cheap = call("query", "tiny-1", "--min", f"dice={best!r}", "--minimize", "macs", "--json")
    assert cheap.code == 0
    assert cheap.json["point"]["metrics"]["dice"] == best
    asked_too_much = call("query", "tiny-1", "--min", "dice=0.9", "--minimize", "macs", "--json")
    assert asked_too_much.code == 3
    assert asked_too_much.json["nearest"]["metrics"]["dice"] == best


def test_query_speaks_to_people_too(call):
    fits = call("query", "tiny-1", "--max", "macs=1G")
    assert fits.code == 0
    assert fits.out.startswith("best within macs <= 1G: sshn at phi = ")
    fails = call("query", "tiny-1", "--max", "macs=1")
    assert fails.code == 3
    assert fails.out.startswith("nothing fits macs <= 1: ")
    assert "nearest: sshn at phi = " in fails.out


def test_query_asks_a_baseline_by_name(call):
    point = call("query", "tiny-1", "--method", "fixed", "--max", "macs=1G", "--json").json["point"]
    assert point["method"] == "fixed"
    assert point["conditioning"]["phi"] in (0.125, 0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max", "mac=1"], "unknown metric, cost or conditioning 'mac'; known: .*dice.*macs"),
        (["--max", "macs"], "expected NAME=VALUE such as macs=0.6G, got 'macs'"),
        (["--max", "macs=lots"], "bound on macs: expected a number"),
        (["--max", "macs=nan"], "bound on macs: expected a number"),
        (["--maximize", "dize"], "unknown metric, cost or conditioning 'dize'"),
        (["--maximize", "dice", "--minimize", "macs"], "expected one of them, got both"),
        (["--method", "film"], "film"),
        (["--max", "macs=1", "--max", "macs=2"], "macs"),
    ],
)
def test_wrong_question_exits_2_in_one_line(call, arguments, message):
    printed = call("query", "tiny-1", "--json", *arguments)
    assert printed.code == 2
    assert re.search(message, printed.error)


@pytest.mark.parametrize("name", ["tiny-9", "../tiny-1", "", "a/b"])
@pytest.mark.parametrize("command", ["query", "show", "frontier", "resume"])
def test_unknown_exploration_exits_2(call, name, command):
    printed = call(command, name, "--json")
    assert printed.code == 2
    assert "tiny-1" in printed.error or "expected an exploration id such as demo-1" in printed.error


def test_unknown_option_exits_2(call):
    assert call("query", "tiny-1", "--maximum", "macs=1").code == 2
    assert call("querry").code == 2


def test_refining_in_vain_says_so(call, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "tiny-1")
    cheapest = ("query", "tiny-1", "--runs-dir", tmp_path, "--minimize", "macs")
    printed = call(*cheapest, "--refine", "2", "--json")
    assert printed.json == call(*cheapest, "--json").json
    lines = printed.err.splitlines()
    assert lines[:2] == ["refining tiny-1", "reading the data set synthetic"]
    assert lines[-1] == "refining found nothing better: the answer is the one before"


# frontier


def test_frontier_is_nondominated_and_cheapest_first(call):
    costs, points = achievable(call)
    dice = [point["metrics"]["dice"] for point in points]
    assert [point["costs"]["macs"] for point in points] == costs
    assert dice == sorted(dice)
    for point in points:
        assert_is_point(point)


def test_frontier_compares_with_every_baseline(call):
    document = call("frontier", "tiny-1", "--compare", "--json").json
    comparison = document["comparison"]
    assert set(comparison["methods"]) == {"sshn", "fixed"}
    fixed = comparison["methods"]["fixed"]
    assert (fixed["num_trainings"], fixed["num_settings"]) == (2, 2)
    assert fixed["train_ratio"] > 0
    assert_is_point(fixed["best"])
    # phi 0.125 is the one setting that both were evaluated at
    (paired,) = comparison["paired_on_test"]
    assert (paired["against"], paired["num_settings"], paired["num_images"]) == ("fixed", 1, 8)
    assert paired["low"] <= paired["difference"] <= paired["high"]
    outside = call("frontier", "tiny-1", "--compare", "--between", "phi=0.3:0.5", "--json").json
    assert outside["comparison"]["paired_on_test"] == []
    assert "Methods" in call("frontier", "tiny-1", "--compare").out


@pytest.mark.parametrize("text", ["phi", "phi=a:b", "phi=0.1", "psi=0:1"])
def test_wrong_range_exits_2(call, text):
    printed = call("frontier", "tiny-1", "--compare", "--between", text)
    assert printed.code == 2
    assert printed.error


@pytest.mark.parametrize("split", ["val", "test"])
def test_frontier_is_drawn(call, tmp_path, split):
    page, picture = tmp_path / "out.html", tmp_path / "out.png"
    for path in (page, picture):
        document = call("frontier", "tiny-1", "--plot", path, "--split", split, "--json").json
        assert document["plot"] == str(path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "tiny-1" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("plot", "code", "message"),
    [
        ("out.svg", 2, "expected a file name ending in .html or .png"),
        ("missing/out.png", 1, "missing/out.png"),
        ("missing/out.html", 1, "missing/out.html"),
    ],
)
def test_figure_that_cannot_be_drawn_is_one_line(call, tmp_path, plot, code, message):
    printed = call("frontier", "tiny-1", "--plot", tmp_path / plot)
    assert (printed.code, message in printed.error) == (code, True)


def test_unknown_split_exits_2(call, tmp_path):
    printed = call("frontier", "tiny-1", "--plot", tmp_path / "o.png", "--split", "train")
    assert (printed.code, "known: test, val" in printed.error) == (2, True)


# list, show, cost, datasets


def test_list_names_every_exploration(call):
    (row,) = call("list", "--json").json
    assert row == {
        "exploration_id": "tiny-1",
        "name": "tiny",
        "method": "sshn",
        "dataset": "synthetic",
        "status": "finished",
        "num_measurements": 14,
    }
    assert "tiny-1" in call("list").out


def test_list_of_nothing_says_so(call, tmp_path):
    assert call("list", "--runs-dir", tmp_path / "none", "--json").json == []
    assert "no explorations in" in call("list", "--runs-dir", tmp_path / "none").out


def test_list_goes_on_past_a_damaged_exploration(call, finished, tmp_path):
    runs = tmp_path / "runs"
    for name in ("tiny-1", "tiny-2", "tiny-3"):
        (runs / name).mkdir(parents=True)
        for file in ("spec.yaml", "state.json"):
            shutil.copy(finished.folder / file, runs / name / file)
    (runs / "tiny-1" / "state.json").write_text("{")
    (runs / "tiny-2" / "spec.yaml").unlink()
    printed = call("list", "--runs-dir", runs, "--json")
    assert [row["exploration_id"] for row in printed.json] == ["tiny-3"]
    assert [line.split(":")[0] for line in printed.err.splitlines()] == ["left out"] * 2


def test_show_holds_everything_that_changes_a_result(call):
    document = call("show", "tiny-1", "--json").json
    spec = document["spec"]
    assert (spec["train"]["betas"], spec["explore"]["batch_size"]) == ([0.9, 0.99], 2)
    assert (document["status"], document["num_measurements"]) == ("finished", 14)
    assert len(document["data_digest"]) == 64
    assert {row["trial_id"]: row["status"] for row in document["trials"]} == {
        "sshn-s0": "ok",
        "fixed-phi0.125-s0": "ok",
        "fixed-phi0.4-s0": "ok",
    }
    text = call("show", "tiny-1").out
    assert "status: finished" in text
    assert "learning_rate: 0.01" in text


def test_cost_needs_no_run(call):
    document = call("cost", "demo", "--at", "phi=0.5", "--json").json
    assert set(document) == {"conditioning", "costs", "sizes"}
    assert document["conditioning"] == {"phi": 0.5}
    trainable = build_trainable(load_spec("demo"))
    assert document["costs"] == trainable.costs({"phi": 0.5})
    assert document["sizes"] == trainable.sizes({"phi": 0.5})
    cheaper = call("cost", "demo", "--at", "phi=0", "--set", "model.width=4", "--json").json
    assert cheaper["costs"]["macs"] < document["costs"]["macs"]
    assert "macs" in call("cost", "demo", "--at", "phi=0.5").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["demo", "--at", "phi=1.5"],
            r"^--at: phi must be in \[0, 1\], got 1.5; give one --at NAME=VALUE each: "
            r"phi in \[0, 1\]$",
        ),
        (["demo", "--at", "phi=-0.1"], r"phi must be in \[0, 1\]"),
        (["demo", "--at", "phi=nan"], "phi must be finite"),
        (["demo", "--at", "phi=half"], "phi must be a number, got 'half'"),
        (["demo", "--at", "phi"], "--at: phi: expected NAME=VALUE such as phi=0.5"),
        (["demo", "--at", "psi=0.5"], "expected values for phi, got psi"),
        (["demmo", "--at", "phi=0.5"], "no such preset or file; presets: "),
        (["demo", "--at", "phi=0.5", "--set", "method=shn"], "unknown method 'shn'"),
    ],
)
def test_wrong_cost_question_exits_2(call, arguments, message):
    printed = call("cost", *arguments, "--json")
    assert printed.code == 2
    assert re.search(message, printed.error)


def test_datasets_are_listed(call):
    rows = {row["name"]: row for row in call("datasets", "list", "--json").json}
    assert {"synthetic", "wbc", "oasis", "msd_hippocampus", "cc359"} <= set(rows)
    assert {"cub200", "camus", "pandental"} <= set(rows)
    assert (rows["synthetic"]["needs_root"], rows["wbc"]["needs_root"]) == (False, True)
    assert "wbc" in call("datasets", "list").out


def test_datasets_check_counts_and_finds_problems(call, wbc_root):
    whole = call("datasets", "check", "wbc", "--root", wbc_root, "--json")
    assert whole.code == 0
    assert set(whole.json) == {"name", "root", "num_images", "problems", "details"}
    assert (whole.json["num_images"], whole.json["problems"]) == (12, [])
    (wbc_root / "Dataset 1" / "001.png").unlink()
    broken = call("datasets", "check", "wbc", "--root", wbc_root, "--json")
    assert broken.code == 2
    assert broken.json["num_images"] == 11
    assert len(broken.json["problems"]) == 1
    assert "001.png" in call("datasets", "check", "wbc", "--root", wbc_root).out


def test_datasets_check_refuses_what_is_not_there(call, tmp_path):
    assert "known: " in call("datasets", "check", "mnist", "--root", tmp_path).error
    nowhere = call("datasets", "check", "wbc", "--root", tmp_path / "none", "--json")
    assert (nowhere.code, nowhere.json["num_images"]) == (2, 0)
    assert "none" in nowhere.json["problems"][0]


# export


def test_export_equals_the_hypernetwork_exactly(call, finished, tmp_path):
    spec = load_spec(finished.folder / "spec.yaml")
    weights = read_weights(finished.folder / "trials" / "sshn-s0")
    trainable = build_trainable(spec)
    module = trainable.build(0)
    load_tensors(module, weights, "sshn-s0")
    images = torch.from_numpy(load_data(spec).images[:4])
    for index, macs in enumerate(all_costs()[::2]):
        output = tmp_path / f"export{index}"
        document = call(
            "export", "tiny-1", "--max", f"macs={macs}", "--output", output, "--json"
        ).json
        assert document["trial_id"] == "sshn-s0"
        assert [Path(file).exists() for file in document["files"]] == [True, True]
        assert_is_point(document["point"])
        network = load_network(output)
        phi = document["point"]["conditioning"]["phi"]
        with torch.inference_mode():
            expected = trainable.materialize(module, {"phi": phi})(images)
            torch.testing.assert_close(network(images), expected, rtol=0, atol=0)
            z = trainable.encoded({"phi": phi}, images.device)
            conditioned = module(z, images, trainable.factors({"phi": phi}))
            torch.testing.assert_close(network(images), conditioned, rtol=0, atol=0)


def test_export_of_a_baseline_is_the_network_that_was_trained(call, finished, tmp_path):
    document = call(
        "export", "tiny-1", "--method", "fixed", "--output", tmp_path / "fixed", "--json"
    ).json
    trained = read_weights(finished.folder / "trials" / document["trial_id"])
    exported = load_network(tmp_path / "fixed").settled
    assert sum(t.numel() for t in exported.values()) == sum(t.numel() for t in trained.values())
    assert read_record(finished.folder / "trials" / document["trial_id"]).trial.method == "fixed"


def test_export_takes_the_knee_and_names_of_seeds(call, tmp_path):
    knee = call("query", "tiny-1", "--knee", "--json").json["point"]
    document = call("export", "tiny-1", "--knee", "--output", tmp_path / "k", "--json").json
    assert document["point"] == knee
    one = ("--seed", "0", "--output", tmp_path / "s", "--json")
    assert (
        call("export", "tiny-1", *one).json["point"]
        == call("query", "tiny-1", "--json").json["point"]
    )
    printed = call("export", "tiny-1", "--seed", "7", "--output", tmp_path / "o")
    assert (printed.code, "no measurements of seed 7; there are: 0" in printed.error) == (2, True)


def test_exported_network_is_of_a_trial_behind_the_point():
    columns = {
        "split": np.array(["val"] * 3, dtype=object),
        "trial_id": np.array(["sshn-s0", "sshn-s1", "sshn-s2"], dtype=object),
        "conditioning/phi": np.full(3, 0.5),
        "metric/dice": np.array([0.9, 0.7, 0.8]),
    }
    point = Point({"phi": 0.5}, {}, {}, {}, 2, {}, {}, "sshn", ("sshn-s1", "sshn-s2"))
    assert _best_trial(columns, Objective("dice", "maximize"), point) == "sshn-s2"


def test_exported_metrics_are_those_of_the_seed_whose_weights_are_exported():
    values = {0: 0.9, 1: 0.7}
    columns = columns_of(
        [
            row(phi, dice + phi, seed=seed, split=split)
            for seed, dice in values.items()
            for phi in (0.1, 0.2)
            for split in ("val", "test")
        ]
    )
    mean = next(
        one
        for one in map(PointTable.of(columns, method="sshn").point, range(2))
        if one.conditioning == {"phi": 0.2}
    )
    assert mean.metrics["dice"] == pytest.approx(1.0)
    own = _point_of(columns, mean, 1)
    assert own.conditioning == {"phi": 0.2}
    assert own.metrics["dice"] == own.test_metrics["dice"] == pytest.approx(0.9)


def test_infeasible_export_writes_nothing(call, tmp_path):
    printed = call("export", "tiny-1", "--max", "macs=1", "--output", tmp_path / "o", "--json")
    assert (printed.code, printed.json["feasible"]) == (3, False)
    assert not (tmp_path / "o").exists()


def test_export_refuses_a_folder_in_use_and_an_unknown_format(call, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    printed = call("export", "tiny-1", "--output", tmp_path)
    assert (printed.code, "expected a new or empty folder" in printed.error) == (2, True)
    printed = call("export", "tiny-1", "--output", tmp_path / "kept.txt")
    assert (printed.code, "expected a new or empty folder" in printed.error) == (2, True)
    printed = call("export", "tiny-1", "--output", tmp_path / "o", "--format", "pickle")
    assert (printed.code, "known: safetensors" in printed.error) == (2, True)
    printed = call("export", "tiny-1", "--output", tmp_path / "kept.txt" / "below")
    assert (printed.code, "cannot be written" in printed.error) == (1, True)


def test_export_at_a_setting_takes_no_question(call, tmp_path):
    output = ("--output", tmp_path / "o", "--json")
    printed = call("export", "tiny-1", "--at", "phi=0.5", "--max", "macs=1G", *output)
    assert (printed.code, "--at names the setting: leave --max" in printed.error) == (2, True)
    printed = call("export", "tiny-1", "--at", "phi=0.2", "--method", "fixed", *output)
    assert (printed.code, "fixed is trained for each setting" in printed.error) == (2, True)
    printed = call("export", "tiny-1", "--at", "phi=0.2", "--register", "a/b", *output)
    assert (printed.code, "--register 'a/b': expected letters" in printed.error) == (2, True)
    assert not (tmp_path / "o").exists()
    document = call("export", "tiny-1", "--at", "phi=0.4", "--method", "fixed", *output).json
    assert document["point"]["conditioning"] == {"phi": 0.4}
    assert document["point"]["metrics"]
    assert document["registered"] is None
    assert document["formats"] == {"safetensors": document["files"]}
    shown = call("export", "tiny-1", "--at", "phi=0.2", "--output", tmp_path / "p")
    assert "sshn at phi = 0.2: not measured; " in " ".join(shown.out.split())


def test_damaged_exports_are_refused_by_name(call, tmp_path):
    from safetensors.torch import load_file, save_file

    call("export", "tiny-1", "--output", tmp_path / "o", "--json")
    weights, description = tmp_path / "o" / "weights.safetensors", tmp_path / "o" / "network.json"
    tensors, text = load_file(weights), description.read_text()
    name = sorted(tensors)[0]
    renamed = {("foreign" if key == name else key): tensor for key, tensor in tensors.items()}
    save_file(renamed, weights)
    with pytest.raises(InputError, match=r"weights\.safetensors: tensor .*another model"):
        load_network(tmp_path / "o")
    save_file({**tensors, name: tensors[name].flatten()[:1].clone()}, weights)
    with pytest.raises(InputError, match=f"tensor '{name}': expected shape .*, got \\(1,\\)"):
        load_network(tmp_path / "o")
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(InputError, match=r"weights\.safetensors: expected a whole safetensors"):
        load_network(tmp_path / "o")
    description.write_text("{")
    with pytest.raises(InputError, match=r"network\.json is damaged"):
        load_network(tmp_path / "o")
    description.write_text(text.replace('"unet"', '"vnet"'))
    with pytest.raises(InputError, match=r"unknown model\.network 'vnet'; known: fpn, pspnet"):
        load_network(tmp_path / "o")
    description.write_text(text.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(InputError, match="expected format_version 1, got 9"):
        load_network(tmp_path / "o")
    description.write_text("{}")
    with pytest.raises(InputError, match="not a description of a network"):
        load_network(tmp_path / "o")


# Processes of their own: what is loaded, and what fails before anything is trained


def test_query_loads_neither_torch_nor_ray(finished):
    code = (
        "import sys\n"
        "from explorer.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)), file=sys.stderr)\n"
    )
    for command in (
        ["query", "tiny-1", "--max", "macs=1G", "--json"],
        ["list"],
        ["show", "tiny-1"],
    ):
        arguments = [*command, "--runs-dir", str(finished.runs_dir)]
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "[]\n"


def test_unreachable_cluster_fails_fast_and_the_run_is_unfinished(
    explorer, call, tiny_spec, tmp_path
):
    runs = ("--runs-dir", tmp_path / "runs")
    start = time.monotonic()
    ended = explorer("run", tiny_spec, *runs, "--json", RAY_ADDRESS="127.0.0.1:1")
    assert time.monotonic() - start < 30
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.error.startswith("RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there")
    state = json.loads((tmp_path / "runs" / "tiny-1" / "state.json").read_text())
    assert (state["status"], state["num_measurements"]) == ("failed", 0)
    again = call("run", tiny_spec, *runs, "--json")
    assert again.code == 2
    assert "tiny-1 has the same spec and is failed" in again.error
    assert "explorer resume tiny-1, or start another with --new" in again.error
    nothing = call("query", "tiny-1", *runs, "--json")
    assert (nothing.code, "tiny-1 holds no measurements yet" in nothing.error) == (2, True)


def test_data_that_changed_are_refused(explorer, wbc_root, tmp_path):
    from PIL import Image

    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"name: cells\ndataset: {{name: wbc, root: {wbc_root}, size: [16, 16]}}\n"
        "model: {width: 2, stages: 2}\ntrain: {epochs: 1, batch_size: 4}\ntracking: false\n"
    )
    runs = ("--runs-dir", tmp_path / "runs")
    unreachable = {"RAY_ADDRESS": "127.0.0.1:1"}
    assert explorer("run", spec, *runs, **unreachable).code == 1
    mask = wbc_root / "Dataset 1" / "001.png"
    Image.new("L", (10, 12)).save(mask)
    ended = explorer("resume", "cells-1", *runs, **unreachable)
    assert ended.code == 2
    assert "the data set 'wbc' changed since the exploration began" in ended.error


def test_missing_root_and_half_copied_data_leave_no_trace(call, wbc_root, tmp_path):
    runs = ("--runs-dir", tmp_path / "runs")
    ended = call("run", "sshn-wbc", *runs)
    assert (ended.code, "--set dataset.root=DIR" in ended.error) == (2, True)
    (wbc_root / "Dataset 2" / "001.bmp").unlink()
    ended = call("run", "sshn-wbc", "--set", f"dataset.root={wbc_root}", *runs)
    assert (ended.code, "001.bmp' is missing" in ended.error) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_spec_that_changed_is_refused(call, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "tiny-1")
    path = tmp_path / "tiny-1" / "spec.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    ended = call("resume", "tiny-1", "--runs-dir", tmp_path)
    assert (ended.code, "spec.yaml changed since the exploration began" in ended.error) == (2, True)


def test_second_process_on_an_exploration_names_the_first(explorer, finished, tmp_path):

    shutil.copytree(finished.folder, tmp_path / "tiny-1")
    with write_lock(tmp_path / "tiny-1" / "lock"):
        ended = explorer("resume", "tiny-1", "--runs-dir", tmp_path, "--json")
    assert (ended.code, ended.stdout) == (2, "")
    assert f"tiny-1 is being written by process {os.getpid()}" in ended.error


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/runs"])
def test_runs_dir_that_cannot_be_is_one_line(call, tiny_spec, tmp_path, place):
    (tmp_path / "file").write_text("")
    ended = call("run", tiny_spec, "--runs-dir", tmp_path / place)
    assert ended.code in (1, 2)
    assert f"--runs-dir {tmp_path / place}: " in ended.error


def test_read_only_runs_dir_is_one_line(call, tiny_spec, tmp_path):

    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    ended = call("run", tiny_spec, "--runs-dir", tmp_path / "runs")
    tmp_path.chmod(0o700)
    assert (ended.code, "cannot be written (Permission denied)" in ended.error) == (2, True)


@pytest.mark.parametrize("change", ["train.epoch=1", "explore.constraints={max: {macs: 1}}"])
def test_wrong_spec_exits_2_and_leaves_no_trace(call, tiny_spec, tmp_path, change):
    ended = call("run", tiny_spec, "--set", change, "--runs-dir", tmp_path / "runs", "--json")
    assert ended.code == 2
    assert ended.error
    assert not (tmp_path / "runs").exists()
