"""What others bring: methods, primary networks, data sets and samplers, found by name.

An installed package names them as entry points, which the command line and every node of a
cluster where it is installed find; in Python they can be given as a plain argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from search_spaces.errors import InputError, unknown_name

Kind = Literal["methods", "networks", "datasets", "samplers"]
Entry = TypeVar("Entry")

NOUNS: dict[Kind, str] = {
    "methods": "method",
    "networks": "model.network",
    "datasets": "data set",
    "samplers": "explore.sampler",
}


@dataclass(frozen=True)
class Extensions:
    """What is brought in Python, by name, beside what is shipped and installed.

    Attributes:
        methods: `trainables.methods.Method`.
        networks: classes with the interface of `trainables.networks.base.PrimaryNetwork`.
        datasets: `trainables.datasets.base.DatasetSource`.
        samplers: callables from `explorer.samplers.SamplingTask` to a `Sampler`.
    """

    methods: Mapping[str, Any] = field(default_factory=dict)
    networks: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, Any] = field(default_factory=dict)
    samplers: Mapping[str, Any] = field(default_factory=dict)


def names_of(kind: Kind, shipped: Mapping[str, Any], extensions: Extensions) -> list[str]:
    """Every known name of a kind, sorted; nothing is imported."""
    return sorted({*shipped, *getattr(extensions, kind), *_installed(kind)})


def find(kind: Kind, name: str, shipped: Mapping[str, Entry], extensions: Extensions) -> Entry:
    """What a name stands for; an entry point's module is imported now.

    Raises:
        InputError: an unknown name, or one that several places give.
    """
    brought: Mapping[str, Entry] = getattr(extensions, kind)
    installed = _installed(kind).get(name, [])
    places = ["pareto-explorer"] * (name in shipped) + ["the argument extensions"] * (
        name in brought
    )
    places += [f"package {entry.dist.name if entry.dist else entry.value}" for entry in installed]
    if not places:
        raise unknown_name(NOUNS[kind], name, names_of(kind, shipped, extensions))
    if len(places) > 1:
        raise InputError(f"{NOUNS[kind]} {name!r} is given by {' and '.join(places)}: rename one")
    if name in shipped:
        return shipped[name]
    if name in brought:
        return brought[name]
    loaded: Entry = installed[0].load()
    return loaded


@cache
def _installed(kind: Kind) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=f"explorer.{kind}"):
        found.setdefault(entry.name, []).append(entry)
    return found
