"""Questions on the command line, asked of a folder that holds a table and nothing else."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from explorer.cli import app
from explorer.measurements import measurements_table
from explorer.specs import load_spec
from explorer.store import measurements_store, set_state, write_json, write_text
from search_spaces.errors import InputError
from tests.conftest import measured

CURVES = {"sshn": ((0.0, 0.5), (0.1, 0.8), (0.3, 0.9), (0.5, 0.92)), "fixed": ((0.5, 0.85),)}


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "asked-1"
    write_text(folder / "spec.yaml", load_spec("demo").to_yaml())
    objectives = [
        {"name": "dice", "direction": "maximize", "unit": ""},
        {"name": "macs", "direction": "minimize", "unit": "MAC"},
    ]
    write_json(folder / "state.json", {"status": "finished", "objectives": objectives})
    rows = [
        measured(phi, dice - 0.02 * seed, method=method, seed=seed)
        for method, curve in CURVES.items()
        for seed in (0, 1)
        for phi, dice in curve
    ]
    measurements_store(folder).append(measurements_table(rows))
    return tmp_path


@pytest.fixture
def say(runs_dir: Path) -> Any:
    """A question for people: exit code, stdout and stderr."""

    def command(*arguments: str) -> tuple[int, str, str]:
        name, *others = arguments
        done = CliRunner().invoke(app, [name, "asked-1", *others, "--runs-dir", str(runs_dir)])
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.stdout, done.stderr

    return command


@pytest.fixture
def ask(runs_dir: Path) -> Any:
    def query(*arguments: str, command: str = "query") -> Any:
        done = CliRunner().invoke(
            app, [command, "asked-1", *arguments, "--runs-dir", str(runs_dir), "--json"]
        )
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, json.loads(done.stdout)

    return query


def test_bounds_on_labels_metrics_and_costs_mix(ask: Any) -> None:
    bounds = ("--min", "dice/region1=0.65", "--min", "dice=0.5", "--max", "flops=2.8M")
    code, document = ask(*bounds, "--minimize", "macs")
    assert (code, document["point"]["conditioning"]) == (0, {"phi": 0.1})
    assert document["bounds"] == {
        "flops": {"max": 2.8e6},
        "dice/region1": {"min": 0.65},
        "dice": {"min": 0.5},
    }
    assert ask(*bounds, "--maximize", "dice/region1")[1]["point"]["conditioning"] == {"phi": 0.3}
    code, document = ask("--max", "macs=1k")
    assert (code, document["feasible"]) == (3, False)


def test_seeds_are_averaged_unless_named(ask: Any) -> None:
    found = {
        arguments: ask(*arguments)[1]["point"]
        for arguments in ((), ("--seed", "1"), ("--seed", "0", "--seed", "1", "--method", "fixed"))
    }
    assert [round(p["metrics"]["dice"], 9) for p in found.values()] == [0.91, 0.9, 0.84]
    assert [p["num_seeds"] for p in found.values()] == [2, 1, 2]
    with pytest.raises(InputError, match="no measurements of seed 4; there are: 0, 1"):
        ask("--seed", "4")


def test_knee_takes_bounds_and_filters_but_no_objective(ask: Any) -> None:
    assert ask("--knee")[1]["point"]["conditioning"] == {"phi": 0.1}
    assert ask("--knee", "--method", "fixed")[1]["point"]["conditioning"] == {"phi": 0.5}
    assert ask("--knee", "--min", "dice=2")[0] == 3
    with pytest.raises(InputError, match="--knee is of the exploration's own objectives"):
        ask("--knee", "--minimize", "macs")


def test_knee_leaves_refining_out(ask: Any) -> None:
    with pytest.raises(InputError, match="--knee is of the points that there are: leave --refine"):
        ask("--knee", "--refine", "3")


@pytest.mark.parametrize("status", ["running", "interrupted", "finished"])
@pytest.mark.parametrize("command", ["query", "frontier"])
def test_answer_from_an_unfinished_exploration_says_so(
    ask: Any, say: Any, runs_dir: Path, status: str, command: str
) -> None:
    set_state(runs_dir / "asked-1", status=status)
    assert ask(command=command)[1]["status"] == status
    remedy = "; explorer resume asked-1 carries it on" if status == "interrupted" else ""
    told = f"asked-1 is {status}: this is of what it has measured so far{remedy}\n"
    assert say(command)[2] == ("" if status == "finished" else told)


def test_front_is_printed_whole_or_says_that_it_is_not(say: Any, runs_dir: Path) -> None:
    def more(first: int, last: int) -> None:
        rows = [measured(0.5 + n / 100, 0.92 + n / 1000) for n in range(first, last)]
        table = measurements_table(rows)
        measurements_store(runs_dir / "asked-1").append(table, part=f"more-{first}")

    more(1, 27)
    code, said, _ = say("frontier")
    assert code == 0
    assert "Front on validation: 30 settings" in said
    assert said.count("phi = ") == 30
    more(27, 28)
    said = say("frontier")[1]
    assert "Front on validation: 16 of 31 settings; --json for all" in said
    assert said.count("phi = ") == 16


def test_time_of_creation_is_a_date_for_people_and_a_number_for_programs(
    ask: Any, say: Any, runs_dir: Path
) -> None:
    set_state(runs_dir / "asked-1", created=1.75e9)
    assert ask(command="show")[1]["created"] == 1.75e9
    (line,) = (one for one in say("show")[1].splitlines() if one.startswith("created: "))
    created = datetime.fromisoformat(line.removeprefix("created: "))
    assert created.timestamp() == 1.75e9


def test_data_set_is_checked(ask: Any) -> None:
    assert ask("--dataset", "synthetic")[0] == 0
    with pytest.raises(InputError, match="explores the data set 'synthetic', not 'wbc'"):
        ask("--dataset", "wbc")


def test_comparison_is_plain_json_with_the_statistics_of_fronts(ask: Any) -> None:
    comparison = ask("--compare", command="frontier")[1]["comparison"]
    assert {"iso_accuracy", "iso_cost", "dominance", "ref_point"} < set(comparison)
    sshn = comparison["methods"]["sshn"]
    assert sshn["hypervolume_history"]["num_settings"] == [1, 2, 3, 4]
    assert set(sshn["attainment"]) == {"num_seeds", "best", "median", "worst"}


def test_comparison_for_people_names_gains_and_dominance(runs_dir: Path) -> None:
    done = CliRunner().invoke(
        app, ["frontier", "asked-1", "--compare", "--runs-dir", str(runs_dir)]
    )
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "sshn at phi = 0.5 has at most the macs of the best fixed and +7.00 points" in said
    assert "the front of sshn dominates 100 % of that of fixed" in said


@pytest.fixture
def optimize(registered: Any) -> Any:
    def command(*arguments: str) -> Any:
        runs_dir = str(registered.folder.parent)
        done = CliRunner().invoke(
            app, ["optimize", "asked-1", "--pairs", "5", *arguments, "--runs-dir", runs_dir]
        )
        if isinstance(done.exception, Exception) and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return command


def test_optimum_is_one_json_document(optimize: Any) -> None:
    document = json.loads(optimize("--maximize", "dice", "--by", "label", "--json").stdout)
    results = document.pop("results")
    num_people = document.pop("num_people")
    assert document == {
        "exploration_id": "asked-1",
        "method": "hypermorph",
        "metric": "dice",
        "solver": "gradient",
        "num_pairs": 5,
        "num_seeds": 1,
        "ranges": {"lambda": [0.0, 1.0]},
        "status": "finished",
    }
    assert 2 <= num_people <= 5
    labels = ["structure_1", "structure_2", "structure_3"]
    assert [(one["by"], one["group"]) for one in results] == [
        (None, "all"),
        *(("label", label) for label in labels),
    ]
    for one in results:
        assert set(one) == {
            "by",
            "group",
            "metric",
            "conditioning",
            "value",
            "objective",
            "num_pairs",
            "num_people",
            "num_evaluations",
            "elapsed_s",
        }
        assert 0 <= one["conditioning"]["lambda"] <= 1
        assert 0 < one["value"] < 1


def test_optima_for_people_are_a_table_that_names_groups_without_samples(optimize: Any) -> None:
    done = optimize("--by", "subject")
    assert "Best dice of hypermorph on validation, 1 seed" in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["all", "within", "across"]
    assert rows[1].split("│")[2].strip() == "no samples"
    assert rows[0].split("│")[2].strip().startswith("lambda = ")


def test_optima_are_drawn(optimize: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    assert f"drawn: {path}" in optimize("--by", "label", "--plot", str(path)).stdout
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments", [("--plot", "labels.png"), ("--by", "label", "--plot", "labels.html")]
)
def test_drawing_of_optima_needs_groups_and_a_png(optimize: Any, arguments: Any) -> None:
    with pytest.raises(InputError, match=r"--plot labels.*: expected groups \(--by\) and a file"):
        optimize(*arguments)
