"""Analyses of a generalization: every domain held out, what it costs, and where domains lie."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.explored import Analysis, Explored, NamedAnalysis, Row
from explorer.generalization_figures import (
    against_parameters,
    along_lines,
    at_test_time,
    bars,
    neighbours,
)
from explorer.generalizations import EVERY, GeneralizationResults
from explorer.models import build_trainable, domains_of
from search_spaces.errors import InputError
from trainables.base import Arrays
from trainables.generalization import TEST_PART, domain_features, readings

MAX_SHOWN = 500  # images of a domain, in two dimensions


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
        module = explored.model(trial_id)[1]
        features = domain_features(module, np.asarray(unseen.images))
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
    for line, read in readings(module, np.asarray(own.images)).items():
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


ANALYSES: dict[str, NamedAnalysis] = {
    "domains": NamedAnalysis("every method with each domain held out, over seeds; bars", _domains),
    "parameters": NamedAnalysis(
        "every value of the training parameters that a grid names, against its cost",
        _training_parameters,
    ),
    "cost": NamedAnalysis("what a prediction costs each method", _test_time),
    "interpolation": NamedAnalysis(
        "quality along the lines between embeddings of domains", _interpolation
    ),
    "features": NamedAnalysis(
        "domain features in two dimensions, with the domain held out", _features
    ),
}
