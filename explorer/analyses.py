"""What `explorer analyze` answers: a table and a figure of a finished exploration, by name."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from explorer.adaptation_figures import against_blocks, against_price, in_words, on_network, violins
from explorer.adaptations import AdaptationResults, Row
from explorer.generalization_figures import (
    against_parameters,
    along_lines,
    at_test_time,
    bars,
    neighbours,
)
from explorer.generalizations import EVERY, GeneralizationResults
from explorer.measurements import Columns
from explorer.models import build_trainable, domains_of, method_of
from explorer.specs import ExplorationSpec
from search_spaces.errors import InputError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import Config
from trainables.adaptation import Adaptation
from trainables.base import Arrays
from trainables.generalization import TEST_PART, domain_features, readings

MAX_SHOWN = 500  # images of a domain, in two dimensions
NUM_ERRORS = 1.0  # standard errors within which a method is as good as another


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
class _Named:
    """An analysis and what it tells, in a line."""

    summary: str
    task: str
    analyse: Callable[[Explored], Analysis]


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
        module: the frozen module of a trial, by its id.
        images: the splits, read from the data set.
    """

    exploration_id: str
    spec: ExplorationSpec
    objectives: tuple[Objective, ...]
    columns: Columns
    samples: Columns
    settled: Mapping[str, Config]
    module: Callable[[str], Any]
    images: Callable[[], Mapping[str, Arrays]]


def analyses_of(spec: ExplorationSpec) -> dict[str, str]:
    """The analyses that there are for a spec's task, and what each tells; none for some."""
    task = method_of(spec, spec.method).task
    return {name: one.summary for name, one in ANALYSES.items() if one.task == task}


def analyse(explored: Explored, name: str) -> Analysis:
    """Carry an analysis out.

    Raises:
        InputError: there is none of that name for its task, or not enough was measured.
    """
    known = analyses_of(explored.spec)
    if not known:
        raise InputError(f"{explored.exploration_id}: there is no analysis for its task yet")
    if name not in known:
        raise unknown_name(f"analysis of {explored.exploration_id}", name, known)
    if not len(explored.samples.get("sample_id", ())):
        raise InputError(
            f"{explored.exploration_id}: nothing was measured on test yet; let it finish, or "
            f"resume it"
        )
    return ANALYSES[name].analyse(explored)


def _results(explored: Explored) -> AdaptationResults:
    return AdaptationResults(
        explored.columns,
        explored.samples,
        explored.settled,
        objective=explored.objectives[0],
        main=explored.spec.method,
    )


def _strategies(explored: Explored) -> Analysis:
    results = _results(explored)
    rows, quality = results.strategies(), results.objective.name
    spec = explored.spec
    needs_none = {m for m in results.methods if "amount" not in method_of(spec, m).places}
    values = results.qualities(quality)
    figure = violins(values, metric=quality, main=results.main, needs_none=needs_none)
    return Analysis(rows, [*_verdicts(rows, quality), _costs(rows)], figure)


def _verdicts(rows: Sequence[Row], quality: str) -> list[str]:
    """How often each policy keeps up with the best fixed strategy, which is known on test alone."""
    notes = []
    for method in dict.fromkeys(row["method"] for row in rows):
        versus = [
            row["against_best_fixed"]
            for row in rows
            if row["method"] == method and row["against_best_fixed"] is not None
        ]
        if versus and method.startswith("spottunet"):
            kept = sum(one["gain"] >= -NUM_ERRORS * one["error"] for one in versus)
            mean = 100 * float(np.mean([one["gain"] for one in versus]))
            notes.append(
                f"{method} is within one standard error of the best fixed strategy, or better, in "
                f"{kept} of {len(versus)} cases; {quality} {mean:+.2f} points on average"
            )
    return notes


def _costs(rows: Sequence[Row]) -> str:
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(row["method"], []).append(row["train_s"])
    told = ", ".join(f"{method} {np.mean(own):.0f}" for method, own in seconds.items())
    return f"seconds of one training: {told}"


def _price(explored: Explored) -> Analysis:
    results = _results(explored)
    rows, quality = results.optima(), results.objective.name
    notes = [
        f"{row['method']} with {in_words(row['amount'])}: best λ {row['setting']['lambda']:g} of "
        f"{row['num_prices']}, {row['metrics']['fine_tuned_blocks']:.1f} blocks fine-tuned"
        for row in rows
    ]
    figure = against_price(results.priced(), metric=quality, main=results.main)
    return Analysis(rows, notes, figure)


def _blocks(explored: Explored) -> Analysis:
    results = _results(explored)
    rows = results.blocks()
    if not rows:
        raise InputError(f"{explored.exploration_id}: {results.main} has no policy")
    notes = []
    for amount in results.amounts:
        own = [row for row in rows if row["amount"] == amount]
        own.sort(key=lambda row: -row["share"])
        told = ", ".join(f"{row['block']} {100 * row['share']:.0f} %" for row in own[:5])
        notes.append(f"with {in_words(amount)} most often fine-tuned: {told}")
    trainable = build_trainable(explored.spec)
    assert isinstance(trainable, Adaptation)
    return Analysis(rows, notes, on_network(rows, trainable.skeleton))


