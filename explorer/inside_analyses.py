"""Analyses of what a hypernetwork predicts: weights, features, and how they carry over.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging"; the figure of each analysis stands in its docstring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.explored import Analysis, Explored, NamedAnalysis, Row
from explorer.rescaling_figures import (
    kernel_maps,
    lines_with_spread,
    picture_grid,
    spreads_by_layer,
)
from explorer.rescalings import (
    best_point,
    choices_of,
    diagonal,
    evenly,
    factor_names,
    grid_method,
    middle_of_prior,
    one_way,
    scale_space_of,
    spread,
    told,
    trials_of_method,
    without_one_factor,
)
from explorer.specs import ExplorationSpec
from search_spaces.space import Config
from trainables.base import Arrays
from trainables.inspection import (
    coefficients_of_variation,
    feature_maps,
    predicted_weights,
    transferred,
)
from trainables.train_loop import evaluate_setting

NUM_STEPS = 11  # settings at which weights are looked at
NUM_KERNELS, NUM_LAYERS = 6, 6  # that are shown
NUM_COLUMNS = 6  # settings of which features are shown
TRANSFERRED_TO = tuple(round(0.05 * step, 2) for step in range(21))


def _prior_width(explored: Explored) -> Analysis:
    """Fig. 8: train and test quality in the middle of priors of several widths."""
    explored = one_way(explored, vary=("prior_width",))
    main, quality = explored.spec.method, explored.objectives[0].name
    middle = middle_of_prior(explored) | choices_of(explored)
    widths = explored.spec.train.grid["prior_width"]
    data, rows = explored.images(), list[Row]()
    for width in widths:
        trials = {
            t: s for t, s in trials_of_method(explored, main).items() if s["prior_width"] == width
        }
        if not trials:
            continue  # none of its trainings ended well
        rows.append(
            {"method": main, "prior_width": float(width)}
            | _at_middle(explored, list(trials), middle, data, quality)
        )
    rival = grid_method(explored)
    if rival is not None:
        trials = {
            t: s
            for t, s in trials_of_method(explored, rival).items()
            if middle.items() <= s.items()
        }
        if trials:
            rows.append(
                {"method": rival, "prior_width": None}
                | _at_middle(explored, list(trials), middle, data, quality)
            )
    notes = [
        f"{row['method']}{_of_width(row)}: test {100 * row['test']:.2f}, train "
        f"{100 * row['train']:.2f}"
        for row in rows
    ]
    notes.append(f"at {told(middle)}, whatever the width; means over seeds")
    lines = [
        (main, split, [(row["prior_width"], row[split], row[f"{split}_sd"]) for row in own])
        for split in ("train", "test")
        for own in [[row for row in rows if row["method"] == main]]
    ]
    levels = [
        (row["method"], split, row[split])
        for row in rows
        if row["prior_width"] is None
        for split in ("train", "test")
    ]
    figure = lines_with_spread(
        lines,
        levels,
        x_label="Half the width of the prior",
        metric=quality,
        main=main,
        is_even=True,
    )
    return Analysis(rows, notes, figure)


def _without_widths(spec: ExplorationSpec) -> str:
    if len(spec.train.grid.get("prior_width", ())) > 1:
        return ""
    return "several widths of the prior, such as train.grid: {prior_width: [0, 0.02, 0.05]}"


def _of_width(row: Row) -> str:
    return "" if row["prior_width"] is None else f" of half width {row['prior_width']:g}"


def _at_middle(
    explored: Explored,
    trial_ids: Sequence[str],
    setting: Config,
    data: Mapping[str, Arrays],
    quality: str,
) -> Row:
    """Mean quality over seeds and its spread, of the training images and of the test images."""
    row: Row = {}
    for split in ("train", "test"):
        means = []
        for trial_id in trial_ids:
            trainable, module = explored.model(trial_id)
            names = trainable.problem.space.conditioning.names
            own = {name: x for name, x in setting.items() if name in names}
            values = evaluate_setting(trainable, module, data[split], own)[quality]
            means.append(float(np.nanmean(values)))
        row[split], row[f"{split}_sd"] = float(np.mean(means)), spread(np.array(means))
    return row


def _transfer(explored: Explored) -> Analysis:
    """Fig. 9: weights of one setting, run at others; of the hypernetwork, and of a Fixed one."""
    explored = one_way(explored)
    main, quality = explored.spec.method, explored.objectives[0].name
    (name,) = factor_names(explored.spec)
    rival = grid_method(explored)
    home = middle_of_prior(explored)[name]
    if rival is not None:
        home = max(float(own[name]) for own in trials_of_method(explored, rival).values())
    choices = choices_of(explored)
    run_at: list[Config] = [{name: value, **choices} for value in TRANSFERRED_TO]
    test, rows = explored.images()["test"], list[Row]()
    for method in [main] + ([rival] if rival is not None else []):
        settled = trials_of_method(explored, method)
        if method == rival:
            settled = {t: own for t, own in settled.items() if own[name] == home}
        found = []
        for trial_id in settled:
            trainable, module = scale_space_of(explored, trial_id)
            values = transferred(
                trainable, module, weights_at={name: home, **choices}, run_at=run_at, data=test
            )
            found.append([float(np.nanmean(own[quality])) for own in values])
        for setting, own in zip(run_at, np.array(found).T, strict=True):
            rows.append(
                {
                    "method": method,
                    "weights_at": home,
                    name: setting[name],
                    quality: float(own.mean()),
                    "sd": spread(own),
                }
            )
    notes = [f"weights predicted or trained at {name} = {home:g}, test images"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {row[name]: row[quality] for row in rows if row["method"] == method}
        best = own[min(own, key=lambda x: abs(x - home))]
        usable = [x for x, value in own.items() if value >= best - 0.05]
        notes.append(
            f"{method}: {best:.3f} where the weights belong; within 5 points of that at {name} = "
            + ", ".join(f"{x:g}" for x in usable)
        )
    lines = [
        (m, "", [(row[name], row[quality], row["sd"]) for row in rows if row["method"] == m])
        for m in dict.fromkeys(row["method"] for row in rows)
    ]
    figure = lines_with_spread(
        lines, [], x_label=f"{name} at which the weights run", metric=quality, main=main
    )
    return Analysis(rows, notes, figure)


def _variation(explored: Explored) -> Analysis:
    """Fig. 14: how much each predicted number varies over the settings, layer by layer."""
    explored = one_way(explored)
    settings = diagonal(explored, NUM_STEPS)
    rows: list[Row] = []
    spreads: dict[str, list[NDArray[np.float64]]] = {}
    for trial_id in best_point(explored).trial_ids:
        trainable, module = scale_space_of(explored, trial_id)
        for name, weights in predicted_weights(trainable, module, settings).items():
            layer = name.rpartition(".")[0]
            spreads.setdefault(layer, []).append(coefficients_of_variation(weights))
    joined = {layer: np.concatenate(own) for layer, own in spreads.items()}
    joined = {layer: own[np.isfinite(own)] for layer, own in joined.items()}
    joined = {layer: own for layer, own in joined.items() if len(own)}
    for layer, own in joined.items():
        low, median, high = np.quantile(own, (0.25, 0.5, 0.75)).tolist()
        rows.append(
            {"layer": layer, "numbers": len(own), "low": low, "median": median, "high": high}
        )
    medians = [row["median"] for row in rows]
    order = sorted(rows, key=lambda row: float(row["median"]))
    ends = [rows[0], rows[-1]]
    notes = [
        f"standard deviation over the size of the mean, at {len(settings)} settings from "
        f"{told(settings[0])} to {told(settings[-1])}; half of the numbers lie between low and "
        f"high, those of all seeds together",
        f"first layer {medians[0]:.3f}, last {medians[-1]:.3f}, median of all layers "
        f"{float(np.median(medians)):.3f}; they are number "
        + " and ".join(str(order.index(row) + 1) for row in ends)
        + f" of {len(rows)} from below",
    ]
    return Analysis(rows, notes, spreads_by_layer(joined))


def _kernels(explored: Explored) -> Analysis:
    """Fig. 15: predicted kernels, number by number, against the setting."""
    explored = one_way(explored)
    settings = diagonal(explored, 5 * (NUM_STEPS - 1) + 1)
    trainable, module = scale_space_of(explored, best_point(explored).trial_ids[0])
    weights = predicted_weights(trainable, module, settings)
    every = [name for name, own in weights.items() if own.ndim > 3 and own[0, 0, 0].size > 1]
    layers = [every[k] for k in evenly(len(every), NUM_LAYERS)]
    pictures: dict[str, list[tuple[str, NDArray[Any]]]] = {}
    rows: list[Row] = []
    for layer in layers:
        own = weights[layer]
        after, before = own.shape[1:3]
        for number in evenly(after * before, NUM_KERNELS):
            a, b = divmod(number, before)
            kernel = own[:, a, b].reshape(len(settings), -1).T
            pictures.setdefault(layer, []).append((f"{b} → {a}", kernel))
            variation = coefficients_of_variation(kernel.T)
            rows.append(
                {
                    "layer": layer,
                    "from_channel": b,
                    "to_channel": a,
                    "lowest": float(kernel.min()),
                    "highest": float(kernel.max()),
                    "variation": float(np.nanmedian(variation)),
                }
            )
    ends = f"{told(settings[0])} to {told(settings[-1])}"
    notes = [
        f"each picture is a kernel between two channels: its numbers from top to bottom, {ends} "
        f"from left to right, one scale of colours for a layer; the first seed"
    ]
    return Analysis(rows, notes, kernel_maps(pictures, ends=ends))


def _feature_maps(explored: Explored) -> Analysis:
    """Fig. 16: features of a test image, layer by layer, at several settings."""
    explored = one_way(explored)
    settings = diagonal(explored, NUM_COLUMNS)[::-1]
    trainable, module = scale_space_of(explored, best_point(explored).trial_ids[0])
    image = explored.images()["test"].batch([0])[0][0]
    columns: dict[str, dict[str, NDArray[Any]]] = {}
    rows: list[Row] = []
    channels: dict[str, int] = {}
    for setting in settings:
        network: Any = trainable.materialize(module, setting)
        for layer, features in feature_maps(network, image).items():
            inner = tuple(slice(n // 8, n - n // 8) for n in features.shape[1:])
            spreads = features[:, *inner].reshape(len(features), -1).std(axis=1)
            channel = channels.setdefault(layer, int(spreads.argmax()))
            own = features[channel]
            shown = own if own.ndim == 2 else own[:, own.shape[1] // 2]
            columns.setdefault(layer, {})[told(setting)] = shown
            rows.append(
                {
                    "layer": layer,
                    "channel": channel,
                    **setting,
                    "size": " x ".join(map(str, own.shape)),
                    "mean": float(own.mean()),
                    "sd": float(own.std()),
                }
            )
    notes = [
        "of the first test image and the first seed; of each layer the channel that varies most, "
        f"its border left out, at {told(settings[0])}"
    ]
    return Analysis(rows, notes, picture_grid(columns))


ANALYSES: dict[str, NamedAnalysis] = {
    "prior-width": NamedAnalysis(
        "quality in the middle of priors of several widths, on train and test",
        _prior_width,
        _without_widths,
    ),
    "transfer": NamedAnalysis(
        "weights of one rescaling factor run at others", _transfer, without_one_factor
    ),
    "variation": NamedAnalysis(
        "how much predicted weights vary over the settings, layer by layer", _variation
    ),
    "kernels": NamedAnalysis("predicted kernels against the rescaling factor", _kernels),
    "feature-maps": NamedAnalysis(
        "features of a test image, layer by layer, at several settings", _feature_maps
    ),
}
