"""The best setting: against a grid of the same objective, and what is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from explorer.grouping import Candidates
from explorer.models import build_trainable
from explorer.optimizing import Optimizer, Question, frozen_models, minimise_line
from explorer.session import explored_space
from explorer.splits import candidates_of, load_data
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from trainables.train_loop import evaluate_setting

DICE = Objective("dice", "maximize")
TWO = ("train.prior={lambda: [0, 1], gamma: [0, 1]}",)
RADIUS = ("train.prior={radius: [1, 9]}", "registration.similarity=ncc")


def parts_of(exploration: Any, objective: Objective = DICE) -> tuple[Optimizer, Candidates]:
    trial_ids = exploration.points().point(0).trial_ids
    spec = exploration.spec
    optimizer = Optimizer(
        frozen_models(exploration.folder, spec, trial_ids),
        explored_space(spec, build_trainable(spec)),
        objective,
    )
    return optimizer, candidates_of(spec, load_data(spec))


def grid_of(question: Question, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit coordinates (k, d) of a grid, and the soft objective (k,) there."""
    d = len(question.optimizer.space)
    axis = np.linspace(0, 1, num_points)
    units = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), axis=-1).reshape(-1, d)
    return units, np.array([-question.loss(unit)[0] for unit in units])


# a line


def counted(function: Callable[[float], tuple[float, float]]) -> Any:
    calls: list[float] = []

    def counting(u: float) -> tuple[float, float]:
        calls.append(u)
        return function(u)

    return counting, calls


@pytest.mark.parametrize("place", [0.0, 0.07, 0.5, 0.93, 1.0, -0.4, 1.7])
def test_parabola_is_found_after_one_more_call(place: float) -> None:
    loss, calls = counted(lambda u: ((u - place) ** 2, 2 * (u - place)))
    assert minimise_line(loss) == pytest.approx(np.clip(place, 0, 1), abs=1e-3)
    assert len(calls) <= 4


@pytest.mark.parametrize("place", [0.2, 0.61, 0.9])
def test_steep_wall_beside_a_flat_valley_is_found(place: float) -> None:
    def loss(u: float) -> tuple[float, float]:
        wall = np.exp(30 * (u - 1))
        return 0.1 * (u - place) ** 2 + wall, 0.2 * (u - place) + 30 * wall

    counting, calls = counted(loss)
    found = minimise_line(counting)
    best = min(loss(u)[0] for u in np.linspace(0, 1, 10001))
    assert loss(found)[0] - best < 1e-4
    assert len(calls) <= 6


def test_deeper_of_two_valleys_is_found_where_starts_see_both() -> None:
    def loss(u: float) -> tuple[float, float]:
        return np.cos(4 * np.pi * u) + 0.2 * u, -4 * np.pi * np.sin(4 * np.pi * u) + 0.2

    assert minimise_line(loss, num_starts=6) == pytest.approx(0.25, abs=0.01)


# against a grid


def test_gradient_is_the_slope_of_the_objective(trained: Any) -> None:
    optimizer, candidates = parts_of(trained("hypermorph-demo", *TWO))
    question = Question(optimizer, candidates.everything("dice", 6))
    at, step = np.array([0.4, 0.3]), 5e-3
    _, gradient = question.loss(at)
    for axis in range(2):
        shift = step * np.eye(2)[axis]
        slope = (question.loss(at + shift)[0] - question.loss(at - shift)[0]) / (2 * step)
        # the warp is linear between voxels: slopes jump
        assert gradient[axis] == pytest.approx(slope, abs=2e-3 + 0.2 * abs(slope))


@pytest.mark.timeout(60)  # 101 registrations of pairs
def test_gradient_finds_what_a_grid_of_101_finds(registered: Any) -> None:
    optimizer, candidates = parts_of(registered)
    groups = [candidates.everything("dice", 20), *candidates.groups("label", "dice", 20)]
    assert [one.name for one in groups] == ["all", "structure_1", "structure_2", "structure_3"]
    for group in groups:
        found = optimizer.optimize(group)
        units, values = grid_of(Question(optimizer, group), 101)
        distance = abs(found.conditioning["lambda"] - units[values.argmax(), 0])
        assert distance <= 0.02 or values.max() - found.objective <= 1e-3, group.name
        assert found.num_evaluations <= 10
        assert (found.num_pairs, found.metric) == (12, group.metric)


def test_gradient_finds_what_a_grid_finds_over_two_conditionings(trained: Any) -> None:
    optimizer, candidates = parts_of(trained("hypermorph-demo", *TWO))
    group = candidates.everything("dice", 6)
    found = optimizer.optimize(group)
    _, values = grid_of(Question(optimizer, group), 15)
    assert values.max() - found.objective <= 1e-3
    assert list(found.conditioning) == ["lambda", "gamma"]
    assert found.num_evaluations < 100


def test_ends_of_the_range_are_looked_at_where_no_slope_leads(registered: Any) -> None:
    optimizer, candidates = parts_of(registered)
    group = candidates.everything("dice", 4)
    question = Question(optimizer, group)
    ends = [-question.loss(np.array([end]))[0] for end in (0.0, 1.0)]
    assert optimizer.optimize(group).objective >= max(ends)