def _amortisation(explored: Explored) -> Analysis:
    results = _results(explored)
    rows, quality = results.amortisation(), results.objective.name
    if not rows:
        raise InputError(
            f"{explored.exploration_id}: no λ was measured by {results.main} and by a training of "
            "its own; name those of the grid in explore.settings"
        )
    figure = against_blocks(results.priced(), metric=quality, main=results.main)
    return Analysis(rows, list(_matched_notes(rows)), figure)


def _matched_notes(rows: Sequence[Row]) -> Iterator[str]:
    for key in dict.fromkeys((row["against"], row["amount"]) for row in rows):
        own = [row for row in rows if (row["against"], row["amount"]) == key]
        told = []
        for name in ("dice", "surface_dice"):
            points = 100 * np.array([row["difference"][name] for row in own])
            told.append(
                f"{name} {points.mean():+.2f} points (mean size {np.abs(points).mean():.2f})"
            )
        blocks = np.array([row["difference"]["fine_tuned_blocks"] for row in own])
        pairs = {row["pair"] for row in own}
        trained = sum(row["train_s"] for row in own) / len(pairs)
        amortised = sum({r["pair"]: r["amortised_train_s"] for r in own}.values()) / len(pairs)
        yield (
            f"one training against {len(own) // len(pairs)} of {key[0]} at the same λ, "
            f"{in_words(key[1])}: {', '.join(told)}; blocks {blocks.mean():+.1f}; "
            f"{trained / amortised:.1f} times cheaper"
        )


def _generalization(explored: Explored) -> GeneralizationResults:
    quality = build_trainable(explored.spec).problem.objectives[0]
    values = explored.samples[f"metric/{quality.name}"]
    trials = explored.samples["trial_id"][np.isfinite(values)]
    ids = explored.samples["sample_id"][np.isfinite(values)]
    num_judged = {str(t): len(np.unique(ids[trials == t])) for t in np.unique(trials)}
    return GeneralizationResults(
        explored.columns,
        explored.settled,
        num_judged=num_judged,
        objective=quality,
        main=explored.spec.method,
        domains=domains_of(explored.spec),
    )


def _domains(explored: Explored) -> Analysis:
    results = _generalization(explored)
    rows, quality = results.domains_table(), results.objective
    by = "held_out" if results.holds_out else "domain"
    notes = []
    for row in rows:
        if row[by] == EVERY and row["gain"] is not None:
            error = row["gain_error"]
            spread = "" if error is None else f" ± {error:.4f} over seeds"
            notes.append(
                f"{row['method']} against erm in {quality.name}: {row['gain']:+.4f}{spread} "
                f"(positive: better), mean over {len(results.judged)} domains"
            )
    notes.append(
        "settings are chosen on validation images of the domains that were trained on; rows are "
        "means over seeds on test images"
    )
    figure = bars(rows, metric=quality.name, main=results.main, by=by)
    return Analysis(rows, notes, figure)


def _training_parameters(explored: Explored) -> Analysis:
    results = _generalization(explored)
    quality, found = results.objective.name, results.parameters_table()
    if not any(row["setting"] for row in found):
        raise InputError(
            f"{explored.exploration_id}: every method was trained for one value of everything; "
            f"name several in train.grid, such as external: [none, layer2]"
        )
    base = next((row["parameters"] for row in found if row["method"] == "erm"), None)
    shown = ("error", "gain", "gain_error", "parameters", "macs", "train_s")
    rows: list[Row] = []
    for row in found:
        own: Row = {name: row[name] for name in ("method", "setting", "validation", quality)}
        own |= {name: row[name] for name in shown}
        if base is not None:
            own["added_parameters"] = row["parameters"] - base
        rows.append(own)
    notes = ["validation is of the domains that were trained on; gain is against erm, over seeds"]
    figure = against_parameters(rows, metric=quality, main=results.main)
    return Analysis(rows, notes, figure)


def _test_time(explored: Explored) -> Analysis:
    results = _generalization(explored)
    quality = results.objective.name
    shown = ("macs", "parameters", "gradient_steps", "latency_ms", "train_s")
    every = [row for row in results.domains_table() if EVERY in row.values()]
    base = next((row for row in every if row["method"] == "erm"), None)
    rows = []
    for row in every:
        own: Row = {"method": row["method"], quality: row[quality], "error": row["error"]}
        own |= {name: row[name] for name in shown}
        if base is not None:
            own["added_parameters"] = row["parameters"] - base["parameters"]
            own["times_erm"] = row["latency_ms"] / base["latency_ms"]
        rows.append(own)
    notes = [
        "latency_ms is processor time per image in the batches of an evaluation",
        "tent starts from what erm has learned, whose train_s is not told again",
    ]
    return Analysis(rows, notes, at_test_time(rows, metric=quality, main=results.main))


