"""How much of a network is fine-tuned to a new domain: quality against fine-tuned blocks.

Source: Zakazov, Shirokikh, Chernyavskiy, Belyaev, "Anatomy of Domain Shift Impact on U-Net Layers
in MRI Segmentation", eq. 1 and section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.problem import Objective, Problem
from search_spaces.space import FloatParameter, IntParameter, Parameter, SearchSpace

PARAMETERS: dict[str, Parameter] = {
    # the paper's values are 0 to 0.02, spaced ever more widely
    "lambda": FloatParameter("lambda", 0.0, 10.0, linear_below=1e-3),
    "temperature": FloatParameter("temperature", 1e-3, 100.0, log=True),
    "fold": IntParameter("fold", 0, 2),
    "amount": IntParameter("amount", 0, 10**9, role="training"),
}
KNOWN_COSTS = ("macs", "flops", "parameters", "activation_bytes")


def adaptation_space(names: Sequence[str] = ("lambda",)) -> SearchSpace:
    """Any of `lambda`, the price of a fine-tuned block, the `temperature` of Gumbel-Softmax, the
    `fold` of three that an oracle is tested on, and the `amount` of annotated images, 0 for all.

    Raises:
        KeyError: another name.
    """  # noqa: D205
    return SearchSpace(tuple(PARAMETERS[name] for name in names))


def adaptation_problem(names: Sequence[str] = ("lambda",)) -> Problem:
    """Surface Dice against the number of fine-tuned blocks, which a policy chooses per image."""
    return Problem(
        space=adaptation_space(names),
        objectives=(
            Objective("surface_dice", "maximize"),
            Objective("fine_tuned_blocks", "minimize", "blocks"),
        ),
        known_costs=KNOWN_COSTS,
    )
