"""What an exploration of adaptation tells, pair by pair and amount by amount.

A setting is chosen on validation images of other pairs than the one that it is judged by: lambda of
one direction by the other. Shapes: i images of a test split.

Source: Zakazov, Shirokikh, Chernyavskiy, Belyaev, "Anatomy of Domain Shift Impact on U-Net Layers
in MRI Segmentation", section 4 and figures 2 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.measurements import Columns, setting_id
from explorer.points import Point
from explorer.queries import PointTable
from search_spaces.errors import InputError
from search_spaces.problem import Objective
from trainables.adaptation import domains_of

Floats = NDArray[np.float64]
Row = dict[str, Any]
FIXED_STRATEGIES = ("finetune-all", "finetune-first", "finetune-last")
SHOWN = ("dice", "surface_dice", "fine_tuned_blocks")


class AdaptationResults:
    """The measurements of an adaptation by pair, amount and method.

    Args:
        columns: the measurements, one array per column.
        samples: values per image of the test split, likewise.
        settled: what each trial was trained for, by its id.
        objective: by which settings are chosen.
        main: the exploration's own method.

    Raises:
        InputError: no training has a pair: it is no adaptation.
    """

    def __init__(
        self,
        columns: Columns,
        samples: Columns,
        settled: Mapping[str, Mapping[str, Any]],
        *,
        objective: Objective,
        main: str,
    ) -> None:
        self.columns, self.samples = columns, samples
        self.objective, self.main = objective, main
        pairs = {trial_id: str(own.get("pair", "")) for trial_id, own in settled.items()}
        self._row_pairs = _looked_up(columns["trial_id"], pairs)
        self._sample_pairs = _looked_up(samples["trial_id"], pairs)
        self.pairs = sorted(set(self._row_pairs.tolist()) - {""})
        if not self.pairs:
            raise InputError("expected an exploration of adaptation: its trainings have no pair")
        self._tables: dict[tuple[str, tuple[str, ...], str], PointTable] = {}
        self._judged: dict[tuple[str, str, int | None], Point | None] = {}

    @cached_property
    def methods(self) -> list[str]:
        """The exploration's own method, then the others in the order of recording."""
        names = dict.fromkeys(self.columns["method"].tolist())
        return [self.main, *(name for name in names if name != self.main)]

    @cached_property
    def amounts(self) -> list[int | None]:
        """Annotated images, ascending, 0 (all) last; None where the exploration names none."""
        amounts = self.columns.get("conditioning/amount")
        found = set() if amounts is None else set(amounts[np.isfinite(amounts)].astype(int))
        return sorted((int(x) for x in found), key=lambda x: x or math.inf) or [None]

    def table(self, method: str, pairs: Sequence[str], *, split: str = "val") -> PointTable | None:
        """The points of a method over some pairs; None where it has none."""
        key = (method, tuple(pairs), split)
        if key not in self._tables:
            rows = np.isin(self._row_pairs, pairs)
            some = {name: own[rows] for name, own in self.columns.items()}
            if not (some["method"][some["split"] == split] == method).any():
                return None
            self._tables[key] = PointTable.of(some, method=method, split=split)
        return self._tables[key]

    def points(
        self, method: str, pairs: Sequence[str], amount: int | None, *, split: str = "val"
    ) -> list[Point]:
        """A method's points at an amount; a method that needs no images has them at any."""
        table = self.table(method, pairs, split=split)
        if table is None:
            return []
        points = [table.point(index) for index in range(len(table))]
        return [p for p in points if p.conditioning.get("amount", amount) == amount]

    def others(self, pair: str) -> list[str]:
        """The pairs that choose for one: all of other targets, or itself where there is none."""
        target = domains_of(pair)[1]
        return [name for name in self.pairs if domains_of(name)[1] != target] or [pair]

    def judged(self, method: str, pair: str, amount: int | None) -> Point | None:
        """A method's point on the pair's own test images, chosen on validation of other pairs.

        Settings that were not measured on test, as refined ones are not, are passed over.
        """
        key = (method, pair, amount)
        if key not in self._judged:
            self._judged[key] = self._judge(method, pair, amount)
        return self._judged[key]

    def _judge(self, method: str, pair: str, amount: int | None) -> Point | None:
        name, loss = self.objective.name, self.objective.to_loss
        table = self.table(method, [pair], split="test")
        if table is None:
            return None
        points = [p for p in self.points(method, self.others(pair), amount) if name in p.metrics]
        points.sort(key=lambda point: loss(point.metrics[name]))
        found = (table.find(point.conditioning) for point in points)
        return next((one for one in found if one is not None), None)

    def by_image(self, point: Point, pair: str, metric: str) -> tuple[list[str], Floats]:
        """Ids and values (i,) of the pair's test images at a setting, means over seeds."""
        rows = (
            (self.samples["method"] == point.method)
            & (self.samples["setting_id"] == setting_id(dict(point.conditioning)))
            & (self._sample_pairs == pair)
        )
        values = self.samples[f"metric/{metric}"][rows]
        rows_seen = np.isfinite(values)
        ids, codes = np.unique(
            self.samples["sample_id"][rows][rows_seen].astype(str), return_inverse=True
        )
        totals = np.bincount(codes, weights=values[rows_seen], minlength=len(ids))
        means: Floats = totals / np.bincount(codes, minlength=len(ids))
        return ids.tolist(), means

    def seconds(self, point: Point) -> float:
        """Mean processor seconds (on a GPU: seconds) of one training of a point."""
        trials, first = np.unique(self.columns["trial_id"].astype(str), return_index=True)
        own = first[np.isin(trials, point.trial_ids)]
        return float(self.columns["cost/train_s"][own].mean())

    def strategies(self) -> list[Row]:
        """Every method on every pair's test images, at each amount, at the chosen setting.

        `metrics` are means over images and seeds, `seed_sd` their standard deviations over seeds.
        `against_best_fixed` is the mean difference of the first objective to the fixed strategy
        that is best on these very test images, and its standard error over images.
        """
        rows = []
        for pair in self.pairs:
            for amount in self.amounts:
                found = {m: self.judged(m, pair, amount) for m in self.methods}
                points = {m: point for m, point in found.items() if point is not None}
                rival = self._best_fixed(points)
                rows += [self._strategy(p, pair, amount, rival) for p in points.values()]
        return rows

    def _best_fixed(self, points: Mapping[str, Point]) -> Point | None:
        name, loss = self.objective.name, self.objective.to_loss
        fixed = [points[m] for m in FIXED_STRATEGIES if m in points]
        return min(fixed, key=lambda point: loss(point.metrics[name]), default=None)

    def _strategy(self, point: Point, pair: str, amount: int | None, rival: Point | None) -> Row:
        quality = self.objective.name
        ids, values = self.by_image(point, pair, quality)
        versus = None
        if rival is not None and rival is not point:
            other_ids, others = self.by_image(rival, pair, quality)
            if other_ids == ids and len(ids) > 1:
                gains = self.objective.to_loss(others) - self.objective.to_loss(values)
                error = float(gains.std(ddof=1) / math.sqrt(len(gains)))
                versus = {"method": rival.method, "gain": float(gains.mean()), "error": error}
        return {
            "pair": pair,
            "amount": amount,
            "method": point.method,
            "setting": _own_setting(point),
            "chosen_on": self.others(pair),
            "num_seeds": point.num_seeds,
            "num_images": len(ids),
            "metrics": {name: point.metrics[name] for name in SHOWN},
            "seed_sd": {n: point.seed_sd[n] for n in SHOWN if n in point.seed_sd},
            "train_s": self.seconds(point),
            "against_best_fixed": versus,
        }

    def qualities(self, metric: str) -> dict[tuple[int | None, str], Floats]:
        """Values of the test images of all pairs at the chosen settings, by amount and method."""
        found = {}
        for amount in self.amounts:
            for method in self.methods:
                judged = [(pair, self.judged(method, pair, amount)) for pair in self.pairs]
                parts = [self.by_image(p, pair, metric)[1] for pair, p in judged if p is not None]
                if parts:
                    found[amount, method] = np.concatenate(parts)
        return found

    def priced(self, names: Collection[str] = ("lambda",)) -> dict[tuple[int | None, str], Any]:
        """Points on validation over all pairs that have a price, ascending, by amount and method.

        Of several at one price (temperatures) the best remains.
        """
        found = {}
        name, loss = self.objective.name, self.objective.to_loss
        for amount in self.amounts:
            for method in self.methods:
                points = self.points(method, self.pairs, amount)
                best: dict[float, Point] = {}
                for point in points:
                    if not set(names) <= point.conditioning.keys() or name not in point.metrics:
                        continue
                    price = float(point.conditioning["lambda"])
                    rival = best.get(price)
                    if rival is None or loss(point.metrics[name]) < loss(rival.metrics[name]):
                        best[price] = point
                if best:
                    found[amount, method] = [best[price] for price in sorted(best)]
        return found

    def optima(self) -> list[Row]:
        """The best price of every amount on validation over all pairs."""
        name, loss = self.objective.name, self.objective.to_loss
        rows = []
        for (amount, method), points in self.priced().items():
            best = min(points, key=lambda point: loss(point.metrics[name]))
            rows.append(
                {
                    "amount": amount,
                    "method": method,
                    "setting": _own_setting(best),
                    "metrics": {shown: best.metrics[shown] for shown in SHOWN},
                    "seed_sd": {n: best.seed_sd[n] for n in SHOWN if n in best.seed_sd},
                    "num_prices": len(points),
                }
            )
        return rows

    def blocks(self) -> list[Row]:
        """How often every block is fine-tuned on test, at each amount's chosen settings."""
        rows = []
        for amount in self.amounts:
            judged = [self.judged(self.main, pair, amount) for pair in self.pairs]
            points = [point for point in judged if point is not None]
            prefix = "fine_tuned/"
            names = [n for n in (points[0].metrics if points else ()) if n.startswith(prefix)]
            rows += [
                {
                    "amount": amount,
                    "block": name.removeprefix(prefix),
                    "share": float(np.mean([point.metrics[name] for point in points])),
                }
                for name in names
            ]
        return rows

    def amortisation(self) -> list[Row]:
        """The amortised model against trainings at the same prices, on the test images.

        Pair by pair and price by price; the difference is the amortised model's minus the other's.
        """
        rows = []
        for (amount, method), points in self.priced().items():
            if method == self.main:
                continue
            for point in points:
                for pair in self.pairs:
                    rows += self._matched(point, pair, amount)
        return rows

    def _matched(self, point: Point, pair: str, amount: int | None) -> list[Row]:
        shared = {n: x for n, x in point.conditioning.items() if n in ("lambda", "amount")}
        tables = {m: self.table(m, [pair], split="test") for m in (self.main, point.method)}
        settings = {self.main: shared, point.method: point.conditioning}
        found = {m: t.find(settings[m]) for m, t in tables.items() if t is not None}
        own, other = found.get(self.main), found.get(point.method)
        if own is None or other is None:
            return []
        return [
            {
                "pair": pair,
                "amount": amount,
                "against": point.method,
                "setting": _own_setting(point),
                "num_seeds": other.num_seeds,
                "amortised": {name: own.metrics[name] for name in SHOWN},
                "trained": {name: other.metrics[name] for name in SHOWN},
                "difference": {name: own.metrics[name] - other.metrics[name] for name in SHOWN},
                "train_s": self.seconds(other),
                "amortised_train_s": self.seconds(own),
            }
        ]


def _own_setting(point: Point) -> dict[str, float | str]:
    return {name: value for name, value in point.conditioning.items() if name != "amount"}


def _looked_up(trial_ids: Any, pairs: Mapping[str, str]) -> NDArray[np.str_]:
    names, codes = np.unique(trial_ids.astype(str), return_inverse=True)
    found: NDArray[np.str_] = np.array([pairs.get(name, "") for name in names])[codes]
    return found
