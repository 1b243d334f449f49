"""The order of chunks: what is asked when, whatever the timing, and what is asked again."""

import random
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

from explorer.exploring import (
    Chunk,
    Evaluation,
    FrozenModels,
    ListSampler,
    Plan,
    Run,
    Unit,
    chunk_size,
    evaluate_chunk,
    explore,
    values_of,
)
from explorer.frontiers import Frontier
from explorer.measurements import Measurement, setting_id
from explorer.models import build_trainable
from explorer.progress import ProgressReport
from explorer.queries import Bound
from explorer.racing import Race
from explorer.specs import load_spec
from explorer.training import Trial
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from search_spaces.rescaling import rescaling_space
from trainables.base import Arrays


def measurement(trial_id, split, setting, value=0.0):
    return Measurement(
        exploration_id="test-1",
        trial_id=trial_id,
        method="sshn",
        seed=0,
        split=split,
        data_digest="d",
        code_version="c",
        setting_id=setting_id(setting),
        num_samples=1,
        evaluation_s=0.0,
        time=0.0,
        conditioning=setting,
        metrics={"dice": value},
        costs={"macs": 1.0},
    )


class LoggingSampler:
    """Settings 0, 1, 2, ...; writes down every call."""

    def __init__(self, num_settings):
        self.left = deque({"phi": float(i)} for i in range(num_settings))
        self.calls = []

    def ask(self, n):
        batch = [self.left.popleft() for _ in range(min(n, len(self.left)))]
        self.calls.append(("ask", [setting["phi"] for setting in batch]))
        return batch

    def tell(self, configs, outcomes):
        phis = [config["phi"] for config in configs]
        self.calls.append(("tell", phis, [outcome["dice"] for outcome in outcomes]))


def rows_of(chunk, value=lambda trial_id, phi: phi):
    return [
        measurement(trial_id, chunk.split, setting, value(trial_id, setting["phi"]))
        for setting in chunk.settings
        for trial_id in chunk.trial_ids
    ]


def carry_out(plan, rng):
    """Carry a plan out with as many chunks in flight as it gives, completed in random order."""
    in_flight, order = [], []
    while not (plan.is_asked and not plan.in_flight):
        while (chunk := plan.next_chunk()) is not None:
            in_flight.append(chunk)
        if not in_flight:
            break
        chunk = in_flight.pop(rng.randrange(len(in_flight)))
        order.append(chunk.name)
        plan.complete(chunk, rows_of(chunk), {})
    assert plan.is_asked
    assert not plan.in_flight
    return order


def planned(units, *, batch_size, window, recorded=None):
    return Plan(
        units, batch_size=batch_size, window=window, recorded=recorded or {}, recorded_values={}
    )


def new_plan(samplers, *, window, recorded=None, batch_size=2):
    units = [Unit(f"unit{i}", "val", (f"t{i}",), sampler) for i, sampler in enumerate(samplers)]
    return Plan(
        units, batch_size=batch_size, window=window, recorded=recorded or {}, recorded_values={}
    )


def test_list_sampler_gives_its_settings_in_order_and_then_nothing():
    settings = [{"phi": value} for value in (0.3, 0.1, 0.2)]
    sampler = ListSampler(settings)
    assert sampler.ask(2) == settings[:2]
    sampler.tell(settings[:2], [None, {"dice": 1.0}])
    assert [sampler.ask(2), sampler.ask(2)] == [settings[2:], []]


def test_chunk_names_its_rows_settings_first():
    chunk = Chunk("c", "val", ("a", "b"), ({"phi": 0.1}, {"phi": 0.2}))
    ids = [setting_id({"phi": 0.1}), setting_id({"phi": 0.2})]
    assert chunk.keys == [(trial, "val", one) for one in ids for trial in ("a", "b")]


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("timing", range(5))
def test_batch_is_asked_after_exactly_the_window_was_told(window, timing):
    sampler = LoggingSampler(13)
    carry_out(new_plan([sampler], window=window), random.Random(timing))
    num_asked, num_told = 0, 0
    for kind, phis, *_ in sampler.calls:
        if kind == "ask":
            # batch k: after the batches up to k - W, and no other
            assert num_told == min(max(0, num_asked - window + 1), 7)
            assert phis == [float(phi) for phi in range(2 * num_asked, min(2 * num_asked + 2, 13))]
            num_asked += 1
        else:
            assert phis[0] == 2.0 * num_told
            num_told += 1
    assert num_asked == 8  # the last one finds nothing left


