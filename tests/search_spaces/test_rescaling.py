import pytest

from search_spaces.problem import Objective
from search_spaces.rescaling import KNOWN_COSTS, rescaling_problem, rescaling_space
from search_spaces.space import CategoricalParameter, FloatParameter


def test_one_factor_is_phi_in_the_unit_interval():
    assert rescaling_space().parameters == (FloatParameter("phi", 0.0, 1.0),)


def test_several_factors_are_numbered_from_zero_and_conditioning():
    space = rescaling_space(num_factors=3)
    assert space.names == ("phi_0", "phi_1", "phi_2")
    assert space.conditioning == space


def test_choices_are_categories_after_the_factors():
    space = rescaling_space(choices={"interpolation": ("linear", "nearest")})
    category = CategoricalParameter("interpolation", ("linear", "nearest"))
    assert space.parameters == (FloatParameter("phi", 0.0, 1.0), category)
    with pytest.raises(ValueError, match="parameter names must differ, got phi, phi"):
        rescaling_space(choices={"phi": ("a", "b")})


def test_no_factor_is_refused():
    with pytest.raises(ValueError, match="num_factors must be at least 1, got 0"):
        rescaling_space(num_factors=0)


def test_problem_is_overlap_first_then_multiply_adds():
    problem = rescaling_problem(num_factors=2)
    assert problem.objectives == (
        Objective("dice", "maximize"),
        Objective("macs", "minimize", "MAC"),
    )
    assert problem.known_costs == KNOWN_COSTS == ("macs", "flops", "parameters", "activation_bytes")
    assert problem.space == rescaling_space(num_factors=2)
