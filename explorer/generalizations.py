"""What an exploration of generalization tells, domain by domain that was held out.

An embedding is on its `own` place where the encoder reads it. Training parameters, such as which
layers are external, are chosen on validation images of the source domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.measurements import Columns
from search_spaces.errors import InputError
from search_spaces.generalization import GROUP, OWN, ends_of
from search_spaces.problem import Objective
from trainables.generalization import NO_DOMAIN

Floats = NDArray[np.float64]
Row = dict[str, Any]
Setting = tuple[tuple[str, float | str], ...]
EVERY = "mean"  # of the domains held out
CONDITIONINGS = ("line", "t")
BY_GROUP = " by group"  # behind a method whose embeddings are averaged over a domain's images


class GeneralizationResults:
    """The measurements of a generalization by domain held out and method.

    Args:
        columns: the measurements, one array per column.
        num_judged: test images that each trial is judged by, by its id.
        settled: what each trial was trained for, by its id.
        objective: of the front, by which settings are chosen.
        main: the exploration's own method.
        domains: that take part, in their order.
    """

    def __init__(
        self,
        columns: Columns,
        settled: Mapping[str, Mapping[str, Any]],
        *,
        num_judged: Mapping[str, int],
        objective: Objective,
        main: str,
        domains: Sequence[str],
    ) -> None:
        self.columns, self.objective, self.main = columns, objective, main
        self.num_judged = num_judged
        self.domains = tuple(domains)
        names = {trial: str(own.get("held_out", NO_DOMAIN)) for trial, own in settled.items()}
        self._held_out = np.array([names.get(str(t), NO_DOMAIN) for t in columns["trial_id"]])

    @cached_property
    def methods(self) -> list[str]:
        """The exploration's own, with embeddings read by image and by group, then the others."""
        names = dict.fromkeys(self.columns["method"].tolist())
        by_group = f"{self.main}{BY_GROUP}"
        own = [self.main, *([by_group] if self._rows(by_group, "val") else [])]
        return [*own, *(name for name in names if name != self.main)]

    @cached_property
    def judged(self) -> list[str]:
        """The domains that models are judged by, in their order: held out, or each in turn."""
        found = set(self._held_out.tolist())
        return [n for n in self.domains if n in found] if found != {NO_DOMAIN} else [*self.domains]

    @property
    def holds_out(self) -> bool:
        """Whether any domain is held out."""
        return set(self._held_out.tolist()) != {NO_DOMAIN}

    def domains_table(self) -> list[Row]:
        """A row for each method and domain, and for their mean, on test images."""
        rows = []
        for method in self.methods:
            own = [self._row(method, domain) for domain in self.judged]
            rows += [*own, self._mean_row(own)]
        return [{**row, **self._gain(row, rows)} for row in rows]

    def parameters_table(self) -> list[Row]:
        """A row for each method and its training parameters, on average over domains.

        `validation` is of the source domains' images, all else of test images.
        """
        rows = []
        for method in self.methods:
            settings = dict.fromkeys(self._training(row) for row in self._rows(method, "test"))
            for setting in settings:
                own = [self._row(method, domain, setting) for domain in self.judged]
                rows.append({**self._mean_row(own), "validation": self._on_val(method, setting)})
        return [{**row, **self._gain(row, rows)} for row in rows]

    def _on_val(self, method: str, setting: Setting) -> float:
        own = [row for row in self._rows(method, "val") if self._training(row) == setting]
        return float(np.mean(self.columns[f"metric/{self.objective.name}"][own]))

    def chosen(self, method: str, domain: str) -> Setting:
        """A method's training parameters that are best on validation, its embedding read.

        Only models with the domain held out are asked: those of others saw its validation images.
        """
        own = (domain, NO_DOMAIN)
        rows = [row for row in self._rows(method, "val") if self._held_out[row] in own]
        if not rows:
            raise InputError(f"{method} was not measured with {domain} held out")
        by_setting: dict[Setting, list[float]] = {}
        for row in rows:
            value = float(self.columns[f"metric/{self.objective.name}"][row])
            by_setting.setdefault(self._training(row), []).append(value)
        losses = {
            s: float(np.mean(self.objective.to_loss(np.array(v)))) for s, v in by_setting.items()
        }
        return min(losses, key=losses.__getitem__)

    def _rows(self, method: str, split: str) -> list[int]:
        """Rows of a method where the embedding is read, by image or by group."""
        name, is_grouped = method.removesuffix(BY_GROUP), method.endswith(BY_GROUP)
        is_own = (self.columns["method"] == name) & (self.columns["split"] == split)
        found = []
        seen = set()
        for row in np.flatnonzero(is_own).tolist():
            line, t = self._place(row)
            key = (self.columns["trial_id"][row], self._training(row))
            is_read = line is None or (line.startswith(OWN) and t == 0)
            if is_grouped:
                is_read = line is not None and ends_of(line) == (OWN, GROUP) and t == 1
            if is_read and key not in seen:
                seen.add(key)  # of the lines that begin there, one
                found.append(row)
        return found

    def _place(self, row: int) -> tuple[str | None, float]:
        lines = self.columns.get("conditioning/line")
        line = None if lines is None else lines[row]
        if line is None or line != line:
            return None, 0.0
        return str(line), float(self.columns["conditioning/t"][row])

    def _training(self, row: int) -> Setting:
        """The training parameters of a row that are no place of its embedding."""
        found: list[tuple[str, float | str]] = []
        for column, values in self.columns.items():
            family, _, name = column.partition("/")
            value = values[row] if family == "conditioning" and name not in CONDITIONINGS else None
            if value is not None and value == value:
                found.append((name, value if isinstance(value, str) else float(value)))
        return tuple(found)

    def _metric(self, domain: str) -> str:
        """The column of the objective in a domain."""
        return f"metric/{self.objective.name}/{domain}"

    def _of_domain(self, method: str, domain: str, chosen: Setting) -> list[int]:
        return [
            row
            for row in self._rows(method, "test")
            if self._training(row) == chosen and self._held_out[row] in (domain, NO_DOMAIN)
        ]

    def _row(self, method: str, domain: str, setting: Setting | None = None) -> Row:
        """Of the training parameters that are chosen on validation, or of others."""
        chosen = self.chosen(method, domain) if setting is None else setting
        rows = self._of_domain(method, domain, chosen)
        if not rows:
            raise InputError(f"{method} was not measured on test with {domain} held out")
        values = {
            int(self.columns["seed"][row]): float(self.columns[self._metric(domain)][row])
            for row in rows
        }
        first = rows[0]
        num_images = self.num_judged[str(self.columns["trial_id"][first])]
        spent = float(np.median([self.columns["evaluation_s"][row] for row in rows]))
        known = {
            n: float(self.columns[f"cost/{n}"][first])
            for n in ("macs", "parameters", "gradient_steps")
        }
        return {
            "held_out" if self.holds_out else "domain": domain,
            "method": method,
            "setting": dict(chosen),
            "num_images": num_images,
            self.objective.name: float(np.mean(list(values.values()))),
            "error": _error(list(values.values())),
            "seeds": dict(sorted(values.items())),
            "metrics": self._parts(rows),
            "train_s": float(np.mean([self.columns["cost/train_s"][row] for row in rows])),
            "latency_ms": 1e3 * spent / num_images,
            **known,
        }

    def _parts(self, rows: Sequence[int]) -> dict[str, float]:
        """Means of what is measured of each class or finding, and of the domain encoder."""
        found = {}
        for column, values in self.columns.items():
            family, _, name = column.partition("/")
            is_part = "/" in name and name.partition("/")[2] not in self.domains
            if family == "metric" and (is_part or name == "domain_accuracy"):
                own = np.array([values[row] for row in rows], dtype=np.float64)
                if np.isfinite(own).any():
                    found[name] = float(np.nanmean(own))
        return found

    def _mean_row(self, own: Sequence[Row]) -> Row:
        name = self.objective.name
        key = "held_out" if self.holds_out else "domain"
        seeds = sorted(set.intersection(*(set(row["seeds"]) for row in own)))
        values = {s: float(np.mean([row["seeds"][s] for row in own])) for s in seeds}
        means = {n: float(np.mean([row[n] for row in own])) for n in own[0] if n in _AVERAGED}
        return {
            **own[0],
            key: EVERY,
            "num_images": sum(r["num_images"] for r in (own if self.holds_out else own[:1])),
            **means,
            "metrics": {
                n: float(np.mean([row["metrics"][n] for row in own]))
                for n in own[0]["metrics"]
                if all(n in row["metrics"] for row in own)
            },
            name: float(np.mean([row[name] for row in own])),
            "error": _error(list(values.values())),
            "seeds": values,
        }

    def _gain(self, row: Row, rows: Sequence[Row]) -> Row:
        """How much better than `erm` with the same domain held out, seed by seed."""
        key = "held_out" if self.holds_out else "domain"
        base = [r for r in rows if r["method"] == "erm" and r[key] == row[key]]
        if not base or row["method"] == "erm":
            return {"gain": None, "gain_error": None}
        both = sorted(set(row["seeds"]) & set(base[0]["seeds"]))
        sign = -1.0 if self.objective.direction == "minimize" else 1.0
        gains = [sign * (row["seeds"][s] - base[0]["seeds"][s]) for s in both]
        return {"gain": float(np.mean(gains)), "gain_error": _error(gains)}

    def interpolation(self) -> list[Row]:
        """The main method's objective on test along every line between embeddings.

        `gain` is how much better than where the embedding is read, seed by seed; its error is
        that over seeds.
        """
        rows = []
        for domain in self.judged:
            chosen = self.chosen(self.main, domain)
            read = {
                int(self.columns["seed"][r]): r for r in self._of_domain(self.main, domain, chosen)
            }
            for (line, t), own in self._along(domain, chosen).items():
                column = self.columns[self._metric(domain)]
                sign = -1.0 if self.objective.direction == "minimize" else 1.0
                gains = [sign * float(column[r] - column[read[s]]) for s, r in own.items()]
                rows.append(
                    {
                        "held_out" if self.holds_out else "domain": domain,
                        "line": line,
                        **self.ends(line, domain),
                        "t": t,
                        self.objective.name: float(np.mean([column[r] for r in own.values()])),
                        "gain": float(np.mean(gains)),
                        "gain_error": _error(gains),
                    }
                )
        return rows

    def _along(self, domain: str, chosen: Setting) -> dict[tuple[str, float], dict[int, int]]:
        """Row of each seed by line and share of its length."""
        is_own = (self.columns["method"] == self.main) & (self.columns["split"] == "test")
        found: dict[tuple[str, float], dict[int, int]] = {}
        for row in np.flatnonzero(is_own).tolist():
            line, t = self._place(row)
            is_here = self._held_out[row] in (domain, NO_DOMAIN)
            if line is not None and is_here and self._training(row) == chosen:
                found.setdefault((line, t), {})[int(self.columns["seed"][row])] = row
        return dict(sorted(found.items()))

    def ends(self, line: str, domain: str) -> Row:
        """The two domains that a line joins where this one is held out; `own` for what is read."""
        sources = [n for n in self.domains if n != domain or not self.holds_out]
        start, end = (sources[k] if isinstance(k, int) else k for k in ends_of(line))
        return {"from": start, "to": end}


_AVERAGED = frozenset({"train_s", "latency_ms", "macs", "parameters"})


def _error(values: Sequence[float]) -> float | None:
    """Standard error over seeds; None of fewer than two."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
