"""What is measured of a registration: overlap of warped labels, and how regular the field is.

Shapes: n pairs, K foreground labels, d spatial axes, then the axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from trainables.deformations import jacobian_determinants, warp
from trainables.metrics.segmentation import dice_per_label, mean_over_labels


def metric_names(labels: Sequence[str], groups: Sequence[str] = ()) -> tuple[str, ...]:
    """What `registration_metrics` tells, in its order."""
    dice = (*groups, *labels)
    own = (f"dice/{name}" for name in dice)
    return ("dice", *own, "folded_share", "folded_voxels", "displacement")


def registration_metrics(
    displacement: Tensor,
    masks: Tensor,
    labels: Sequence[str],
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Values (n,) of displacements (n, d, *spatial) in voxels.

    `dice` over the labels of the moving image, read at the nearest voxel, and `dice/LABEL`;
    `folded_share` and `folded_voxels`, with a Jacobian determinant of at most zero; and mean
    `displacement` in voxels. NaN where a label is absent from both.

    Args:
        displacement: at which the moving image is read.
        masks: (n, 2, *spatial), moving then fixed.
        labels: names.
        groups: of indices of labels, whose mean is told as `dice/NAME`.
    """
    moved = warp(masks[:, :1].to(displacement.dtype), displacement, mode="nearest")[:, 0].long()
    dice = dice_per_label(moved, masks[:, 1], num_labels=len(labels))
    values = {"dice": mean_over_labels(dice)}
    values |= {f"dice/{n}": mean_over_labels(dice[:, own]) for n, own in (groups or {}).items()}
    values |= {f"dice/{label}": dice[:, k] for k, label in enumerate(labels)}
    folded = (jacobian_determinants(displacement) <= 0).flatten(1).double()
    values["folded_share"], values["folded_voxels"] = folded.mean(1), folded.sum(1)
    values["displacement"] = displacement.norm(dim=1).flatten(1).mean(1)
    return values
