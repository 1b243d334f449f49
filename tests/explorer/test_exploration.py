"""The object that users hold: found again, asked, and told what became of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from explorer import Bound, open_exploration, resume, run
from explorer.exploration import Exploration, exploration_ids
from explorer.measurements import measurements_table
from explorer.progress import ProgressReport
from explorer.session import Session
from explorer.specs import load_spec
from explorer.store import TableStore, measurements_store, set_state, write_json, write_text
from explorer.training import settled_precision
from search_spaces.errors import InputError, RunError
from search_spaces.problem import Objective
from tests.conftest import measured

# Carried out for real, once for all


@pytest.fixture
def exploration(finished):
    return open_exploration(finished.id, finished.runs_dir)


@pytest.mark.ray
def test_exploration_is_found_in_the_default_runs_dir(finished, monkeypatch):
    monkeypatch.setenv("EXPLORER_RUNS_DIR", str(finished.runs_dir))
    exploration = open_exploration("tiny-1")
    assert repr(exploration) == f"Exploration('tiny-1', finished, {finished.folder})"
    assert exploration.spec.name == "tiny"
    assert [objective.name for objective in exploration.objectives] == ["dice", "macs"]


@pytest.mark.ray
def test_table_holds_every_row_once(exploration):
    table = exploration.table()
    keys = set(zip(table["trial_id"], table["split"], table["setting_id"], strict=True))
    assert len(keys) == len(table["split"]) == exploration.state["num_measurements"] == 14
    phis = table["conditioning/phi"][(table["method"] == "sshn") & (table["split"] == "test")]
    np.testing.assert_array_equal(np.sort(phis), [0, 0.125, 0.25, 0.375, 0.5])
    assert set(table["num_samples"].tolist()) == {6, 8}


@pytest.mark.ray
def test_verbs_agree_with_the_table(exploration):
    table = exploration.table()
    rows = (table["method"] == "sshn") & (table["split"] == "val")
    answer = exploration.query([Bound("macs", "max", 1e9)])
    assert answer.point.metrics["dice"] == table["metric/dice"][rows].max()
    cheapest = exploration.query([], objective=Objective("macs", "minimize"))
    assert cheapest.point.conditioning == {"phi": 0.0}
    assert len(exploration.points()) == 5
    assert len(exploration.points(method="fixed", split="test")) == 2
    assert exploration.frontier()[-1] == answer.point
    assert not exploration.query([Bound("macs", "max", 1.0)]).feasible
    with pytest.raises(InputError, match="film"):
        exploration.query([], method="film")


@pytest.mark.ray
def test_trials_say_how_they_ended(exploration):
    trials = {row["trial_id"]: row for row in exploration.trials()}
    assert set(trials) == {"sshn-s0", "fixed-phi0.125-s0", "fixed-phi0.4-s0"}
    assert trials["fixed-phi0.4-s0"]["settled"] == {"phi": 0.4}
    assert all(row["status"] == "ok" and row["train_s"] > 0 for row in trials.values())


@pytest.mark.ray
def test_comparison_counts_the_grid_as_two_trainings(exploration):
    comparison = exploration.compare(ranges={"phi": (0.1, 0.2)})
    assert comparison["methods"]["fixed"]["num_trainings"] == 2
    assert [row["num_settings"] for row in comparison["paired_on_test"]] == [1]


@pytest.mark.ray
def test_summary_is_what_run_printed(exploration, finished):
    assert exploration.summary() == json.loads(finished.ended.stdout)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("state.json", "{", r"state\.json is damaged"),
        ("spec.yaml", None, r"spec\.yaml: expected the exploration's spec; restore it"),
        ("spec.yaml", "name: [", r"spec\.yaml: expected the exploration's spec; restore it"),
        ("spec.yaml", "name: tiny\nepochs: 3", r"spec\.yaml: epochs: unknown key"),
        ("measurements/manifest.json", None, r"manifest\.json is missing, but its parts are"),
        ("measurements/manifest.json", "[", r"manifest\.json is damaged"),
    ],
)
def test_damaged_file_is_named(finished, tmp_path, file, text, message):
    shutil.copytree(finished.folder, tmp_path / "tiny-1")
    path = tmp_path / "tiny-1" / file
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        open_exploration("tiny-1", tmp_path).query([])


# Asked without having been carried out


@pytest.fixture
def asked(tmp_path):
    """An exploration of two seeds whose folder holds what questions need."""
    folder = tmp_path / "asked-1"
    write_text(folder / "spec.yaml", load_spec("demo").to_yaml())
    objectives = [
        {"name": "dice", "direction": "maximize", "unit": ""},
        {"name": "macs", "direction": "minimize", "unit": "MAC"},
    ]
    write_json(folder / "state.json", {"status": "running", "objectives": objectives})
    record(folder, [measured(p, d - 0.02 * s, seed=s) for s in (0, 1) for p, d in CURVE])
    return open_exploration("asked-1", tmp_path)


CURVE = ((0.0, 0.5), (0.1, 0.8), (0.3, 0.9), (0.5, 0.92))


def record(folder, rows):
    measurements_store(folder).append(measurements_table(rows))


def test_growing_table_is_seen_and_read_only_then(asked, monkeypatch):
    num_loads = []
    load = TableStore.load
    monkeypatch.setattr(TableStore, "load", lambda *a, **k: num_loads.append(1) or load(*a, **k))
    bound = [Bound("macs", "max", 1.2e6)]
    assert asked.query(bound).point.conditioning == {"phi": 0.1}
    assert asked.points() is asked.points(seeds=None)
    assert asked.query(bound, seeds=[1]).point.metrics["dice"] == pytest.approx(0.78)
    assert len(num_loads) == 1
    record(asked.folder, [measured(0.2, 0.85, seed=s) for s in (0, 1)])
    assert asked.query(bound).point.conditioning == {"phi": 0.2}
    assert len(num_loads) == 2
    measurements_store(asked.folder).compact()
    assert asked.query(bound).point.conditioning == {"phi": 0.2}
    assert len(num_loads) == 3


def test_tables_of_points_are_kept_for_the_last_few_questions(asked):
    first = asked.points()
    record(asked.folder, [measured(0.2, 0.5, seed=s) for s in range(2, 12)])
    assert asked.points() is not first
    for seed in range(12):
        asked.points(seeds=[seed])
    assert len(asked._loaded.tables) == 8
    assert asked.points(seeds=[11]) is asked.points(seeds=[11])


def test_better_one_of_equally_cheap_points_answers(asked):
    cheapest = asked.points().point(0)
    rows = [measured(0.01, 0.7, seed=seed) for seed in (0, 1)]
    record(asked.folder, [replace(row, costs=dict(cheapest.costs)) for row in rows])
    cheap = Objective("macs", "minimize")
    assert asked.query([Bound("dice", "min", 0.4)], objective=cheap).point.conditioning == {
        "phi": 0.01
    }


def test_bounds_on_labels_and_costs_mix(asked):
    bounds = [Bound("dice/region1", "min", 0.65), Bound("flops", "max", 2.8e6)]
    cheapest = asked.query(bounds, objective=Objective("macs", "minimize"))
    assert cheapest.point.conditioning == {"phi": 0.1}
    assert asked.query(bounds).point.conditioning == {"phi": 0.3}


def test_knee_is_of_the_exploration_s_objectives(asked):
    # Scaled, 0.1 lies (0.3 / 0.42 - 0.2) below the chord, 0.3 less.
    assert asked.knee().point.conditioning == {"phi": 0.1}
    assert asked.knee([Bound("dice", "min", 0.6)], seeds=[0]).point.conditioning == {"phi": 0.3}
    assert not asked.knee([Bound("dice", "min", 1.0)]).feasible


def test_another_data_set_is_refused_by_name(asked):
    assert asked.query(dataset="synthetic").feasible
    for verb in (asked.query, asked.knee):
        with pytest.raises(
            InputError, match="asked-1 explores the data set 'synthetic', not 'wbc'"
        ):
            verb(dataset="wbc")


def test_unknown_seed_is_refused(asked):
    with pytest.raises(InputError, match="no measurements of seed 5; there are: 0, 1"):
        asked.query(seeds=[5])


# Carried out in name only


@pytest.fixture
def carried_out(monkeypatch):
    """Sessions that end at once, as the returned list says: None, or an error to raise."""
    ends = []

    def carry_out(session):
        end = ends.pop(0) if ends else None
        if end is not None:
            raise end
        set_state(session.folder, status="finished")

    monkeypatch.setattr(Session, "carry_out", carry_out)
    return ends


def tiny(*changes):
    size = ["dataset.size=[16,16]", "dataset.options={num_images: 40}", "tracking=false"]
    return load_spec("demo", [*size, *changes])


def test_ids_count_up_and_a_finished_spec_starts_anew(carried_out, tmp_path):
    assert exploration_ids(tmp_path / "runs") == []
    ids = [run(tiny(), runs_dir=tmp_path / "runs").id for _ in range(3)]
    assert ids == exploration_ids(tmp_path / "runs") == ["demo-1", "demo-2", "demo-3"]
    assert run(tiny("name=other"), runs_dir=tmp_path / "runs").id == "other-1"


def test_open_precision_is_settled_when_the_exploration_begins(carried_out, tmp_path):
    spec = tiny("train.precision=auto")
    began = run(spec, runs_dir=tmp_path)
    assert began.spec.train.precision == settled_precision(spec) != "auto"


def test_failed_run_keeps_its_reason_and_is_resumed(carried_out, tmp_path):
    carried_out.append(RunError("disk full"))
    with pytest.raises(RunError, match="disk full"):
        run(tiny(), runs_dir=tmp_path)
    state = open_exploration("demo-1", tmp_path).state
    assert (state["status"], state["error"]) == ("failed", "disk full")
    with pytest.raises(
        InputError, match=r"demo-1 has the same spec and is failed: .*resume demo-1"
    ):
        run(tiny(), runs_dir=tmp_path)
    assert run(tiny("train.epochs=31"), runs_dir=tmp_path).id == "demo-2"
    assert run(tiny(), runs_dir=tmp_path, new=True).id == "demo-3"
    state = resume("demo-1", runs_dir=tmp_path).state
    assert (state["status"], "error" in state) == ("finished", False)


def test_interruption_is_told_and_passed_on(carried_out, tmp_path, capsys):
    carried_out.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), runs_dir=tmp_path, progress=ProgressReport())
    assert "carry it on with explorer resume demo-1" in capsys.readouterr().err
    assert open_exploration("demo-1", tmp_path).state["status"] == "interrupted"


def test_damaged_neighbour_keeps_nobody_from_running(carried_out, tmp_path):
    first = run(tiny(), runs_dir=tmp_path)
    (first.folder / "state.json").write_text("{")
    assert run(tiny(), runs_dir=tmp_path).id == "demo-2"


def test_resume_refuses_changed_data_and_a_changed_spec(carried_out, tmp_path):
    exploration = run(tiny(), runs_dir=tmp_path)
    set_state(exploration.folder, data_digest="0" * 64)
    with pytest.raises(InputError, match=r"demo-1: the data set 'synthetic' changed .*digest 0000"):
        resume("demo-1", runs_dir=tmp_path)
    path = exploration.folder / "spec.yaml"
    path.write_text(path.read_text().replace("schedule: cosine", "schedule: constant"))
    with pytest.raises(InputError, match=r"spec\.yaml changed since the exploration began"):
        resume("demo-1", runs_dir=tmp_path)


def test_exploration_without_rows_says_how_to_go_on(carried_out, tmp_path):
    exploration = run(tiny(), runs_dir=tmp_path)
    with pytest.raises(InputError, match=r"no measurements yet .*explorer resume demo-1 carries"):
        exploration.table()
    assert exploration.summary()["frontier"] == []


def test_rows_name_the_code_that_measured_them(carried_out, tmp_path, monkeypatch):
    exploration = run(tiny(), runs_dir=tmp_path)
    monkeypatch.setattr("explorer.session.code_version", lambda: "9.9+new")
    seen = []
    monkeypatch.setattr(Session, "carry_out", lambda session: seen.append(session.code_version))
    resume("demo-1", runs_dir=tmp_path)
    assert seen == ["9.9+new"]
    assert exploration.state["code_version"] != "9.9+new"


@pytest.mark.parametrize("name", ["../x", "", ".", "a b", "-1"])
def test_what_is_no_id_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="expected an exploration id such as demo-1"):
        open_exploration(name, tmp_path)


def test_unknown_id_lists_the_known_ones(carried_out, tmp_path):
    with pytest.raises(InputError, match=r"no exploration 'demo-1' in .*; there are: none"):
        open_exploration("demo-1", tmp_path)
    run(tiny(), runs_dir=tmp_path)
    with pytest.raises(InputError, match=r"no exploration 'demo-7' in .*; there are: demo-1"):
        open_exploration("demo-7", tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_runs_dir_that_is_no_folder_is_refused(carried_out, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--runs-dir .*file"):
        run(tiny(), runs_dir=tmp_path / place)


def test_bad_data_options_are_named(tmp_path):
    with pytest.raises(InputError, match=r"dataset\.options of synthetic: .*'images'"):
        run(tiny("dataset.options={images: 3}"), runs_dir=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


# The rows of a test chunk count when the values of its images are there too


@pytest.mark.ray
def test_test_row_without_the_values_of_its_images_is_measured_again(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "tiny-1")
    exploration = Exploration(tmp_path / "tiny-1")
    (exploration.folder / "samples" / "part-test-sshn-00000.parquet").unlink()
    from explorer.splits import load_data

    session = Session(
        exploration.folder,
        exploration.spec,
        exploration.objectives,
        load_data(exploration.spec),
        ProgressReport(quiet=True),
    )
    session._read_recorded()
    assert len(session.recorded) == 14 - 2
    assert measurements_store(exploration.folder).load().num_rows == 14


# Refined around an answer


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "runs" / finished.id)
    return open_exploration(finished.id, tmp_path / "runs")


@pytest.mark.ray
def test_refining_stores_new_settings_around_the_answer(copied):
    before = copied.table()
    phis = before["conditioning/phi"][(before["method"] == "sshn") & (before["split"] == "val")]
    first = copied.query()
    answer = copied.refine(6)
    after = copied.table()
    new = ~np.isin(after["conditioning/phi"], before["conditioning/phi"])
    assert new.sum() == 6
    assert set(after["split"][new]) == {"val"}
    assert set(after["trial_id"][new]) == {"sshn-s0"}
    low, high = sorted(phis[np.argsort(np.abs(phis - first.point.conditioning["phi"]))[1:3]])
    assert low <= after["conditioning/phi"][new][0] <= high  # later ones follow the answer
    assert answer.point.metrics["dice"] >= first.point.metrics["dice"]
    assert copied.state["num_measurements"] == len(after["split"]) == 20
    assert (copied.folder / "frontier.html").stat().st_mtime > (
        copied.folder / "spec.yaml"
    ).stat().st_mtime


@pytest.mark.ray
def test_refining_looks_for_cheaper_settings_alone_when_cost_is_asked_for(copied):
    objective = Objective("macs", "minimize")
    assert copied.query(objective=objective).point.conditioning == {"phi": 0.0}
    assert copied.refine(6, objective=objective).point.conditioning == {"phi": 0.0}
    assert copied.state["num_measurements"] == 14  # nothing is cheaper than the smallest network


@pytest.mark.ray
def test_refined_settings_are_never_evaluated_on_test(copied):
    copied.refine(2)
    copied.refine(2)
    assert copied.state["num_measurements"] == 18
    resume(copied.id, runs_dir=copied.folder.parent)
    assert copied.state["num_measurements"] == 18


@pytest.mark.ray
def test_refining_asks_for_a_finished_amortised_exploration(copied):
    with pytest.raises(InputError, match="fixed is trained for each setting"):
        copied.refine(2, method="fixed")
    with pytest.raises(InputError, match="unknown metric, cost or conditioning 'dize'"):
        copied.refine(2, [Bound("dize", "min", 0.5)])
    set_state(copied.folder, status="interrupted")
    with pytest.raises(InputError, match="tiny-1 is interrupted: refine it once explorer resume"):
        copied.refine(2)
