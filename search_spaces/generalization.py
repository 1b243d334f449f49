"""Domains that training never saw: how well a network does there, against what it costs.

Source: "HyDA: Hypernetworks for Test Time Domain Adaptation in Medical Imaging Analysis".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, TypeAlias

from search_spaces.problem import Objective, Problem
from search_spaces.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
    SearchSpace,
)

PARAMETERS: dict[str, Parameter] = {
    "embedding_size": IntParameter("embedding_size", 1, 1024, role="training"),
    "domain_weight": FloatParameter("domain_weight", 0.0, 1e3, role="training"),
    "similarity_weight": FloatParameter("similarity_weight", 0.0, 1e3, role="training"),
    "generated_weight": FloatParameter("generated_weight", 0.0, 1e3, role="training"),
}
KNOWN_COSTS = ("macs", "flops", "parameters", "activation_bytes", "gradient_steps")
OWN, GROUP = "own", "group"
Place: TypeAlias = int | Literal["own", "group"]
_TO = "-to-"


def line_names(num_sources: int) -> tuple[str, ...]:
    """The lines on which an embedding may lie: from its own place to the mean of its group, or to a
    source's centroid, and from one source's centroid to another's. Sources are counted from 1, in
    the order of the domains without the one that is held out.
    """  # noqa: D205
    ends = [OWN, *(f"source{k + 1}" for k in range(num_sources))]
    return (f"{OWN}{_TO}{GROUP}", *(f"{a}{_TO}{b}" for a, b in combinations(ends, 2)))


def ends_of(line: str) -> tuple[Place, Place]:
    """What a line joins: positions of sources, the embedding's own place, or its group's mean."""
    first, last = line.split(_TO)
    return _place(first), _place(last)


def _place(name: str) -> Place:
    if name == OWN:
        return "own"
    if name == GROUP:
        return "group"
    return int(name.removeprefix("source")) - 1


def embedding_space(num_sources: int) -> SearchSpace:
    """Where the embedding lies: on which `line`, and at which share `t` of its length."""
    return SearchSpace(
        (CategoricalParameter("line", line_names(num_sources)), FloatParameter("t", 0.0, 1.0))
    )


def generalization_problem(objective: Objective, space: Sequence[Parameter] = ()) -> Problem:
    """Quality of one prediction per image against multiply-adds."""
    return Problem(
        space=SearchSpace(tuple(space)),
        objectives=(objective, Objective("macs", "minimize")),
        known_costs=KNOWN_COSTS,
    )
