"""Training losses of segmentation; both average over the batch.

Shapes: B batch, C classes (0 is background), then the spatial axes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Categorical cross-entropy of logits (B, C, *spatial) and labels (B, *spatial)."""
    return F.cross_entropy(logits, target)


def soft_dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice overlap, mean over images and foreground labels.

    Args:
        logits: (B, C, *spatial).
        target: (B, *spatial) labels below C.
        smooth: pixels added to both sides of the ratio; a label absent from both counts 1.

    Source: Milletari, Navab, Ahmadi (2016), arXiv:1606.04797, with the plain (not squared) sums of
    Sudre et al. (2017), arXiv:1707.03237.
    """
    probabilities = logits.softmax(dim=1).flatten(2)[:, 1:]
    truth = F.one_hot(target, logits.shape[1]).movedim(-1, 1).flatten(2)[:, 1:].to(logits.dtype)
    overlap = (probabilities * truth).sum(2)
    total = probabilities.sum(2) + truth.sum(2)
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()
