import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.problem import Objective, Problem
from search_spaces.space import FloatParameter, IntParameter, SearchSpace

DICE, MACS = Objective("dice", "maximize"), Objective("macs", "minimize", "MAC")
PROBLEM = Problem(
    SearchSpace((FloatParameter("phi", 0, 1), IntParameter("width", 4, 32, role="training"))),
    (DICE, MACS),
    known_costs=("macs",),
)


def test_only_a_maximised_value_changes_sign():
    assert DICE.to_loss(0.9) == -0.9
    assert MACS.to_loss(3.0) == 3.0


@given(st.floats(allow_nan=False), st.sampled_from([DICE, MACS]))
def test_from_loss_inverts_to_loss(value, objective):
    assert objective.from_loss(objective.to_loss(value)) == value


@pytest.mark.parametrize("objective", [DICE, MACS])
def test_lower_loss_is_better_for_arrays_too(objective):
    values = np.array([0.1, 0.5, 0.3])
    best = values.max() if objective.direction == "maximize" else values.min()
    losses = objective.to_loss(values)
    assert values[losses.argmin()] == best
    assert np.array_equal(objective.from_loss(losses), values)
    assert np.array_equal(values, [0.1, 0.5, 0.3])


def test_objective_of_a_label_takes_the_direction_of_its_family():
    assert PROBLEM.objective("dice/nucleus") == Objective("dice/nucleus", "maximize")
    assert PROBLEM.objective("macs") == MACS


def test_a_declared_label_wins_over_its_family_when_it_comes_first():
    label = Objective("dice/nucleus", "minimize")
    problem = Problem(PROBLEM.space, (label, DICE))
    assert problem.objective("dice/nucleus") == label


@pytest.mark.parametrize("name", ["auc", "dic", "dice2", ""])
def test_undeclared_objective_is_refused(name):
    with pytest.raises(KeyError, match=f"'{name}'"):
        PROBLEM.objective(name)


def test_demoted_problem_needs_a_training_for_every_value():
    demoted = PROBLEM.demoted()
    assert demoted.space.training.names == ("phi", "width")
    assert len(demoted.space.conditioning) == 0
    assert (demoted.objectives, demoted.known_costs) == (PROBLEM.objectives, PROBLEM.known_costs)
    assert PROBLEM.space.conditioning.names == ("phi",)
