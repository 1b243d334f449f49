"""Variable feature rescaling: how far a network shrinks its features at each downsampling step.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", sections 3 and C.2.
"""

from __future__ import annotations

from search_spaces.problem import Objective, Problem
from search_spaces.space import FloatParameter, SearchSpace

KNOWN_COSTS = ("macs", "flops", "parameters", "activation_bytes")


def rescaling_space(*, num_factors: int = 1) -> SearchSpace:
    """One factor `phi` for all steps, or `phi_0` .. `phi_{num_factors - 1}`; each in [0, 1].

    Raises:
        ValueError: `num_factors` is below one.
    """
    if num_factors < 1:
        raise ValueError(f"num_factors must be at least 1, got {num_factors}")
    names = ["phi"] if num_factors == 1 else [f"phi_{index}" for index in range(num_factors)]
    return SearchSpace(tuple(FloatParameter(name, 0.0, 1.0) for name in names))


def rescaling_problem(*, num_factors: int = 1) -> Problem:
    """Segmentation overlap against multiply-adds, as a function of the rescaling factors."""
    return Problem(
        space=rescaling_space(num_factors=num_factors),
        objectives=(Objective("dice", "maximize"), Objective("macs", "minimize", "MAC")),
        known_costs=KNOWN_COSTS,
    )
