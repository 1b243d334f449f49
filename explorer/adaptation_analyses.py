"""Analyses of an adaptation: what each strategy reaches, which λ and which blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from explorer.adaptation_figures import against_blocks, against_price, in_words, on_network, violins
from explorer.adaptations import AdaptationResults, Row
from explorer.explored import Analysis, Explored, NamedAnalysis
from explorer.models import build_trainable, method_of
from search_spaces.errors import InputError
from trainables.adaptation import Adaptation

NUM_ERRORS = 1.0  # standard errors within which a method is as good as another


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


ANALYSES: dict[str, NamedAnalysis] = {
    "strategies": NamedAnalysis(
        "every method at every amount, settings chosen on other pairs; violins", _strategies
    ),
    "lambda": NamedAnalysis("quality and fine-tuned blocks against λ, with the best", _price),
    "blocks": NamedAnalysis("how often each block of the U-Net is fine-tuned", _blocks),
    "amortisation": NamedAnalysis(
        "one training against one for each λ, at the same λ", _amortisation
    ),
}
