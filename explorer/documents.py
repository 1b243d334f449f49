"""What explorations tell as plain data: the command line's JSON, which the HTTP service answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from explorer.claims import FRONT, documents_for, rows_of
from explorer.exploration import Exploration
from explorer.places import Place
from explorer.points import Point
from explorer.progress import ProgressReport
from explorer.queries import Answer
from search_spaces.errors import InputError
from search_spaces.space import Config

if TYPE_CHECKING:
    from explorer.explored import Analysis
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


def about(exploration: Exploration) -> dict[str, str]:
    """What was explored, and the command that does it again."""
    section = exploration.spec.dataset
    size = "" if section.size is None else f", {' x '.join(map(str, section.size))}"
    again = f"explorer run {exploration.folder / 'spec.yaml'}"
    return {
        "data": f"{section.name}{size}",
        "command": exploration.state.get("command") or again,
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
        **about(exploration),
    }


def analyzed(
    exploration: Exploration, name: str, found: Analysis, figure: Place, table: Place
) -> dict[str, Any]:
    """`explorer analyze` of a name."""
    return {
        "exploration_id": exploration.id,
        "analysis": name,
        "rows": found.rows,
        "notes": found.notes,
        "figure": str(figure),
        "table": str(table),
        **about(exploration),
    }


def reported(exploration: Exploration, progress: ProgressReport) -> Iterator[dict[str, Any]]:
    """Rows of `explorer report`, of what one finished exploration says of the papers' claims.

    What it cannot say, since it did not measure it or its data are gone, `progress` is told.
    """
    known = exploration.analyses().keys() - exploration.analyses_lacking().keys()
    for name in documents_for(exploration.spec.method, list(known)):
        progress.say(f"{exploration.id}: {name}")
        try:
            if name == FRONT:
                status = exploration.state["status"]
                document = front(exploration, [], method=None, status=status)
                document["comparison"] = exploration.compare()
            else:
                document = analyzed(exploration, name, *exploration.analyze(name))
            rows = list(rows_of(document, exploration.id))
        except InputError as error:
            progress.say(f"left out: {name} of {exploration.id}: {error}")
            continue
        yield from rows


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
