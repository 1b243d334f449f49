"""Overlap of segmentations. Shapes: n images, K foreground labels, then the spatial axes."""

from __future__ import annotations

import torch
from torch import Tensor


def dice_per_label(predicted: Tensor, target: Tensor, *, num_labels: int) -> Tensor:
    """Dice overlap 2|A and B| / (|A| + |B|) of each image and foreground label.

    Args:
        predicted: (n, *spatial) labels, 0 is background.
        target: (n, *spatial) labels.
        num_labels: K; labels are 1 .. K.

    Returns:
        (n, K) float64 in [0, 1]; NaN where a label is in neither.

    Source: Dice (1945), doi:10.2307/1932409.
    """
    a, b = predicted.flatten(1).long(), target.flatten(1).long()
    num_classes = num_labels + 1
    joint = torch.zeros(len(a), num_classes * num_classes, dtype=torch.float64, device=a.device)
    joint.scatter_add_(1, a * num_classes + b, torch.ones_like(a, dtype=torch.float64))
    table = joint.view(-1, num_classes, num_classes)
    overlap = table.diagonal(dim1=1, dim2=2)[:, 1:]
    total = (table.sum(1) + table.sum(2))[:, 1:]
    return 2 * overlap / total  # 0 / 0 is NaN: in neither


def mean_over_labels(dice: Tensor) -> Tensor:
    """Mean (n,) of Dice values (n, K) over the labels present in either; NaN where none is."""
    return dice.nanmean(dim=1)