@pytest.mark.parametrize("window", [1, 3])
def test_calls_do_not_depend_on_the_order_of_completion(window):
    logs, orders = [], set()
    for timing in range(8):
        samplers = [LoggingSampler(9), LoggingSampler(5)]
        orders.add(tuple(carry_out(new_plan(samplers, window=window), random.Random(timing))))
        logs.append([sampler.calls for sampler in samplers])
    assert all(log == logs[0] for log in logs)
    assert (len(orders) > 1) == (window > 1)


def test_number_of_chunks_is_known_where_no_sampler_learns():
    lists = [ListSampler([{"phi": 0.1}] * 5), ListSampler([{"phi": 0.2}])]
    assert new_plan(lists, window=1).num_chunks == 4
    assert new_plan([*lists, LoggingSampler(2)], window=1).num_chunks is None


def test_no_more_than_the_window_is_in_flight():
    plan = new_plan([LoggingSampler(20)], window=3)
    chunks = [plan.next_chunk() for _ in range(4)]
    assert [chunk and chunk.name for chunk in chunks] == [
        "val-unit0-00000",
        "val-unit0-00001",
        "val-unit0-00002",
        None,
    ]
    plan.complete(chunks[1], rows_of(chunks[1]), {})
    assert plan.next_chunk() is None  # batch 3 waits for batch 0
    plan.complete(chunks[0], rows_of(chunks[0]), {})
    assert plan.next_chunk().name == "val-unit0-00003"


def test_next_unit_begins_while_the_last_one_is_in_flight():
    plan = new_plan([LoggingSampler(2), LoggingSampler(2)], window=2)
    assert plan.next_chunk().name == "val-unit0-00000"
    assert plan.next_chunk().name == "val-unit1-00000"
    assert plan.next_chunk() is None
    assert plan.in_flight


def test_sampler_is_told_the_mean_over_seeds():
    sampler = LoggingSampler(1)
    plan = Plan(
        [Unit("u", "val", ("a", "b"), sampler)],
        batch_size=1,
        window=1,
        recorded={},
        recorded_values={},
    )
    chunk = plan.next_chunk()
    rows = rows_of(chunk, lambda trial_id, phi: {"a": 0.25, "b": 0.75}[trial_id])
    plan.complete(chunk, rows, {})
    assert plan.next_chunk() is None
    assert sampler.calls[1] == ("tell", [0.0], [0.5])


def test_metric_that_one_seed_lacks_is_the_mean_of_the_others():
    told = []

    class Sampler(ListSampler):
        def tell(self, configs, outcomes):
            told.extend(outcomes)

    unit = Unit("u", "val", ("a", "b"), Sampler([{"phi": 0.0}]))
    plan = planned([unit], batch_size=1, window=1)
    chunk = plan.next_chunk()
    first, second = rows_of(chunk)
    second.metrics["dice/rare"] = 0.5
    plan.complete(chunk, [first, second], {})
    assert plan.next_chunk() is None
    assert told == [{"macs": 1.0, "dice": 0.0, "dice/rare": 0.5}]


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("num_recorded", [0, 1, 4, 7, 9])
def test_recorded_chunks_are_told_and_not_evaluated_again(window, num_recorded):
    whole = LoggingSampler(9)
    carry_out(new_plan([whole], window=window), random.Random(0))
    settings = [{"phi": float(i)} for i in range(num_recorded)]
    rows = [measurement("t0", "val", setting, setting["phi"]) for setting in settings]
    recorded = {(row.trial_id, row.split, row.setting_id): row for row in rows}
    resumed = LoggingSampler(9)
    order = carry_out(new_plan([resumed], window=window, recorded=recorded), random.Random(0))
    assert resumed.calls == whole.calls
    # a chunk that is recorded in part is evaluated once more
    expected = [
        f"val-unit0-{k:05d}" for k in range(5) if 2 * k + 2 > num_recorded and num_recorded < 9
    ]
    assert sorted(order) == expected


# In this process, on models of a few weights

SPEC = load_spec("demo", ["dataset.size=[16,16]", "model.width=2", "model.stages=2"])
TRIALS = {
    "sshn-s0": Trial("sshn-s0", "sshn", 0, 0.1),
    "sshn-s1": Trial("sshn-s1", "sshn", 1, 0.1),
    "fixed-phi0.3-s0": Trial("fixed-phi0.3-s0", "fixed", 0, 0.1, {"phi": 0.3}),
}


