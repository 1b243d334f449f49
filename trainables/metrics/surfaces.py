"""Agreement of the outlines of segmentations, within a tolerance.

Shapes: n images, K foreground labels, then the spatial axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def surface_dice_per_label(
    predicted: Tensor,
    target: Tensor,
    *,
    num_labels: int,
    tolerance: float,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Share of both outlines that lies within a tolerance of the other, of each image and label.

    An outline is every pixel of a label that has a neighbour along an axis which is none of it,
    the image's border included. Distances are between centres of pixels.

    Args:
        predicted: (n, *spatial) labels, 0 is background.
        target: (n, *spatial) labels.
        num_labels: K; labels are 1 .. K.
        tolerance: in the unit of `spacing`; in pixels without one.
        spacing: of the pixels, per axis.

    Returns:
        (n, K) float64 in [0, 1]; NaN where a label is in neither.

    Source: Nikolov et al. (2018), arXiv:1809.04430; counted in pixels of the outlines, as MONAI
    does, not in areas of a mesh.
    """
    numbers = torch.arange(1, num_labels + 1, device=target.device)
    numbers = numbers.view(1, -1, *[1] * (target.dim() - 1))
    outlines = [_outline(labels.unsqueeze(1) == numbers) for labels in (predicted, target)]
    spacing = spacing or [1.0] * (target.dim() - 1)
    near = [_dilated(outline, tolerance, spacing) for outline in reversed(outlines)]
    kept = torch.zeros(len(target), num_labels, dtype=torch.float64, device=target.device)
    total = torch.zeros_like(kept)
    for outline, other in zip(outlines, near, strict=True):
        kept += (outline & other).flatten(2).sum(2)
        total += outline.flatten(2).sum(2)
    return kept / total  # 0 / 0 is NaN: in neither


def _outline(masks: Tensor) -> Tensor:
    """Pixels of masks (n, K, *spatial) that an erosion by a cross takes away."""
    inner = masks.clone()
    for axis in range(2, masks.dim()):
        for step in (-1, 1):
            inner &= _shifted(masks, axis, step)
    return masks & ~inner


def _dilated(masks: Tensor, radius: float, spacing: Sequence[float]) -> Tensor:
    """Pixels whose distance to a mask is at most the radius."""
    reach = [math.floor(radius / length + 1e-9) for length in spacing]
    grown = torch.zeros_like(masks)
    for offset in itertools.product(*(range(-most, most + 1) for most in reach)):
        distance = math.hypot(*(k * length for k, length in zip(offset, spacing, strict=True)))
        if distance <= radius + 1e-9:
            moved = masks
            for axis, step in enumerate(offset, start=2):
                moved = _shifted(moved, axis, step)
            grown |= moved
    return grown


def _shifted(masks: Tensor, axis: int, step: int) -> Tensor:
    """Masks moved by some pixels along an axis; nothing comes in from outside."""
    if step == 0:
        return masks
    length = masks.shape[axis]
    moved = torch.zeros_like(masks)
    count = max(0, length - abs(step))
    source = masks.narrow(axis, max(0, -step) if count else 0, count)
    moved.narrow(axis, max(0, step) if count else 0, count).copy_(source)
    return moved
