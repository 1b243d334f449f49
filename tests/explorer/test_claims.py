"""What the report says, of documents that were printed and of ones made up."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from explorer.claims import CLAIMS, TABLE_1, documents_for, rows_of
from explorer.cli import app
from search_spaces.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"


def front(difference: Any, low: Any, high: Any, **own: Any) -> dict[str, Any]:
    """A printed comparison of an SSHN with eleven networks."""
    pair = {
        "method": "sshn",
        "against": "fixed",
        "metric": "dice",
        "difference": difference,
        "low": low,
        "high": high,
        "num_settings": 11,
        "num_images": 80,
        "num_seeds": 1,
    }
    methods = {
        "sshn": {"train_s": 50.0, "num_trainings": 1, "train_ratio": 1.0},
        "fixed": {"train_s": 450.0, "num_trainings": 11, "train_ratio": 9.0},
    }
    comparison = {"paired_on_test": [pair], "methods": methods, "iso_accuracy": {}}
    document = {"exploration_id": "a-1", "method": "sshn", "frontier": [], "data": "wbc, 64 x 64"}
    return document | {"comparison": comparison, "command": "explorer run sshn-wbc"} | own


def found(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["claim"]: row for row in rows_of(document, "there")}


@pytest.mark.parametrize(
    ("low", "high", "held"), [(0.1, 0.3, "yes"), (-0.1, 0.3, "not separated"), (-0.3, -0.1, "no")]
)
def test_a_claim_is_held_against_the_interval(low, high, held):
    row = found(front(0.2, low, high))[
        "one SSHN is more accurate than a network trained for each φ"
    ]
    assert row["held"] == held
    assert row["paper_number"] == "+2.7 points (11 φ)"
    assert row["here"].startswith("+20.00 points (95 %: ")
    assert row["here"].endswith("of Dice over 11 settings; 80 images, 1 seed")
    assert (row["data"], row["cost_s"]) == ("wbc, 64 x 64", 50.0)
    assert (row["exploration_id"], row["command"]) == ("a-1", "explorer run sshn-wbc")


@pytest.mark.parametrize(
    ("difference", "p", "held"),
    [
        (0.012, 0.01, "yes"),
        (0.012, 0.2, "not separated"),
        (-0.001, 0.01, "not separated"),
        (-0.012, 0.99, "no"),
    ],
)
@pytest.mark.parametrize(
    ("data", "number"),
    [("oxford_pets, 64 x 64", "+3.1 points"), ("wbc", "+0.8 to +5.0 points (other data sets)")],
)
def test_the_best_of_both_are_held_against_a_test_over_images(difference, p, held, data, number):
    document = front(0.2, 0.1, 0.3, data=data)
    row = {"method": "sshn", "against": "fixed", "difference": difference}
    document["comparison"]["significance_on_test"] = [row | {"wilcoxon_p": p, "num_samples": 80}]
    best = found(document)[
        "at its best φ it is more accurate than the best network trained for one φ"
    ]
    assert (best["held"], best["paper_number"]) == (held, number)
    told = f"{100 * difference:+.2f} points of Dice (better: Wilcoxon p = {p:.2g}; 80 images)"
    assert best["here"] == told


def test_what_was_not_compared_has_no_row():
    whole = found(front(0.2, 0.1, 0.3))
    assert "one SSHN is more accurate than FiLM" not in whole
    assert "it reaches the quality of the best network trained for one φ at less cost" not in whole
    assert found(front(0.2, None, None)).keys() == whole.keys() - {
        "one SSHN is more accurate than a network trained for each φ"
    }
    assert found(front(0.2, 0.1, 0.3, method="hyda")) == {}


def test_other_data_are_held_against_the_range_over_the_papers():
    row = next(rows_of(front(0.2, 0.1, 0.3, data="synthetic, 48 x 48"), "there"))
    assert row["paper_number"] == "+0.6 to +3.4 points (four other data sets)"
    (camus,) = {len(own) for table in TABLE_1.values() for own in table.values()}
    assert camus == 11


def test_a_comparison_over_some_factors_is_held_against_the_same_ones():
    document = front(0.2, 0.1, 0.3)
    document["comparison"]["ranges"] = {"phi": [0.1, 0.5]}
    row = next(rows_of(document, "there"))
    assert row["paper_number"] == "+3.4 points (9 φ)"
    assert "over 11 settings, φ from 0.1 to 0.5;" in row["here"]


@pytest.mark.parametrize(
    ("low", "high", "held"),
    [(-0.004, 0.01, "yes"), (-0.006, 0.01, "not separated"), (-0.02, -0.006, "no")],
)
def test_as_good_as_means_within_half_a_point(low, high, held):
    document = front(0.0, low, high, method="hypermorph")
    (pair,) = document["comparison"]["paired_on_test"]
    pair |= {"method": "hypermorph", "against": "voxelmorph"}
    document["comparison"]["methods"] = {"hypermorph": {"train_s": 1.0}}
    claim = "at most half a point below networks trained for each setting"
    assert found(document)[claim]["held"] == held


@pytest.mark.parametrize(
    ("ratio", "held"), [(9.0, "yes"), (2.0, "yes"), (1.2, "not separated"), (1.0, "no")]
)
def test_cheaper_means_by_a_clear_factor(ratio, held):
    document = front(0.2, 0.1, 0.3)
    document["comparison"]["methods"]["fixed"]["train_ratio"] = ratio
    claim = "training it takes a fraction of training a network for each φ"
    assert found(document)[claim]["held"] == held


def test_costs_and_savings():
    claims = found(
        front(0.2, 0.1, 0.3)
        | {
            "comparison": front(0, 0, 0)["comparison"]
            | {"iso_accuracy": {"fixed": {"saving": 0.5}}}
        }
    )
    row = claims["training it takes a fraction of training a network for each φ"]
    assert (row["here"], row["held"]) == ("9.0 times (11 networks)", "yes")
    assert row["paper_number"] == "9.5 times (eleven networks)"
    row = claims["it reaches the quality of the best network trained for one φ at less cost"]
    assert (row["here"], row["held"]) == ("50 % fewer multiply-adds (on validation)", "yes")


def test_the_order_of_separate_factors():
    claim = "of separate factors the first matters most, the last least"
    for shares, held in (
        ((0.5, 0.3, 0.1), "yes"),
        ((0.5, 0.1, 0.3), "no"),
        ((0.1, 0.3, 0.5), "no"),
    ):
        rows = [{"factor": f"phi_{k}", "share_of_variance": x} for k, x in enumerate(shares)]
        document = {"exploration_id": "a-1", "analysis": "factors", "rows": rows}
        assert found(document)[claim]["held"] == held


def test_width_of_the_prior():
    rows = [
        {"method": "sshn", "prior_width": width, "test": test, "test_sd": 0.003}
        for width, test in ((0.0, 0.90), (0.02, 0.91), (0.05, 0.92))
    ]
    rows.append({"method": "fixed", "prior_width": None, "test": 0.91, "test_sd": 0.0})
    document = {"exploration_id": "a-1", "analysis": "prior-width", "rows": rows}
    (row,) = rows_of(document, "there")
    assert row["here"] == "half width 0.05 against 0: +2.00 ± 0.42 points on test (sd over seeds)"
    assert row["held"] == "yes"
    rows.insert(3, {"method": "sshn", "prior_width": 0.5, "test": 0.88, "test_sd": 0.004})
    (row,) = rows_of(document, "there")
    assert "; half width 0.5 against 0: -2.00 ± 0.50 points on test" in row["here"]
    assert row["held"] == "yes"
    one_seed = [{**row, "test_sd": None} for row in rows]
    assert list(rows_of({**document, "rows": one_seed}, "there")) == []


@pytest.mark.parametrize(
    ("slopes", "held"),
    [
        ({"sshn": 0.1, "fixed": 2.0}, ("yes", "yes")),  # as in the paper
        ({"sshn": 2.0, "fixed": 0.1}, ("no", "no")),
        ({"sshn": 0.5, "fixed": 0.5}, ("not separated", "not separated")),
    ],
)
def test_transfer_of_weights(slopes, held):
    rows = [
        {"method": m, "weights_at": 0.5, "phi": phi, "dice": 0.9 - x * abs(phi - 0.5), "sd": 0.001}
        for m, x in slopes.items()
        for phi in (0.1, 0.45, 0.5, 0.6, 0.9)
    ]
    document = {"exploration_id": "a-1", "analysis": "transfer", "rows": rows}
    assert tuple(row["held"] for row in rows_of(document, "there")) == held
    elsewhere = [{**row, "weights_at": 0.25} for row in rows]
    assert list(rows_of({**document, "rows": elsewhere}, "there")) == []


@pytest.mark.parametrize(
    ("metric", "here"),
    [
        ("balanced_accuracy", "+3.0 ± 1.0 points of balanced accuracy"),
        ("auc", "+3.0 ± 1.0 points of AUC"),
        ("mae", "-0.030 ± 0.010 of absolute error"),
    ],
)
def test_domains_tell_their_own_metric(metric, here):
    common = {"method": "hyda", metric: 0.8, "gain": 0.03, "gain_error": 0.01, "train_s": 10.0}
    rows = [
        {**common, "held_out": domain, "seeds": {"0": 0.8, "1": 0.8}}
        for domain in ("a", "b", "mean")
    ]
    document = {"exploration_id": "a-1", "analysis": "domains", "rows": rows}
    (row,) = rows_of(document, "there")
    assert row["here"] == f"{here} (standard error over 2 seeds)"
    assert (row["held"], row["cost_s"]) == ("yes", 40.0)
    together = [{k: x for k, x in row.items() if k != "held_out"} for row in rows]
    assert list(rows_of({**document, "rows": together}, "there")) == []


@pytest.mark.parametrize(
    ("gains", "held"),
    [((0.02, 0.03), "yes"), ((0.02, 0.001), "not separated"), ((0.02, -0.02), "no")],
)
def test_fixed_strategies(gains, held):
    rows = [
        {
            "method": "spottunet",
            "against_best_fixed": {"method": "finetune-all", "gain": gain, "error": 0.01},
            "train_s": 10.0,
            "num_seeds": 3,
        }
        for gain in gains
    ]
    document = {"exploration_id": "a-1", "analysis": "strategies", "rows": rows}
    (row,) = rows_of(document, "there")
    assert (row["held"], row["cost_s"]) == (held, 60.0)


def test_every_claim_reads_a_document_that_can_be_asked_for():
    assert documents_for("sshn", ["factors", "transfer"])[0] == "frontier"
    assert {"factors", "transfer"} <= set(documents_for("sshn", ["factors", "transfer"]))
    assert documents_for("hyda", ["domains", "cost"]) == ["domains"]
    assert documents_for("erm", []) == []
    assert {claim.paper for claim in CLAIMS} == {
        "SSHN",
        "SSHN's forerunner",
        "HyperMorph",
        "SpotTUnet",
        "HyDA",
    }


@pytest.mark.parametrize("document", [[], {}, {"rows": []}, {"analysis": "domains", "rows": []}])
def test_other_files_are_refused(document):
    with pytest.raises(InputError, match=r"there: expected what explorer frontier"):
        list(rows_of(document, "there"))


def test_a_front_that_was_not_compared_is_refused():
    document = front(0.2, 0.1, 0.3)
    del document["comparison"]
    with pytest.raises(InputError, match=r"there: printed without --compare"):
        list(rows_of(document, "there"))


def test_a_document_that_lacks_something_is_refused():
    document = front(0.2, 0.1, 0.3)
    del document["comparison"]["paired_on_test"][0]["low"]
    with pytest.raises(
        InputError, match=r"there: KeyError 'low' where the claim .* print it again"
    ):
        list(rows_of(document, "there"))


def test_committed_results_are_reported(tmp_path):
    files = [str(RESULTS / f"{name}.json") for name in ("sshn-wbc", "hyda-demo-domains")]
    done = CliRunner().invoke(app, ["report", *files, "--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert [row["paper"] for row in rows] == ["SSHN"] * 5 + ["HyDA"] * 2
    assert CliRunner().invoke(app, ["report", *files[::-1], "--json"]).stdout == done.stdout
    assert rows[0]["held"] == "yes"
    assert rows[0]["here"].startswith("+0.63 points (95 %: +0.02 to +1.29)")
    told = CliRunner().invoke(app, ["report", *files]).stdout
    assert "hyda-demo-1: explorer run hyda-demo" in told
    written = CliRunner().invoke(app, ["report", *files, "--markdown"]).stdout.splitlines()
    assert written[0].startswith("| paper | claims |")
    assert len([line for line in written if line.startswith("| ")]) == 1 + len(rows)
    assert "explorer run sshn-wbc --set dataset.root=DIR" in written
    both = CliRunner().invoke(app, ["report", *files, "--markdown", "--json"])
    assert "expected one of them" in str(both.exception)


def test_what_is_no_document_is_refused(tmp_path):
    def refusal(*words):
        return str(CliRunner().invoke(app, ["report", *words]).exception)

    assert "none.json: there is no such file" in refusal(str(tmp_path / "none.json"))
    picture = RESULTS / "sshn-wbc-phi.png"
    assert "expected an exploration's id or a .json file" in refusal(str(picture))
    assert "no finished exploration to report on" in refusal("--runs-dir", str(tmp_path))


def test_every_command_is_told_though_ids_are_the_same(tmp_path):
    files = []
    for command in ("explorer run a", "explorer run b", "explorer run a"):
        files.append(str(tmp_path / f"{len(files)}.json"))
        Path(files[-1]).write_text(json.dumps(front(0.2, 0.1, 0.3, command=command)))
    told = CliRunner().invoke(app, ["report", *files]).stdout
    assert (told.count("a-1: explorer run a"), told.count("a-1: explorer run b")) == (1, 1)


def test_one_seed_has_no_spread_and_separates_nothing():
    document = json.loads((RESULTS / "sshn-wbc-prior-width-transfer.json").read_text())
    assert {row["held"] for row in rows_of(document, "there")} == {"yes"}
    rows = [row | {"sd": None} if "sd" in row else row for row in document["rows"]]
    for row in rows_of(document | {"rows": rows}, "there"):
        assert row["held"] == "not separated"
        assert row["here"].endswith("(one seed: no spread)")


def test_the_readme_shows_what_the_report_prints(monkeypatch):
    text = (ROOT / "README.md").read_text()
    command = next(
        line for line in text.splitlines() if line.startswith("explorer report sshn-wbc")
    )
    monkeypatch.chdir(RESULTS)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0
    assert done.stdout.strip() in text