def frozen_models(*, num_images=3, **changed):
    weights = {}
    for name, trial in TRIALS.items():
        module = build_trainable(SPEC, trial.method, trial.settled).build(trial.seed)
        weights[name] = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    rng = np.random.default_rng(0)
    images = rng.standard_normal((num_images, 1, 16, 16), dtype=np.float32)
    masks = rng.integers(0, 5, (num_images, 16, 16)).astype(np.uint8)
    return FrozenModels(SPEC, TRIALS, weights | changed, {"val": Arrays(images, masks)})


def test_exploring_in_process_evaluates_every_setting_on_every_seed():
    units = [
        Unit(
            "sshn", "val", ("sshn-s0", "sshn-s1"), ListSampler([{"phi": x} for x in (0, 0.25, 1)])
        ),
        Unit("fixed", "val", ("fixed-phi0.3-s0",), ListSampler([{"phi": 0.3}])),
    ]
    plan = planned(units, batch_size=2, window=1)
    seen: list[Evaluation] = []

    def record(chunk, evaluations):
        seen.extend(evaluations)
        return [
            measurement(one.trial_id, one.split, one.setting, float(np.nanmean(one.values["dice"])))
            for one in evaluations
        ]

    models = frozen_models()
    explore(plan, models, record, ProgressReport(quiet=True), num_workers=0)
    assert plan.is_asked
    assert not plan.in_flight
    assert [(one.trial_id, one.setting["phi"]) for one in seen] == [
        ("sshn-s0", 0),
        ("sshn-s1", 0),
        ("sshn-s0", 0.25),
        ("sshn-s1", 0.25),
        ("sshn-s0", 1),
        ("sshn-s1", 1),
        ("fixed-phi0.3-s0", 0.3),
    ]
    costs = build_trainable(SPEC).costs({"phi": 0.3})
    assert seen[-1].costs == costs
    assert all(one.values["dice"].shape == (3,) for one in seen)
    assert all(one.evaluation_s >= 0 for one in seen)
    again = next(models.evaluate(Chunk("c", "val", ("sshn-s1",), ({"phi": 0.25},))))
    np.testing.assert_array_equal(again.values["dice"], seen[3].values["dice"])


def test_weights_of_another_model_are_refused_by_name():
    models = frozen_models(**{"sshn-s0": {"foreign": np.zeros(3, np.float32)}})
    chunk = Chunk("c", "val", ("sshn-s0",), ({"phi": 0.25},))
    with pytest.raises(InputError, match=r"sshn-s0: tensor '.*': expected shape .*another model"):
        next(models.evaluate(chunk))


def test_shift_of_a_precision_is_told_per_metric():
    models = frozen_models(num_images=40)
    assert set(models.precision_shift("sshn-s0", "val", {"phi": 0.5}).values()) == {0.0}
    models.precision = "bf16"
    shifts = models.precision_shift("sshn-s0", "val", {"phi": 0.5})
    half = next(models.evaluate(Chunk("c", "val", ("sshn-s0",), ({"phi": 0.5},)))).values["dice"]
    models.precision = "float32"
    full = next(models.evaluate(Chunk("c", "val", ("sshn-s0",), ({"phi": 0.5},)))).values["dice"]
    assert shifts["dice"] == pytest.approx(abs(half.mean() - full.mean()), rel=1e-9)
    assert not np.array_equal(half, full)


@pytest.mark.parametrize(
    ("counts", "num_workers", "expected"),
    [([51], 2, 10), ([1331], 2, 167), ([400], 2, 50), ([51, 51, 51, 11], 2, 21), ([200], 0, 50)],
)
def test_chunks_of_a_list_keep_the_workers_busy(counts, num_workers, expected):
    samplers = [ListSampler([{"phi": 0.0}] * count) for count in counts]
    assert chunk_size(samplers, num_workers) == expected
    assert chunk_size([*samplers, LoggingSampler(1000)], num_workers) == 10


# Races


RULES = Race(
    space=rescaling_space(),
    objectives=(Objective("dice", "maximize"), Objective("macs", "minimize")),
    bounds=(),
    known_costs=frozenset({"macs"}),
    num_samples=40,
    block_size=8,
    confidence=0.95,
    margin=0.0,
    seed=0,
)


