"""Parameters with a role, and the space that they span.

Shapes: n configurations, d parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError

Role = Literal["conditioning", "training"]
Value: TypeAlias = float | int | str
Config: TypeAlias = dict[str, Value]


@dataclass(frozen=True)
class FloatParameter:
    """A real number in [low, high].

    Attributes:
        name: lower-case identifier.
        low: smallest value, included.
        high: largest value, included; greater than `low`.
        role: `conditioning` changes after training for free, `training` needs a new trial.
        log: unit values are spaced logarithmically; needs `low` > 0.
        linear_below: unit values are spaced as the logarithm of `linear_below` + value - `low`:
            logarithmically far above it, evenly far below, so that `low` may be 0.

    Raises:
        ValueError: empty or non-finite range, `log` with `low` <= 0 or beside `linear_below`, or
            a `linear_below` that is not positive.
    """

    name: str
    low: float
    high: float
    role: Role = "conditioning"
    log: bool = False
    linear_below: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"{self.name}: expected finite low < high, got [{self.low}, {self.high}]"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"{self.name}: a logarithmic range needs low > 0, got {self.low}")
        if self.linear_below is not None and (self.log or not self.linear_below > 0):
            raise ValueError(
                f"{self.name}: linear_below must be positive and without log, got "
                f"{self.linear_below}"
            )

    @property
    def domain(self) -> str:
        """The values in words."""
        return f"in [{self.low:g}, {self.high:g}]"

    def validate(self, value: object) -> float:
        """Return `value` as a float inside the range, or raise InputError naming the parameter."""
        number = _number(self.name, value)
        if not self.low <= number <= self.high:
            raise InputError(f"{self.name} must be {self.domain}, got {number:g}")
        return number

    def to_unit(self, value: object) -> float:
        """Map a value to [0, 1]."""
        number = self.validate(value)
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        if self.linear_below is not None:
            most = math.log1p((self.high - self.low) / self.linear_below)
            return math.log1p((number - self.low) / self.linear_below) / most
        return (number - self.low) / (self.high - self.low)

    def from_unit(self, u: float) -> float:
        """Map u in [0, 1] to a value; the inverse of `to_unit` up to rounding."""
        if self.log:
            value = self.low * math.pow(self.high / self.low, u)
        elif self.linear_below is not None:
            most = math.log1p((self.high - self.low) / self.linear_below)
            value = self.low + self.linear_below * math.expm1(u * most)
        else:
            value = self.low + u * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def to_features(self, value: object) -> tuple[float, ...]:
        """What a network reads of a value: its unit value."""
        return (self.to_unit(value),)


@dataclass(frozen=True)
class IntParameter:
    """A whole number in [low, high], both included.

    Raises:
        ValueError: `low` is not below `high`.
    """

    name: str
    low: int
    high: int
    role: Role = "conditioning"

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"{self.name}: expected low < high, got [{self.low}, {self.high}]")

    @property
    def domain(self) -> str:
        """The values in words."""
        return f"in [{self.low}, {self.high}]"

    def validate(self, value: object) -> int:
        """Return `value` as an int inside the range, or raise InputError naming the parameter."""
        number = _number(self.name, value)
        if number != round(number):
            raise InputError(f"{self.name} must be a whole number, got {number:g}")
        if not self.low <= number <= self.high:
            raise InputError(f"{self.name} must be {self.domain}, got {number:g}")
        return int(number)

    def to_unit(self, value: object) -> float:
        """Map a value to [0, 1]."""
        return (self.validate(value) - self.low) / (self.high - self.low)

    def from_unit(self, u: float) -> int:
        """Map u in [0, 1] to the nearest value."""
        return min(max(round(self.low + u * (self.high - self.low)), self.low), self.high)

    def to_features(self, value: object) -> tuple[float, ...]:
        """What a network reads of a value: its unit value."""
        return (self.to_unit(value),)


@dataclass(frozen=True)
class CategoricalParameter:
    """One of several named choices; unit values are bin centres in the order given.

    Raises:
        ValueError: fewer than two choices, or repeated ones.
    """

    name: str
    choices: tuple[str, ...]
    role: Role = "conditioning"

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise ValueError(
                f"{self.name}: expected at least two different choices, got {self.choices}"
            )

    @property
    def domain(self) -> str:
        """The values in words."""
        return f"one of {', '.join(self.choices)}"

    def validate(self, value: object) -> str:
        """Return `value` if it is a choice, or raise InputError listing the choices."""
        if not isinstance(value, str) or value not in self.choices:
            raise InputError(f"{self.name} must be {self.domain}, got {value!r}")
        return value

    def to_unit(self, value: object) -> float:
        """Map a choice to the centre of its bin in [0, 1]."""
        return (self.choices.index(self.validate(value)) + 0.5) / len(self.choices)

    def from_unit(self, u: float) -> str:
        """Map u in [0, 1] to the choice in whose bin it falls."""
        return self.choices[min(int(u * len(self.choices)), len(self.choices) - 1)]

    def to_features(self, value: object) -> tuple[float, ...]:
        """What a network reads of a choice: one for it and zero for every other, one-hot."""
        chosen = self.validate(value)
        return tuple(float(choice == chosen) for choice in self.choices)


Parameter: TypeAlias = FloatParameter | IntParameter | CategoricalParameter


@dataclass(frozen=True)
class SearchSpace:
    """An ordered set of parameters with different names; immutable.

    Raises:
        ValueError: two parameters share a name.
    """

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.parameters):
            raise ValueError(f"parameter names must differ, got {', '.join(self.names)}")

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise InputError(f"unknown parameter {name!r}; known: {', '.join(self.names) or 'none'}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names in column order."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def conditioning(self) -> SearchSpace:
        """The parameters that change after training for free."""
        return SearchSpace(tuple(p for p in self.parameters if p.role == "conditioning"))

    @property
    def training(self) -> SearchSpace:
        """The parameters whose every value needs a training."""
        return SearchSpace(tuple(p for p in self.parameters if p.role == "training"))

    def with_role(self, role: Role, names: Iterable[str] | None = None) -> SearchSpace:
        """Give every named parameter (all by default) a role: how a grid baseline is made."""
        chosen = set(self.names if names is None else names)
        return SearchSpace(
            tuple(replace(p, role=role) if p.name in chosen else p for p in self.parameters)
        )

    def narrowed(self, ranges: Mapping[str, tuple[float, float]]) -> SearchSpace:
        """The same parameters with some ranges replaced by [low, high] within them.

        Raises:
            InputError: an unknown name, a category, or an end outside the parameter's range.
        """
        parameters = {parameter.name: parameter for parameter in self.parameters}
        for name, ends in ranges.items():
            parameter = self[name]
            if isinstance(parameter, CategoricalParameter):
                raise InputError(f"{name} is a category: it has choices, not a range")
            low, high = (parameter.validate(end) for end in ends)
            parameters[name] = replace(parameter, low=low, high=high)  # type: ignore[arg-type]
        return SearchSpace(tuple(parameters.values()))

    def validate(self, config: Mapping[str, object]) -> Config:
        """Return a clean configuration in column order.

        Raises:
            InputError: a value is missing, unknown, of the wrong type or outside its range.
        """
        unknown = [name for name in config if name not in self.names]
        missing = [name for name in self.names if name not in config]
        if unknown or missing:
            came = ", ".join(map(str, config)) or "none"
            raise InputError(
                f"expected values for {', '.join(self.names) or 'nothing'}, got {came}"
            )
        return {p.name: p.validate(config[p.name]) for p in self.parameters}

    def encode(self, configs: Sequence[Mapping[str, object]]) -> NDArray[np.float64]:
        """Return (n, d) unit values in [0, 1], one column per parameter in order."""
        rows = [[p.to_unit(config[p.name]) for p in self.parameters] for config in configs]
        return np.array(rows, dtype=np.float64).reshape(len(configs), len(self))

    def features(self, configs: Sequence[Mapping[str, object]]) -> NDArray[np.float64]:
        """Return (n, e) inputs of a network: unit numbers, and categories one-hot."""
        rows = [[x for p in self.parameters for x in p.to_features(c[p.name])] for c in configs]
        return np.array(rows, dtype=np.float64).reshape(len(configs), -1)

    def decode(self, units: NDArray[np.float64]) -> list[Config]:
        """Return the n configurations of an (n, d) array of unit values; inverts `encode`."""
        return [
            {p.name: p.from_unit(float(u)) for p, u in zip(self.parameters, row, strict=True)}
            for row in np.asarray(units, dtype=np.float64).reshape(len(units), len(self))
        ]


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{name} must be finite, got {number}")
    return number
