"""What weighs what in a registration: smoothness against similarity against overlap of labels.

Source: Hoopes et al., "HyperMorph", eq. 2 and eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.problem import Objective, Problem
from search_spaces.space import FloatParameter, IntParameter, Parameter, SearchSpace

PARAMETERS: dict[str, Parameter] = {
    "lambda": FloatParameter("lambda", 0.0, 1.0),
    "gamma": FloatParameter("gamma", 0.0, 1.0),
    "radius": IntParameter("radius", 1, 15),
}
KNOWN_COSTS = ("macs", "flops", "parameters", "activation_bytes")


def registration_space(names: Sequence[str] = ("lambda",)) -> SearchSpace:
    """Any of `lambda`, the weight of smoothness, `gamma`, that of labels, and `radius`, of NCC.

    A window of local correlation is 2 radius + 1 voxels wide.

    Raises:
        KeyError: another name.
    """
    return SearchSpace(tuple(PARAMETERS[name] for name in names))


def registration_problem(names: Sequence[str] = ("lambda",)) -> Problem:
    """Overlap of warped labels against folding; what a registration costs is the same for all."""
    return Problem(
        space=registration_space(names),
        objectives=(Objective("dice", "maximize"), Objective("folded_share", "minimize")),
        known_costs=KNOWN_COSTS,
    )
