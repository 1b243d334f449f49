"""What is wanted: objectives with a direction, and the problem that they make with a space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from search_spaces.space import SearchSpace

Direction = Literal["maximize", "minimize"]
Number = TypeVar("Number", float, NDArray[np.float64])


@dataclass(frozen=True)
class Objective:
    """A metric or cost being optimised.

    Attributes:
        name: metric (`dice`, `dice/nucleus`) or cost (`macs`).
        direction: which way is better.
        unit: for labels; empty for a share or an overlap.
    """

    name: str
    direction: Direction
    unit: str = ""

    def to_loss(self, values: Number) -> Number:
        """Turn values into their minimised form; with `from_loss` the only flip of a sign."""
        return -values if self.direction == "maximize" else values

    def from_loss(self, losses: Number) -> Number:
        """Invert `to_loss`."""
        return -losses if self.direction == "maximize" else losses


@dataclass(frozen=True)
class Problem:
    """A search space, the objectives, and the costs that the conditioning alone determines.

    Attributes:
        space: conditioning and training parameters.
        objectives: the first is the default objective of a query.
        known_costs: names computed without running a model; bounds on them apply beforehand.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    known_costs: tuple[str, ...] = ()

    def objective(self, name: str) -> Objective:
        """The declared objective of that name, or of its family (`dice` for `dice/nucleus`).

        Raises:
            KeyError: neither is declared.
        """
        for objective in self.objectives:
            if objective.name in (name, name.split("/", 1)[0]):
                return replace(objective, name=name)
        raise KeyError(name)

    def demoted(self) -> Problem:
        """The same problem with every conditioning a training parameter: a grid baseline's."""
        return replace(self, space=self.space.with_role("training"))
