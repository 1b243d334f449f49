"""Variable feature rescaling: how far a network shrinks its features at each downsampling step.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", sections 3 and C.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from search_spaces.problem import Objective, Problem
from search_spaces.space import CategoricalParameter, FloatParameter, Parameter, SearchSpace

KNOWN_COSTS = ("macs", "flops", "parameters", "activation_bytes")
PARAMETERS: dict[str, Parameter] = {
    "prior_width": FloatParameter("prior_width", 0.0, 0.5, role="training"),
    "prior_power": FloatParameter("prior_power", 0.1, 10.0, role="training"),
    "draws": CategoricalParameter("draws", ("separate", "common"), role="training"),
    "distillation": FloatParameter("distillation", 0.0, 1.0, role="training"),
}
"""How amortised networks may be trained: half the width of the prior around its middle; the power
of the uniform draws, above 1 for more small factors; whether all factors share a draw; and what
share of the loss is agreement with the network at the top of the prior."""
NO_CHOICES: Mapping[str, Sequence[str]] = MappingProxyType({})


def prior_around(ends: tuple[float, float], width: float) -> tuple[float, float]:
    """The range that reaches that far to both sides of the middle of another."""
    middle = sum(ends) / 2
    return middle - width, middle + width


def rescaling_space(
    *, num_factors: int = 1, choices: Mapping[str, Sequence[str]] = NO_CHOICES
) -> SearchSpace:
    """One factor `phi` for all steps, or `phi_0` .. `phi_{num_factors - 1}`; each in [0, 1].

    Then a category for each of the `choices`, name to values: how else the network may be set.

    Raises:
        ValueError: `num_factors` is below one, or a category has no two choices or a factor's name.
    """
    if num_factors < 1:
        raise ValueError(f"num_factors must be at least 1, got {num_factors}")
    names = ["phi"] if num_factors == 1 else [f"phi_{index}" for index in range(num_factors)]
    factors = [FloatParameter(name, 0.0, 1.0) for name in names]
    categories = [CategoricalParameter(name, tuple(values)) for name, values in choices.items()]
    return SearchSpace((*factors, *categories))


def rescaling_problem(
    *, num_factors: int = 1, choices: Mapping[str, Sequence[str]] = NO_CHOICES
) -> Problem:
    """Segmentation overlap against multiply-adds, as a function of `rescaling_space`."""
    return Problem(
        space=rescaling_space(num_factors=num_factors, choices=choices),
        objectives=(Objective("dice", "maximize"), Objective("macs", "minimize", "MAC")),
        known_costs=KNOWN_COSTS,
    )