def raced(race, *, recorded=None, recorded_values=None):
    """Explore eight settings of two seeds in this process; the evaluations in their order."""
    settings = [{"phi": x / 8} for x in (8, 1, 5, 3, 2, 6, 4, 7)]
    unit = Unit("sshn", "val", ("sshn-s0", "sshn-s1"), ListSampler(settings), race=race)
    plan = Plan(
        [unit],
        batch_size=2,
        window=2,
        recorded=recorded or {},
        recorded_values=recorded_values or {},
    )
    seen: list[Evaluation] = []
    asked: list[Chunk] = []

    def record(chunk, evaluations):
        asked.append(chunk)
        seen.extend(evaluations)
        return [row_of(one) for one in evaluations]

    models = frozen_models(num_images=40)
    explore(plan, models, record, ProgressReport(quiet=True), num_workers=0)
    return seen, asked


def row_of(one):
    value = float(np.nanmean(one.values["dice"]))
    return replace(
        measurement(one.trial_id, one.split, one.setting, value),
        num_samples=len(one.sample_indices),
        costs=one.costs,
    )


def test_race_gives_settings_up_and_changes_no_value():
    whole, _ = raced(None)
    seen, _ = raced(RULES)
    assert all(one.is_complete and len(one.sample_indices) == 40 for one in whole)
    given_up = [one for one in seen if not one.is_complete]
    assert given_up
    assert len(given_up) < len(seen)
    for one, full in zip(seen, whole, strict=True):
        assert (one.trial_id, one.setting) == (full.trial_id, full.setting)
        for name, values in one.values.items():
            expected = full.values[name][one.sample_indices]
            np.testing.assert_array_equal(values, expected)
    # both seeds of a setting stop at the same image
    assert all(
        len(a.sample_indices) == len(b.sample_indices)
        for a, b in zip(seen[::2], seen[1::2], strict=True)
    )


def test_race_keeps_what_is_on_the_front():
    whole, _ = raced(None)
    seen, _ = raced(RULES)
    kept = {one.setting["phi"] for one in seen if one.is_complete}
    losses = [
        [-np.mean([row_of(own).metrics["dice"] for own in pair]), pair[0].costs["macs"]]
        for pair in zip(whole[::2], whole[1::2], strict=True)
    ]
    phis = [pair[0].setting["phi"] for pair in zip(whole[::2], whole[1::2], strict=True)]
    assert kept >= set(Frontier.of(losses, phis).ids.tolist())


def test_setting_that_just_breaks_a_bound_is_no_rival_within_its_chunk():
    race = replace(RULES, bounds=(Bound("dice/rare", "min", 0.5),))
    # the first is better, and so little below the bound that it sees every image
    wave = np.where(np.arange(40) % 2, 0.3, -0.3)
    values = {
        0.1: {"dice": np.linspace(0.88, 0.92, 40), "dice/rare": 0.499 + wave},
        0.2: {"dice": np.linspace(0.52, 0.48, 40), "dice/rare": np.linspace(0.8, 0.9, 40)},
    }

    def start(trial_id, split, setting):
        own = values[setting["phi"]]
        costs = {"macs": 1.0}
        return Run(trial_id, split, setting, costs, lambda block: {n: own[n][block] for n in own})

    chunk = Chunk("c", "val", ("t",), ({"phi": 0.1}, {"phi": 0.2}), race)
    assert [one.is_complete for one in evaluate_chunk(chunk, 40, start)] == [True, True]
    free = replace(chunk, race=RULES)
    assert [one.is_complete for one in evaluate_chunk(free, 40, start)] == [True, False]


def test_resumed_race_runs_against_the_same_rivals():
    whole, chunks = raced(RULES)
    for number in range(1, len(chunks)):
        known = whole[: 4 * number]
        recorded = {row_key(one): row_of(one) for one in known}
        again, asked = raced(RULES, recorded=recorded, recorded_values=values_of(known))
        assert [chunk.name for chunk in asked] == [chunk.name for chunk in chunks[number:]]
        for chunk, first in zip(asked, chunks[number:], strict=True):
            assert len(chunk.rivals) == len(first.rivals)
        for one, first in zip(again, whole[4 * number :], strict=True):
            np.testing.assert_array_equal(one.sample_indices, first.sample_indices)


def row_key(one):
    return one.trial_id, one.split, setting_id(one.setting)