def test_whole_numbers_are_whole(trained: Any) -> None:
    exploration = trained("hypermorph-demo", *RADIUS)
    (found,) = exploration.optimize(num_pairs=4).results
    assert isinstance(found.conditioning["radius"], int)
    assert 1 <= found.conditioning["radius"] <= 9


def test_value_is_the_metric_at_the_setting_and_objective_the_soft_one(registered: Any) -> None:
    optimizer, candidates = parts_of(registered)
    group = candidates.everything("dice", 5)
    found = optimizer.optimize(group)
    trainable, module = optimizer.models[0]
    values = evaluate_setting(trainable, module, group.samples, found.conditioning)
    assert found.value == pytest.approx(np.nanmean(values["dice"]), rel=1e-9)
    unit = optimizer.space.encode([found.conditioning])[0]
    assert found.objective == pytest.approx(-Question(optimizer, group).loss(unit)[0], rel=1e-6)
    again = optimizer.optimize(group)
    assert (again.conditioning, again.value) == (found.conditioning, found.value)


def test_search_stays_within_the_explored_range(trained: Any) -> None:
    exploration = trained("hypermorph-demo", "explore.space={lambda: [0.3, 0.45]}")
    for found in exploration.optimize(by="label").results:
        assert 0.3 <= found.conditioning["lambda"] <= 0.45


def test_seeds_are_averaged_and_counted(trained: Any) -> None:
    exploration = trained("hypermorph-demo", "train.seeds=[0, 1]", "train.epochs=2")
    both = exploration.optimize(num_pairs=4)
    alone = [exploration.optimize(num_pairs=4, seeds=[seed]) for seed in (0, 1)]
    assert [one.num_seeds for one in (both, *alone)] == [2, 1, 1]
    assert both.results[0].num_evaluations % 2 == 0
    best = [one.results[0].objective for one in alone]
    assert both.results[0].objective <= np.mean(best) + 1e-4  # as close as each is found


def test_group_without_a_sample_has_no_setting(registered: Any) -> None:
    within = registered.optimize(by="subject").results[1]
    assert (within.group, within.num_pairs, within.num_evaluations) == ("within", 0, 0)
    assert (within.conditioning, within.value, within.objective) == (None, None, None)


# by asking


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_grid_takes_any_metric_of_any_method(trained: Any, direction: Any) -> None:
    exploration = trained("demo")
    objective = Objective("dice", direction)
    found = exploration.optimize(objective=objective, solver="grid", num_points=6, num_pairs=4)
    optimizer, candidates = parts_of_asking(exploration, objective)
    group = candidates.everything("dice", 4)
    question = Question(optimizer, group)
    phis = np.linspace(0, 0.5, 6)
    values = [question.measure({"phi": float(phi)})["dice"] for phi in phis]
    (optimum,) = found.results
    best = max(values) if direction == "maximize" else min(values)
    assert optimum.value == optimum.objective == pytest.approx(best, rel=1e-6)
    assert (optimum.num_evaluations, optimum.num_pairs, optimum.num_people) == (6, 4, 4)


def test_groups_of_the_same_samples_are_asked_once(registered: Any) -> None:
    found = registered.optimize(by="label", solver="grid", num_points=3, num_pairs=4)
    assert [one.num_evaluations for one in found.results] == [3, 0, 0, 0]
    alone = registered.optimize(
        objective=Objective("dice/structure_2", "maximize"),
        solver="grid",
        num_points=3,
        num_pairs=4,
    )
    assert alone.results[0].value == found.results[2].value


def parts_of_asking(exploration: Any, objective: Objective) -> tuple[Optimizer, Candidates]:
    spec = exploration.spec
    models = frozen_models(exploration.folder, spec, ["sshn-s0"])
    space = explored_space(spec, build_trainable(spec))
    optimizer = Optimizer(models, space, objective, solver="grid")
    return optimizer, candidates_of(spec, load_data(spec))


def test_tpe_asks_as_often_as_it_is_told_for_a_metric_without_gradient(registered: Any) -> None:
    objective = Objective("folded_share", "minimize")
    found = registered.optimize(objective=objective, solver="tpe", num_points=7, num_pairs=4)
    assert found.results[0].num_evaluations == 7
    assert found.results[0].value == found.results[0].objective


# refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": Objective("folded_share", "minimize")}, "folded_share has no gradient.*tpe"),
        ({"objective": Objective("dce", "maximize")}, "unknown metric 'dce'; known: dice"),
        ({"solver": "newton"}, "unknown --solver 'newton'; known: gradient, grid, tpe"),
        ({"method": "sshn"}, "no measurements of method 'sshn'"),
        ({"by": "age"}, "unknown --by 'age'; known: label, subject"),
        (
            {"by": "label", "objective": Objective("folded_share", "minimize"), "solver": "grid"},
            "--by label: hypermorph has no folded_share/structure_1",
        ),
    ],
)
def test_wrong_question_is_refused(registered: Any, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registered.optimize(num_points=2, **changes)


def test_method_without_a_gradient_names_the_solvers_that_need_none(trained: Any) -> None:
    message = "sshn gives is no differentiable function of phi; --solver tpe and --solver grid"
    with pytest.raises(InputError, match=message):
        trained("demo").optimize()
