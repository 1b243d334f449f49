"""Questions to the explorations of a runs directory, asked again and again while they change.

What a service and a page need and the command line does not: explorations that stay open, are seen
when they appear, change or go, and never lie elsewhere than in the runs directory.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from explorer import documents
from explorer.exploration import Exploration, exploration_ids, require_id
from explorer.models import build_trainable, method_of
from explorer.places import Place, mark_of
from explorer.points import Point
from explorer.predicting import Prediction, Predictor, read_image
from explorer.queries import Answer, Bound, PointTable
from explorer.recent import Recent
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from search_spaces.space import Config
from trainables.base import Trainable
from trainables.methods import Task

NUM_ASKED, NUM_LISTED = 8, 1000  # explorations that stay open: with their tables, and without
NUM_TRAINABLES = 32
MAX_PIXELS = 16_000_000  # of an image that is brought

logger = logging.getLogger("ray.serve")


class UnknownExplorationError(InputError):
    """There is no exploration of that id."""


@dataclass(frozen=True)
class Question:
    """A query as `explorer query` puts it; see `Exploration.query`.

    Attributes:
        bounds: on metrics and costs.
        objective: what is best; the exploration's first by default.
        knee: ask for the front's knee instead; of the exploration's own objectives.
        method: whose points; the exploration's own by default.
        seeds: average these trainings only; all by default.
    """

    bounds: tuple[Bound, ...] = ()
    objective: Objective | None = None
    knee: bool = False
    method: str | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Choice:
    """A setting, the training that is best there, and what the setting costs."""

    method: str
    trial_id: str
    conditioning: Config
    costs: dict[str, float]


class Explorations:
    """The explorations of a runs directory.

    Args:
        runs: where they live.
    """

    def __init__(self, runs: Place) -> None:
        self.runs = runs
        self.predictor = Predictor()
        self._asked: Recent[Any, Exploration] = Recent(NUM_ASKED)
        self._listed: Recent[Any, Exploration] = Recent(NUM_LISTED)
        self._trainables: Recent[Any, Trainable] = Recent(NUM_TRAINABLES)

    def __repr__(self) -> str:
        return f"Explorations({str(self.runs)!r})"

    def require(self) -> None:
        """Look at the runs directory.

        Raises:
            InputError: it cannot be read.
            OSError: likewise.
            RunError: the object store does not answer.
        """
        if isinstance(self.runs, Path):
            if not self.runs.is_dir():
                raise InputError(f"{self.runs} is no folder")
            next(self.runs.iterdir(), None)
        else:
            self.runs.fs.ls(self.runs.path.rstrip("/").split("/")[0])

    def get(self, exploration_id: str) -> Exploration:
        """An exploration by its id, as it is now.

        Raises:
            UnknownExplorationError: there is none in the runs directory itself.
        """
        return self._asked.get(*self._entry(exploration_id))

    def rows(self) -> list[dict[str, Any]]:
        """`explorer list`; explorations that are damaged are left out and logged."""
        rows = []
        for exploration_id in exploration_ids(self.runs):
            try:
                rows.append(documents.listed(self._listed.get(*self._entry(exploration_id))))
            except InputError as error:
                logger.warning("left out of the list: %s", error)
        return rows

    def _entry(self, exploration_id: str) -> tuple[Any, Any]:
        """What an exploration is kept under, another once it was replaced, and how it is opened."""
        unknown = UnknownExplorationError(f"no exploration {exploration_id!r}")
        try:
            require_id(exploration_id)
            folder = self.runs / exploration_id
            if isinstance(folder, Path) and folder.resolve().parent != self.runs.resolve():
                raise unknown
            key = exploration_id, mark_of(folder / "spec.yaml")
        except (InputError, FileNotFoundError) as error:
            raise unknown from error
        return key, lambda: Exploration(folder)

    def trainable(self, exploration: Exploration, method: str | None) -> Trainable:
        """The trainable of a method of an exploration, its own by default.

        Raises:
            InputError: there is no such method.
        """
        name = method or exploration.spec.method
        task_of(exploration, name)  # refuses the unknown
        key = exploration.spec.digest, name
        return self._trainables.get(key, lambda: build_trainable(exploration.spec, name))

    def costs(
        self, exploration: Exploration, conditioning: Mapping[str, Any], method: str | None
    ) -> dict[str, Any]:
        """`explorer cost` on an exploration's spec.

        Raises:
            InputError: no such method or setting.
        """
        trainable = self.trainable(exploration, method)
        return documents.costs(trainable, trainable.problem.space.validate(dict(conditioning)))

    def choose(
        self,
        exploration: Exploration,
        conditioning: Mapping[str, Any],
        *,
        method: str | None = None,
        seeds: Collection[int] | None = None,
    ) -> Choice:
        """The training to use at a setting, measured or not.

        Of several seeds that which export takes: the one which is best on validation there, or,
        where nothing was measured, on average over the settings that were; in the exploration's
        first objective.

        Raises:
            InputError: the method has no such setting, or was not trained for it.
        """
        point = exploration.at(conditioning, method=method, seeds=seeds)
        costs = dict(point.costs)
        if "macs" in costs:
            costs.setdefault("flops", 2 * costs["macs"])
        trial_id = _best_trial(exploration, point)
        return Choice(point.method, trial_id, dict(point.conditioning), costs)

    def predict(
        self, exploration: Exploration, choice: Choice, images: Mapping[str, bytes]
    ) -> Prediction:
        """What the chosen network makes of an image, or of a moving and a fixed one.

        Args:
            exploration: whose models are asked.
            choice: of `choose`.
            images: content of files by name: `image`, or `moving` and `fixed`.

        Raises:
            InputError: images that the data set's reader does not take, or damaged weights.
        """
        read = [
            read_image(exploration.spec, name, images[name], max_pixels=MAX_PIXELS)
            for name in images_of(exploration, choice.method)
        ]
        return self.predictor.predict(
            exploration.folder, exploration.spec, choice.trial_id, choice.conditioning, read
        )


def ask(exploration: Exploration, question: Question) -> Answer:
    """The answer to one question; see `ask_all`."""
    return ask_all(exploration, [question])[0]


def ask_all(exploration: Exploration, questions: Sequence[Question]) -> list[Answer]:
    """The answers to questions, all from the table as it is at the first.

    Raises:
        InputError: one of them names what there is not.
    """
    tables: dict[Any, PointTable] = {}
    answers = []
    for question in questions:
        key = question.method, question.seeds
        if key not in tables:
            tables[key] = exploration.points(method=question.method, seeds=question.seeds)
        table, objectives = tables[key], exploration.objectives
        if question.knee:
            answers.append(table.knee(objectives, question.bounds))
        else:
            objective = question.objective or objectives[0]
            breaks = exploration.tie_breaks
            answers.append(table.query(question.bounds, objective=objective, tie_breaks=breaks))
    return answers


def task_of(exploration: Exploration, method: str | None) -> Task:
    """What a method of an exploration does; raises InputError where there is no such method."""
    return method_of(exploration.spec, method or exploration.spec.method).task


def images_of(exploration: Exploration, method: str | None) -> tuple[str, ...]:
    """The names of the images that a prediction takes."""
    is_registration = task_of(exploration, method) == "registration"
    return ("moving", "fixed") if is_registration else ("image",)


def _best_trial(exploration: Exploration, point: Point) -> str:
    if task_of(exploration, point.method) == "generalization":
        raise InputError(
            f"{exploration.id}: {point.method} tells of whole images, which cannot be asked for "
            f"one by one yet; ask explorer query or explorer analyze"
        )
    if len(point.trial_ids) == 1:
        return point.trial_ids[0]
    pairs = exploration.spec.train.grid.get("pair", ())
    if len(pairs) > 1:
        raise InputError(
            f"{exploration.id}: {point.method} was trained for several pairs of domains, and a "
            f"prediction is that of one; explore one by itself: --set train.grid.pair=[{pairs[0]}]"
        )
    objective = exploration.objectives[0]
    method, settled = point.method, _settled(exploration, point)
    losses = {}
    for seed in exploration.points(method=method).seeds:
        own = exploration.points(method=method, seeds=(seed,))
        there = own.find(point.conditioning) if point.metrics else None
        if there is not None:
            value, trial_id = there.metrics[objective.name], there.trial_ids[0]
        else:
            points = (own.point(index) for index in range(len(own)))
            near = [one for one in points if settled.items() <= one.conditioning.items()]
            value = float(np.nanmean([one.metrics[objective.name] for one in near]))
            trial_id = near[0].trial_ids[0]
        if trial_id in point.trial_ids:
            losses[trial_id] = objective.to_loss(float(value))
    return min(losses, key=lambda trial_id: losses[trial_id])


def _settled(exploration: Exploration, point: Point) -> dict[str, float | str]:
    """What the models of a point were trained for, of its setting."""
    names = exploration.spec.train.grid
    return {name: x for name, x in point.conditioning.items() if name in names}