def _interpolation(explored: Explored) -> Analysis:
    results = _generalization(explored)
    rows, quality = results.interpolation(), results.objective.name
    if not rows:
        raise InputError(f"{explored.exploration_id}: {results.main} has no embedding to move")
    by = "held_out" if results.holds_out else "domain"
    read = {
        row[by]: row[quality] for row in results.domains_table() if row["method"] == results.main
    }
    notes = []
    for domain in results.judged:
        best = max((row for row in rows if row[by] == domain), key=lambda row: float(row["gain"]))
        error = best["gain_error"]
        spread = "" if error is None else f" ± {error:.4f}"
        notes.append(
            f"{domain}: best on test {best['from']} to {best['to']}, t = {best['t']:g}, "
            f"{best['gain']:+.4f}{spread} against the embedding that is read"
        )
    figure = along_lines(rows, metric=quality, by=by, read=read)
    return Analysis(rows, notes, figure)


def _features(explored: Explored) -> Analysis:
    """Domain features of one model for each domain held out, of the first seed.

    Of images that no model was trained on: a part of every domain.
    """
    results, test = _generalization(explored), explored.images()["test"]
    unseen = _some_unseen(test)
    places, names, rows, notes = {}, {}, [], []
    for domain in results.judged if results.holds_out else results.judged[:1]:
        chosen = dict(results.chosen(results.main, domain))
        trial_id = next(
            trial
            for trial, settled in explored.settled.items()
            if trial.startswith(f"{results.main}-")
            and (not results.holds_out or settled["held_out"] == domain)
            and chosen.items() <= settled.items()
        )
        module = explored.module(trial_id)
        features = domain_features(module, unseen.images)
        held_out = domain if results.holds_out else "nothing"
        places[held_out] = _in_two_dimensions(features)
        names[held_out] = np.asarray(unseen.domains)
        row = {"held_out": held_out, "trial_id": trial_id, **_purity(features, names[held_out])}
        if results.holds_out:
            own, note = _read_on_lines(module, test, domain, results)
            row["readings"] = own
            notes.append(note)
        rows.append(row)
    notes = [
        *notes,
        "a domain's value is the share of its images whose five nearest neighbours, among the "
        "features themselves, are of it, on average",
    ]
    return Analysis(rows, notes, neighbours(places, names))


def _read_on_lines(
    module: Any, test: Arrays, domain: str, results: GeneralizationResults
) -> tuple[dict[str, Row], str]:
    """Where images of a domain are read on every line between sources, and the nearest in words."""
    own = test.select(np.flatnonzero(np.asarray(test.domains) == domain))
    rows = {}
    for line, read in readings(module, own.images).items():
        low, median, high = np.quantile(read.shares, (0.1, 0.5, 0.9)).tolist()
        row: Row = {**results.ends(line, domain), "low": low, "median": median, "high": high}
        rows[line] = {**row, "distance": read.distance}
    near = min(rows.values(), key=lambda row: float(row["distance"]))
    note = (
        f"{domain} is read at {near['median']:.2f} of the way {near['from']} to {near['to']}, "
        f"eight tenths of its images from {near['low']:.2f} to {near['high']:.2f}, "
        f"{near['distance']:.2f} of that way beside it"
    )
    return rows, note


def _some_unseen(test: Arrays) -> Arrays:
    """Images of each domain that are in the split's own test part, at most a few hundred."""
    rows = np.flatnonzero(np.asarray(test.folds) == TEST_PART)
    names = np.asarray(test.domains)[rows]
    kept = [rows[names == name][:MAX_SHOWN] for name in np.unique(names)]
    return test.select(np.sort(np.concatenate(kept)))


def _in_two_dimensions(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """t-SNE; van der Maaten, Hinton (2008)."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    places: NDArray[np.float64] = TSNE(
        perplexity=perplexity, init="pca", random_state=0
    ).fit_transform(features)
    return places


def _purity(features: NDArray[np.float64], names: NDArray[Any]) -> dict[str, float]:
    """Share of the five nearest neighbours of each domain's images that are of that domain."""
    from scipy.spatial import KDTree

    num = min(6, len(features))
    _, near = KDTree(features).query(features, k=num)
    shares = (names[near[:, 1:]] == names[:, None]).mean(axis=1)
    return {str(name): float(shares[names == name].mean()) for name in np.unique(names)}


ANALYSES: dict[str, _Named] = {
    "domains": _Named(
        "every method with each domain held out, over seeds; bars", "generalization", _domains
    ),
    "parameters": _Named(
        "every value of the training parameters that a grid names, against its cost",
        "generalization",
        _training_parameters,
    ),
    "cost": _Named("what a prediction costs each method", "generalization", _test_time),
    "interpolation": _Named(
        "quality along the lines between embeddings of domains", "generalization", _interpolation
    ),
    "features": _Named(
        "domain features in two dimensions, with the domain held out", "generalization", _features
    ),
    "strategies": _Named(
        "every method at every amount, settings chosen on other pairs; violins",
        "adaptation",
        _strategies,
    ),
    "lambda": _Named(
        "quality and fine-tuned blocks against λ, with the best", "adaptation", _price
    ),
    "blocks": _Named("how often each block of the U-Net is fine-tuned", "adaptation", _blocks),
    "amortisation": _Named(
        "one training against one for each λ, at the same λ", "adaptation", _amortisation
    ),
}
