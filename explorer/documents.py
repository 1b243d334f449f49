"""What explorations tell as plain data: the command line's JSON, which the HTTP service answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from explorer.exploration import Exploration
from explorer.points import Point
from explorer.queries import Answer
from search_spaces.space import Config

if TYPE_CHECKING:
    from explorer.optimizing import Optimisation
    from trainables.base import Trainable


def listed(exploration: Exploration) -> dict[str, Any]:
    """A row of `explorer list`.

    Raises:
        InputError: the exploration's files are damaged.
    """
    state, spec = exploration.state, exploration.spec
    return {
        "exploration_id": exploration.id,
        "name": spec.name,
        "method": spec.method,
        "dataset": spec.dataset.name,
        "status": state["status"],
        "num_measurements": state["num_measurements"],
    }


def shown(exploration: Exploration) -> dict[str, Any]:
    """`explorer show`: state, trials, and the spec with every default."""
    return {
        "exploration_id": exploration.id,
        "folder": str(exploration.folder),
        **exploration.state,
        "trials": exploration.trials(),
        "spec": exploration.spec.model_dump(mode="json"),
    }


def front(
    exploration: Exploration, points: Sequence[Point], *, method: str | None, status: str
) -> dict[str, Any]:
    """`explorer frontier`, without what its options add."""
    return {
        "exploration_id": exploration.id,
        "method": method or exploration.spec.method,
        "frontier": [point.to_json() for point in points],
        "status": status,
    }


def answered(
    answer: Answer, *, status: str, there: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`explorer query`; `there` is what else than validation it was judged by."""
    judged = {} if there is None else {"evaluated_on": dict(there)}
    return {**answer.to_json(), "status": status, **judged}


def costs(trainable: Trainable, conditioning: Config) -> dict[str, Any]:
    """`explorer cost` of a valid setting."""
    return {
        "conditioning": conditioning,
        "costs": trainable.costs(conditioning),
        "sizes": trainable.sizes(conditioning),
    }


def optimized(found: Optimisation, *, status: str) -> dict[str, Any]:
    """`explorer optimize`."""
    return {**found.to_json(), "status": status}
