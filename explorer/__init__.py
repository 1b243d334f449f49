"""Pareto exploration of amortised models: train once, ask for every setting.

`run(spec)` carries out a specification; `open_exploration(id)` finds one again; both return an
`Exploration`, on which the verbs live. Importing this package loads neither torch nor ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from explorer.exploration import Exploration, open_exploration, resume, run
    from explorer.extensions import Extensions
    from explorer.queries import Bound
    from explorer.specs import ExplorationSpec, load_spec

_HOMES = {
    "Bound": "explorer.queries",
    "Exploration": "explorer.exploration",
    "Extensions": "explorer.extensions",
    "ExplorationSpec": "explorer.specs",
    "load_spec": "explorer.specs",
    "open_exploration": "explorer.exploration",
    "resume": "explorer.exploration",
    "run": "explorer.exploration",
}
__all__ = [
    "Bound",
    "Exploration",
    "ExplorationSpec",
    "Extensions",
    "load_spec",
    "open_exploration",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
