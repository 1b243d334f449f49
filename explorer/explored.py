"""What analyses are made of, and what they find: a table and a figure of a finished exploration."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from explorer.measurements import Columns
from explorer.specs import ExplorationSpec
from search_spaces.problem import Objective
from search_spaces.space import Config
from trainables.base import Arrays, Trainable

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        rows: of the table, plain data of one shape.
        notes: what they say, in sentences.
        figure: of the same.
    """

    rows: list[Row]
    notes: list[str]
    figure: Figure

    def to_csv(self) -> str:
        """The table, nested values as columns `metrics.dice`."""
        flat = [dict(_flat(row)) for row in self.rows]
        names = list(dict.fromkeys(name for row in flat for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        return text.getvalue()


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", " ".join(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Explored:
    """What analyses are made of.

    Attributes:
        exploration_id: for messages.
        spec: what was explored.
        objectives: of its front.
        columns: the measurements, one array per column.
        samples: values per image of the test split, likewise; empty before it was evaluated.
        settled: what each trial was trained for, by its id.
        model: the trainable of a trial and its frozen module, by its id.
        images: the splits, read from the data set.
        points: every point of a split of such measurements, as figures take them.
    """

    exploration_id: str
    spec: ExplorationSpec
    objectives: tuple[Objective, ...]
    columns: Columns
    samples: Columns
    settled: Mapping[str, Config]
    model: Callable[[str], tuple[Trainable, Any]]
    images: Callable[[], Mapping[str, Arrays]]
    points: Callable[[Columns, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class NamedAnalysis:
    """An analysis, what it tells in a line, and what a spec lacks for it, in words, if anything."""

    summary: str
    analyse: Callable[[Explored], Analysis]
    lacking: Callable[[ExplorationSpec], str] = lambda _: ""
