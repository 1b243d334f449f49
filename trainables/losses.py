"""Training losses of segmentation and registration; all average over the batch.

Shapes: B batch, C classes (0 is background), K foreground labels, d spatial axes, then the axes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.deformations import gradients


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


def scaled_squares(moved: Tensor, fixed: Tensor, *, noise_scale: float) -> Tensor:
    """Mean squared difference of images (B, C, *spatial) over twice the variance of their noise.

    Source: Hoopes et al. (2021), arXiv:2101.01035, section 3.2: the negative log likelihood of
    intensities with additive Gaussian noise, per voxel.
    """
    return (moved - fixed).square().mean() / (2 * noise_scale**2)


def local_ncc_loss(moved: Tensor, fixed: Tensor, *, radius: int) -> Tensor:
    """One minus the mean squared correlation of images (B, 1, *spatial) within moving windows.

    Args:
        moved: image.
        fixed: image.
        radius: windows are 2 radius + 1 voxels wide; at the border they end there.

    Source: Avants et al. (2008), doi:10.1016/j.media.2007.06.004.
    """
    pool = F.avg_pool2d if moved.dim() == 4 else F.avg_pool3d
    width = 2 * radius + 1

    def local_mean(x: Tensor) -> Tensor:
        mean: Tensor = pool(x, width, stride=1, padding=radius, count_include_pad=False)
        return mean

    stacked = torch.cat([moved, fixed, moved * moved, fixed * fixed, moved * fixed], dim=1)
    a, b, aa, bb, ab = local_mean(stacked).split(moved.shape[1], dim=1)
    covariance, variances = ab - a * b, (aa - a * a) * (bb - b * b)
    # where one is flat nothing is known: 0, and no gradient grows without bound
    squared: Tensor = covariance.square() / (variances.clamp_min(0) + 1e-10)
    return 1 - squared.mean()


def nmi_loss(moved: Tensor, fixed: Tensor, *, num_bins: int = 32) -> Tensor:
    """Minus the normalised mutual information of images (B, 1, *spatial) with values in [0, 1].

    It is (H(a) + H(b)) / H(a, b), between 1 (independent) and 2 (each tells the other). Every
    value is spread over its two nearest of `num_bins` evenly spaced bins, in proportion.

    Source: Studholme, Hill, Hawkes (1999), doi:10.1016/S0031-3203(98)00091-0.
    """
    a, b = _bin_shares(moved, num_bins), _bin_shares(fixed, num_bins)
    joint = torch.bmm(a, b.transpose(1, 2)) / a.shape[2]
    of_moved, of_fixed = _entropy(joint.sum(2)), _entropy(joint.sum(1))
    return -((of_moved + of_fixed) / _entropy(joint.flatten(1)).clamp_min(1e-6)).mean()


def _bin_shares(image: Tensor, num_bins: int) -> Tensor:
    """Share (B, bins, voxels) of each voxel in each bin: hat functions, which sum to one."""
    position = image.flatten(1).clamp(0, 1) * (num_bins - 1)
    bins = torch.arange(num_bins, dtype=position.dtype, device=position.device)
    return (1 - (position[:, None] - bins[:, None]).abs()).clamp_min(0)


def _entropy(shares: Tensor) -> Tensor:
    """Entropy (B,) in nats of distributions (B, n)."""
    terms: Tensor = torch.special.xlogy(shares, shares.clamp_min(1e-12))
    return -terms.sum(1)


def total_variation(field: Tensor) -> Tensor:
    """Sum over axes and components of the mean absolute forward difference of (B, d, *spatial).

    Source: Rudin, Osher, Fatemi (1992), doi:10.1016/0167-2789(92)90242-F, in its anisotropic form.
    """
    return torch.stack([own.abs().mean() for own in gradients(field)]).sum() * field.shape[1]


def half_squared_gradient(field: Tensor) -> Tensor:
    """Half the squared norm of the gradient of a field (B, d, *spatial), mean over voxels."""
    squares = [difference.square().sum(1).mean() for difference in gradients(field)]
    return 0.5 * torch.stack(squares).sum()


def overlap_loss(moved: Tensor, fixed: Tensor) -> Tensor:
    """One minus the mean soft Dice of warped one-hot labels (B, K, *spatial) in [0, 1].

    A label in neither image of a pair counts for nothing, nor does a pair that has none.
    """
    return 1 - soft_dice(moved, fixed).nanmean(1).nan_to_num(1).mean()


def soft_dice(a: Tensor, b: Tensor) -> Tensor:
    """Soft Dice (B, K) of label shares (B, K, *spatial); NaN where a label is in neither."""
    a, b = a.flatten(2), b.flatten(2)
    total = a.sum(2) + b.sum(2)
    overlap = 2 * (a * b).sum(2) / total.clamp_min(1e-6)
    return torch.where(total > 0, overlap, torch.nan)
