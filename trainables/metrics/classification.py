"""Metrics of whole images, as one number per image whose mean over a split is the metric.

So a table of means, with its paired differences, holds them like any other; but an image counts as
much as its class or finding is rare, and the spread of these numbers is no standard error. They
need all images of a split at once. Shapes: n images, f findings, k classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
SET_METRICS = frozenset({"auc", "balanced_accuracy"})  # names, without what follows a slash


def auc_parts(scores: Floats, truth: Floats) -> Floats:
    """For each image with a finding, the share of those without it that score lower; ties half.

    Args:
        scores: (n,), larger where the finding is more likely.
        truth: (n,) 1 with it, 0 without, NaN unknown.

    Returns:
        (n,), NaN for images without the finding; their mean is the area under the ROC curve. All
        NaN where images with it, or without it, are missing.

    Source: DeLong, DeLong, Clarke-Pearson (1988), doi:10.2307/2531595: structural components.
    """
    parts = np.full(len(scores), np.nan)
    with_it, without = truth == 1, truth == 0
    if with_it.any() and without.any():
        among_all = rankdata(np.concatenate([scores[with_it], scores[without]]))
        among_own = rankdata(scores[with_it])
        num_below = among_all[: with_it.sum()] - among_own
        parts[with_it] = num_below / without.sum()
    return parts


def mean_of_columns(parts: Floats) -> Floats:
    """One number per image whose mean is the mean over columns of their means.

    Args:
        parts: (n, f), NaN where an image has none; columns without any do not count.

    Returns:
        (n,), all NaN where no column counts.
    """
    present = np.isfinite(parts)
    counts = present.sum(axis=0)
    used = counts > 0
    if not used.any():
        return np.full(len(parts), np.nan)
    weights = len(parts) / (counts[used] * used.sum())
    mixed: Floats = (np.where(present, parts, 0.0)[:, used] * weights).sum(axis=1)
    return mixed


def recall_parts(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], num_classes: int
) -> Floats:
    """Whether each image of a class is found, (n, k): NaN in the columns of other classes.

    Their `mean_of_columns` has balanced accuracy as its mean; classes without an image do not
    count. Images of no known class (-1) have NaN everywhere.
    """
    is_own = truth[:, None] == np.arange(num_classes)
    is_found = (predicted == truth).astype(np.float64)
    return np.where(is_own, is_found[:, None], np.nan)
