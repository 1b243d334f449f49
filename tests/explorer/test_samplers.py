"""Samplers: exact grids, what they refuse, and that better regions are found."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest

from explorer.queries import Bound
from explorer.samplers import SAMPLERS, GPSampler, NSGA2Sampler
from explorer.sampling import MAX_REDRAWS, Sampler, SamplingTask
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from search_spaces.space import (
    CategoricalParameter,
    Config,
    FloatParameter,
    IntParameter,
    SearchSpace,
)

DICE = Objective("dice", "maximize")
MACS = Objective("macs", "minimize")
PHI = SearchSpace((FloatParameter("phi", 0.0, 0.5),))
CHOICES = SearchSpace((IntParameter("k", 1, 3), CategoricalParameter("mode", ("a", "b"))))


def phis(configs: list[Config]) -> list[float]:
    return [float(config["phi"]) for config in configs]


def explore(sampler: Sampler, best_phi: float, *, batch_size: int) -> list[float]:
    """Minimise the distance to `best_phi` until the sampler has no more settings."""
    seen: list[float] = []
    while batch := sampler.ask(batch_size):
        sampler.tell(batch, [{"macs": abs(phi - best_phi)} for phi in phis(batch)])
        seen += phis(batch)
    return seen


def test_grid_of_51_points_has_clean_values() -> None:
    sampler = SAMPLERS["grid"](SamplingTask(PHI, (DICE,), 51))
    asked = phis(sampler.ask(100))
    assert asked == [round(index * 0.01, 12) for index in range(51)]
    assert repr(asked[7]) == "0.07"
    assert sampler.ask(1) == []


def test_grid_is_the_product_of_its_parameters_last_one_fastest() -> None:
    asked = SAMPLERS["grid"](SamplingTask(CHOICES, (), 10)).ask(100)
    assert [(config["k"], config["mode"]) for config in asked] == [
        (k, mode) for k in (1, 2, 3) for mode in ("a", "b")
    ]


def test_shuffled_grid_is_the_same_grid_in_an_order_from_the_seed() -> None:
    def asked(seed: int, *, shuffled: bool) -> list[Config]:
        return SAMPLERS["grid"](SamplingTask(CHOICES, (), 10, seed, shuffled=shuffled)).ask(999)

    straight, shuffled = asked(0, shuffled=False), asked(0, shuffled=True)
    assert shuffled != straight
    assert sorted(map(str, shuffled)) == sorted(map(str, straight))
    assert asked(0, shuffled=True) == shuffled != asked(1, shuffled=True)


def test_grid_of_a_logarithmic_range_is_geometric() -> None:
    space = SearchSpace((FloatParameter("phi", 0.01, 1.0, log=True),))
    assert phis(SAMPLERS["grid"](SamplingTask(space, (), 3)).ask(3)) == [0.01, 0.1, 1.0]


def test_grid_of_one_point_is_the_lower_end() -> None:
    assert phis(SAMPLERS["grid"](SamplingTask(PHI, (), 1)).ask(5)) == [0.0]


@pytest.mark.parametrize("name", ["random", "sobol", "tpe", "nsga2"])
def test_rounding_never_leaves_the_range(name: str) -> None:
    space = SearchSpace((FloatParameter("phi", 2 / 3 - 1e-12, 2 / 3),))
    asked = phis(SAMPLERS[name](SamplingTask(space, (MACS,), 2)).ask(2))
    assert all(2 / 3 - 1e-12 <= phi <= 2 / 3 for phi in asked)


def test_random_fills_the_range_evenly() -> None:
    asked = phis(SAMPLERS["random"](SamplingTask(PHI, (), 2000)).ask(2000))
    counts, _ = np.histogram(asked, bins=10, range=(0.0, 0.5))
    # 200 expected per bin; six standard deviations.
    assert abs(counts - 200).max() < 6 * math.sqrt(200 * 0.9)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "adaptive"])
@pytest.mark.parametrize("best_phi", [0.05, 0.4])
def test_learning_samplers_concentrate_on_the_optimum(name: str, best_phi: float) -> None:
    sampler = SAMPLERS[name](SamplingTask(PHI, (MACS,), 60, seed=1))
    asked = explore(sampler, best_phi, batch_size=10)
    distances = np.abs(np.array(asked) - best_phi)
    assert np.median(distances[-20:]) < 0.5 * np.median(distances[:20])


@pytest.mark.parametrize("name", ["tpe", "nsga2", "adaptive"])
def test_learning_samplers_keep_to_outcome_constraints(name: str) -> None:
    task = SamplingTask(PHI, (MACS,), 60, constraints=(Bound("dice", "min", 0.6),))
    sampler = SAMPLERS[name](task)
    asked: list[float] = []
    while batch := sampler.ask(10):
        # Cheap settings are bad ones: dice reaches 0.6 from phi = 0.3 on.
        sampler.tell(batch, [{"macs": phi, "dice": 2 * phi} for phi in phis(batch)])
        asked += phis(batch)
    # Uniform draws would be 0.125 away in the median.
    assert np.median(np.abs(np.array(asked[-20:]) - 0.3)) < 0.5 * 0.125


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_journal_holds_what_was_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "study.journal"
    task = SamplingTask(
        PHI, (DICE, MACS), 8, constraints=(Bound("dice", "min", 0.5),), journal_path=path
    )
    for _ in range(2):  # the second sampler replaces the first one's journal
        sampler = SAMPLERS[name](task)
        batch = sampler.ask(3)
        sampler.tell(batch, [{"dice": 0.4, "macs": 5.0}, {"dice": 0.9, "macs": 7.0}, None])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="exploration", storage=storage)
    assert [trial.values for trial in study.trials] == [[0.4, 5.0], [0.9, 7.0], None]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [trial.params["phi"] for trial in study.trials] == pytest.approx(phis(batch), abs=1e-12)
    assert study.trials[0].constraints == {"min dice": pytest.approx(0.2)}
    assert [trial.number for trial in study.best_trials] == [1]
    assert study.metric_names == ["dice", "macs"]


def test_a_killed_writers_lock_does_not_hold_up(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    Path(f"{path}.lock").symlink_to(path)
    task = SamplingTask(PHI, (MACS,), 4, journal_path=path)
    assert explore(SAMPLERS["nsga2"](task), 0.1, batch_size=4)


def test_optuna_stays_quiet_and_its_verbosity_stays(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    explore(SAMPLERS["tpe"](SamplingTask(PHI, (MACS,), 4)), 0.1, batch_size=2)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_inadmissible_draws_are_pruned_with_a_broken_constraint(name: str, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    task = SamplingTask(
        PHI, (MACS,), 6, admissible=lambda config: float(config["phi"]) < 0.2, journal_path=path
    )
    sampler = SAMPLERS[name](task)
    asked = sampler.ask(6)
    sampler.tell(asked, [{"macs": phi} for phi in phis(asked)])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    trials = optuna.load_study(study_name="exploration", storage=storage).trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(trials) == len(asked) + len(pruned)
    assert pruned
    assert all(trial.params["phi"] >= 0.2 for trial in pruned)
    assert all(trial.constraints == {"admissible": 1.0} for trial in pruned)


def test_vain_draws_are_bounded() -> None:
    draws: list[Config] = []

    def admissible(config: Config) -> bool:
        draws.append(config)
        return len(draws) == 1

    sampler = SAMPLERS["random"](SamplingTask(PHI, (), 5, admissible=admissible))
    assert len(sampler.ask(5)) == 1
    assert len(draws) == 1 + MAX_REDRAWS
    assert sampler.ask(5) == []


def test_no_admissible_setting_is_refused() -> None:
    task = SamplingTask(PHI, (MACS,), 5, admissible=lambda config: False)
    with pytest.raises(InputError, match="no setting of the grid is admissible"):
        SAMPLERS["grid"](task).ask(2)
    with pytest.raises(InputError, match=f"was found in {MAX_REDRAWS} different draws"):
        SAMPLERS["random"](task).ask(2)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "adaptive"])
def test_tell_refuses_what_was_not_asked_or_is_incomplete(name: str) -> None:
    task = SamplingTask(PHI, (MACS,), 5, constraints=(Bound("dice", "min", 0.5),))
    sampler = SAMPLERS[name](task)
    first, second, third = sampler.ask(3)
    with pytest.raises(ValueError, match="expected a setting that was asked for"):
        sampler.tell([{"phi": 0.123}], [{"macs": 1.0, "dice": 1.0}])
    sampler.tell([first], [{"macs": 1.0, "dice": 1.0}])
    with pytest.raises(ValueError, match="and not told"):
        sampler.tell([first], [{"macs": 1.0, "dice": 1.0}])
    with pytest.raises(ValueError, match="expected an outcome with dice, got macs"):
        sampler.tell([second], [{"macs": 1.0}])
    with pytest.raises(ValueError, match="expected an outcome with macs, got dice"):
        sampler.tell([third], [{"dice": 1.0}])


@pytest.mark.parametrize("name", ["tpe", "adaptive"])
def test_learning_samplers_need_an_objective(name: str) -> None:
    with pytest.raises(ValueError, match="expected at least one objective"):
        SAMPLERS[name](SamplingTask(PHI, (), 5))


def test_sobol_puts_one_setting_into_every_sixteenth() -> None:
    # The first 2^k points of a scrambled Sobol sequence are stratified in every coordinate.
    asked = phis(SAMPLERS["sobol"](SamplingTask(PHI, (), 16, seed=2)).ask(16))
    counts, _ = np.histogram(asked, bins=16, range=(0.0, 0.5))
    assert counts.tolist() == [1] * 16


def test_sobol_goes_on_where_the_last_batch_ended() -> None:
    task = SamplingTask(PHI, (), 9, seed=2)
    whole, sampler = SAMPLERS["sobol"](task).ask(9), SAMPLERS["sobol"](task)
    assert [*sampler.ask(4), *sampler.ask(5)] == whole


def test_population_size_of_nsga2_is_that_of_its_generations() -> None:
    sampler = NSGA2Sampler(SamplingTask(PHI, (MACS,), 12), population_size=3)
    explore(sampler, 0.1, batch_size=1)
    assert sampler._study.sampler.population_size == 3


@pytest.mark.timeout(120)  # a busy machine takes long to load torch
def test_gp_finds_the_optimum_with_one_torch_thread_and_restores_theirs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    seen = []
    sampler = GPSampler(SamplingTask(PHI, (MACS,), 16, seed=1))
    ask = sampler._study.ask
    monkeypatch.setattr(
        sampler._study, "ask", lambda *args: (seen.append(torch.get_num_threads()), ask(*args))[1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        asked = explore(sampler, 0.4, batch_size=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    # Ten random draws come first; of sixteen, the nearest would be 0.015 away on average.
    assert min(abs(phi - 0.4) for phi in asked[10:]) < 0.005
    assert capfd.readouterr() == ("", "")


@pytest.mark.timeout(120)
def test_gp_is_told_constraints_with_the_values() -> None:
    task = SamplingTask(PHI, (MACS,), 3, constraints=(Bound("dice", "min", 0.5),))
    sampler = GPSampler(task)
    sampler.tell(sampler.ask(1), [{"macs": 1.0, "dice": 0.4}])
    assert sampler._study.trials[0].constraints == {"min dice": pytest.approx(0.2)}


@pytest.mark.parametrize(
    ("space", "num_points", "seed", "message"),
    [
        (SearchSpace(()), 5, 0, "at least one parameter"),
        (PHI, 0, 0, "num_points >= 1 and seed >= 0, got 0 and 0"),
        (PHI, 5, -1, "got 5 and -1"),
    ],
)
def test_task_refuses_nonsense(
    space: SearchSpace, num_points: int, seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingTask(space, (MACS,), num_points, seed=seed)
