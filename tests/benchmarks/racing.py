"""Racing on a recorded grid: images saved, and what it costs in front and in missed settings.

Needs an exploration whose validation rows carry the value of every image and were all evaluated to
the end: one with a single block, `--set explore.racing={block_size: 100000}`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from explorer.exploration import open_exploration
from explorer.exploring import ListSampler, Plan, Run, Unit, chunk_size, evaluate_chunk, values_of
from explorer.frontiers import Frontier, hypervolume
from explorer.measurements import Measurement, measurements_of, setting_id, values_by_row
from explorer.models import build_trainable
from explorer.racing import Race
from explorer.session import explored_space
from explorer.store import measurements_store, samples_store
from search_spaces.errors import InputError

NUM_ORDERS = 20
BLOCK_SIZES = (4, 8, 16)
CONFIDENCES = (0.9, 0.95)
MARGINS = (0.0, 1e-4)
LIMIT = 1e-3  # of Dice: 0.1 points


def measure() -> dict[str, Sequence[Mapping[str, Any]]]:
    """Racing replayed on the exploration EXPLORER_BENCH_GRID (RUNS/ID), 20 orders of the images."""
    if not (name := os.environ.get("EXPLORER_BENCH_GRID")):
        print("  skipped: EXPLORER_BENCH_GRID names no exploration")
        return {}
    recorded = Recorded(Path(name))
    kinds = itertools.product(BLOCK_SIZES, CONFIDENCES, MARGINS)
    return {recorded.title: [recorded.row(*kind) for kind in kinds]}


class Recorded:
    """The validation rows of one method, with the values of every image."""

    def __init__(self, folder: Path) -> None:
        exploration = open_exploration(folder.name, folder.parent)
        method, self.objectives = exploration.spec.method, exploration.objectives
        self.space = explored_space(exploration.spec, build_trainable(exploration.spec))
        rows = measurements_of(measurements_store(folder).load())
        self.rows = [row for row in rows if row.method == method and row.split == "val"]
        values = values_by_row(samples_store(folder).load())
        self.num_samples = max(row.num_samples for row in self.rows)
        try:
            self.values = {self._key(row): values[self._key(row)] for row in self.rows}
        except KeyError as error:
            raise InputError(f"{folder}: expected the value of every image; {__doc__}") from error
        self.trial_ids = tuple(dict.fromkeys(row.trial_id for row in self.rows))
        self.settings = {row.setting_id: dict(row.conditioning) for row in self.rows}
        self.costs = {row.setting_id: dict(row.costs) for row in self.rows}
        self.losses = np.array([self._losses(one) for one in self.settings])
        self.ref_point = self.losses.max(axis=0)
        self.title = (
            f"{folder.name}: {len(self.settings)} settings, {self.num_samples} images, "
            f"{len(self.trial_ids)} models, {NUM_ORDERS} orders"
        )

    def _key(self, row: Measurement) -> tuple[str, str, str]:
        return row.trial_id, row.split, row.setting_id

    def _losses(self, one: str) -> list[float]:
        values = dict(self.costs[one])
        for name in self.values[self.trial_ids[0], "val", one]:
            seeds = [np.nanmean(self.values[t, "val", one][name]) for t in self.trial_ids]
            values[name] = float(np.mean(seeds))
        return [objective.to_loss(values[objective.name]) for objective in self.objectives]

    def race(self, race: Race) -> tuple[int, set[str]]:
        """Replay one race; returns the images looked at and the settings seen to the end."""
        order = np.random.default_rng((race.seed, 5)).permutation(len(self.settings))
        settings = list(self.settings.values())
        sampler = ListSampler([settings[index] for index in order])
        unit = Unit("replayed", "val", self.trial_ids, sampler, race=race)
        plan = Plan(
            [unit], batch_size=chunk_size([sampler], 2), window=2, recorded={}, recorded_values={}
        )
        rows = {self._key(row): row for row in self.rows}
        num_looks, finished = 0, set()

        def start(trial_id: str, split: str, setting: Any) -> Run:
            one = setting_id(setting)
            own = self.values[trial_id, split, one]

            def look(block: Any) -> dict[str, Any]:
                return {name: values[block] for name, values in own.items()}

            return Run(trial_id, split, setting, self.costs[one], look)

        while (chunk := plan.next_chunk()) is not None:
            evaluations = list(evaluate_chunk(chunk, self.num_samples, start))
            num_looks += sum(len(one.sample_indices) for one in evaluations)
            finished |= {setting_id(one.setting) for one in evaluations if one.is_complete}
            plan.complete(chunk, [rows[key] for key in chunk.keys], values_of(evaluations))
        return num_looks, finished

    def row(self, block_size: int, confidence: float, margin: float) -> dict[str, Any]:
        """Savings and losses of one kind of race over all orders."""
        full = hypervolume(self.losses, self.ref_point)
        total = len(self.settings) * self.num_samples * len(self.trial_ids)
        names = np.array(list(self.settings))
        saved, volumes, regrets = [], [], []
        for seed in range(NUM_ORDERS):
            race = Race(
                space=self.space,
                objectives=self.objectives,
                bounds=(),
                known_costs=frozenset(next(iter(self.costs.values()))),
                num_samples=self.num_samples,
                block_size=block_size,
                confidence=confidence,
                margin=margin,
                seed=seed,
            )
            num_looks, finished = self.race(race)
            kept = np.isin(names, sorted(finished))
            saved.append(1 - num_looks / total)
            volumes.append(hypervolume(self.losses[kept], self.ref_point) / full)
            regrets.append(self._regrets(kept))
        missed = np.concatenate(regrets)
        return {
            "block_size": block_size,
            "confidence": confidence,
            "margin": margin,
            "saved_min": round(min(saved), 3),
            "saved_mean": round(float(np.mean(saved)), 3),
            "hypervolume_min": round(min(volumes), 5),
            "largest_regret": round(float(missed.max(initial=0)), 5),
            "given_up_wrongly": int((missed > LIMIT).sum()),
        }

    def _regrets(self, kept: np.ndarray) -> np.ndarray:
        """How much better each setting given up is than the best kept one that costs no more."""
        front = Frontier.of(self.losses[kept], np.flatnonzero(kept))
        regrets = []
        for loss, *costs in self.losses[~kept]:
            cheaper = (front.losses[:, 1:] <= costs).all(axis=1)
            regrets.append(front.losses[cheaper, 0].min(initial=np.inf) - loss)
        return np.array(regrets)
