"""The problem of adaptation: what a block costs, and how few are fine-tuned."""

import pytest

from search_spaces.adaptation import adaptation_problem, adaptation_space
from search_spaces.errors import InputError


def test_price_of_a_block_reaches_from_nothing_and_the_paper_s_grid_is_spread_out():
    (price,) = adaptation_space()
    grid = [0, 0.001, 0.003, 0.005, 0.007, 0.01, 0.012, 0.015, 0.02]
    units = [price.to_unit(value) for value in grid]
    assert units[0] == 0
    assert units == sorted(units)
    assert units[-1] > 0.3  # of a range up to 500 times as large


def test_quality_first_then_as_few_blocks_as_possible():
    problem = adaptation_problem()
    assert [(o.name, o.direction) for o in problem.objectives] == [
        ("surface_dice", "maximize"),
        ("fine_tuned_blocks", "minimize"),
    ]
    assert problem.space.conditioning.names == ("lambda",)
    assert adaptation_problem(()).space.names == ()


def test_there_are_three_folds():
    fold = adaptation_space(["fold"])["fold"]
    assert [fold.validate(k) for k in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="fold must be in"):
        fold.validate(3)
