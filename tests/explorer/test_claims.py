"""What the report says, of documents that were printed and of ones made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from explorer.claims import CLAIMS, TABLE_1, documents_for, rows_of
from explorer.cli import app
from search_spaces.errors import InputError

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


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
    assert row["paper_number"] == "+2.7 points (mean of eleven φ)"
    assert row["here"].startswith("+20.00 points (")
    assert row["here"].endswith("of Dice at 11 settings, 80 images, 1 seed")
    assert (row["data"], row["cost_s"]) == ("wbc, 64 x 64", 50.0)
    assert (row["exploration_id"], row["command"]) == ("a-1", "explorer run sshn-wbc")


def test_what_was_not_compared_has_no_row():
    whole = found(front(0.2, 0.1, 0.3))
    assert "one SSHN is more accurate than FiLM" not in whole
    assert "the quality of the best Fixed network for at least 40 % less" not in whole
    alone = front(0.2, 0.1, 0.3)
    del alone["comparison"]
    assert found(alone) == {}
    assert found(front(0.2, None, None)).keys() == whole.keys() - {
        "one SSHN is more accurate than a network trained for each φ"
    }
    assert found(front(0.2, 0.1, 0.3, method="hyda")) == {}


def test_other_data_are_held_against_the_range_over_the_papers():
    row = next(rows_of(front(0.2, 0.1, 0.3, data="synthetic, 48 x 48"), "there"))
    assert row["paper_number"] == "+0.6 to +3.4 points (four other data sets)"
    (camus,) = {len(own) for table in TABLE_1.values() for own in table.values()}
    assert camus == 11


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
    row = claims["the quality of the best Fixed network for at least 40 % less"]
    assert (row["here"], row["held"]) == ("50 % fewer multiply-adds", "yes")


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


def test_width_of_the_prior_and_transfer():
    rows = [
        {"method": "sshn", "prior_width": width, "test": test, "test_sd": 0.003}
        for width, test in ((0.0, 0.90), (0.02, 0.91), (0.05, 0.92))
    ]
    rows.append({"method": "fixed", "prior_width": None, "test": 0.91, "test_sd": 0.0})
    document = {"exploration_id": "a-1", "analysis": "prior-width", "rows": rows}
    (row,) = rows_of(document, "there")
    assert row["here"] == "half width 0.05 against 0: +2.00 ± 0.42 points on test"
    assert row["held"] == "yes"
    rows = [
        {
            "method": method,
            "weights_at": 0.5,
            "phi": phi,
            "dice": 0.9 - lost * abs(phi - 0.5),
            "sd": 0,
        }
        for method, lost in (("sshn", 0.4), ("fixed", 0.2))
        for phi in (0.1, 0.45, 0.5, 0.6, 0.9)
    ]
    document = {"exploration_id": "a-1", "analysis": "transfer", "rows": rows}
    (row,) = rows_of(document, "there")
    assert row["here"] == (
        "φ from 0.45 to 0.6: sshn at most 4.0 points lost, fixed at most 2.0 points lost"
    )
    assert row["held"] == "yes"


def test_every_claim_reads_a_document_that_can_be_asked_for():
    assert documents_for("sshn", ["factors", "transfer"])[0] == "frontier"
    assert {"factors", "transfer"} <= set(documents_for("sshn", ["factors", "transfer"]))
    assert documents_for("hyda", ["domains", "cost"]) == ["domains", "cost"]
    assert documents_for("erm", []) == []
    assert {claim.paper for claim in CLAIMS} == {"SSHN", "HyperMorph", "SpotTUnet", "HyDA"}


@pytest.mark.parametrize("document", [[], {}, {"rows": []}, {"analysis": "domains", "rows": []}])
def test_other_files_are_refused(document):
    with pytest.raises(InputError, match=r"there: expected what explorer frontier"):
        list(rows_of(document, "there"))


def test_a_document_that_lacks_something_is_refused():
    document = front(0.2, 0.1, 0.3)
    del document["comparison"]["paired_on_test"][0]["low"]
    with pytest.raises(
        InputError, match=r"there: KeyError 'low' where the claim .* print it again"
    ):
        list(rows_of(document, "there"))


def test_committed_results_are_reported(tmp_path):
    """The README's table is what this prints of the same files."""
    files = [str(RESULTS / f"{name}.json") for name in ("sshn-wbc", "hyda-demo-domains")]
    done = CliRunner().invoke(app, ["report", *files, "--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert [row["paper"] for row in rows] == ["SSHN"] * 5 + ["HyDA"] * 2
    assert rows[0]["held"] == "yes"
    assert rows[0]["here"].startswith("+0.63 points (+0.02 to +1.29)")
    told = CliRunner().invoke(app, ["report", *files]).stdout
    assert "hyda-demo-1: explorer run hyda-demo" in told
    written = CliRunner().invoke(app, ["report", *files, "--markdown"]).stdout.splitlines()
    assert written[0].startswith("| paper | claims |")
    assert len([line for line in written if line.startswith("| ")]) == 1 + len(rows)
    assert "explorer run sshn-wbc --set dataset.root=DIR" in written
    missing = CliRunner().invoke(app, ["report", str(tmp_path / "none.json")])
    assert "none.json is missing" in str(missing.exception)
