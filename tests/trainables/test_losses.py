import math

import numpy as np
import pytest
import torch

from trainables.losses import cross_entropy, soft_dice_loss

SURE = 50.0  # a logit so far above zero that its softmax is 1 in float32


def logits_of(labels, num_classes):
    """Logits (B, C, *spatial) that are sure of the labels (B, *spatial)."""
    return SURE * torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1).float()


def test_cross_entropy_of_undecided_logits_is_log_of_the_number_of_classes():
    loss = cross_entropy(torch.zeros(2, 5, 4, 4), torch.arange(32).view(2, 4, 4) % 5)
    torch.testing.assert_close(loss, torch.tensor(math.log(5)), rtol=1e-5, atol=1e-6)


def test_cross_entropy_equals_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 2, 2, 2))
    target = rng.integers(3, size=(2, 2, 2, 2))
    losses = []
    for place in np.ndindex(target.shape):
        row = logits[place[0], :, *place[1:]]
        losses.append(math.log(sum(math.exp(v) for v in row)) - row[target[place]])
    loss = cross_entropy(torch.from_numpy(logits), torch.from_numpy(target))
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_soft_dice_of_a_perfect_prediction_is_zero():
    target = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    loss = soft_dice_loss(logits_of(target, 3), target)
    torch.testing.assert_close(loss, torch.tensor(0.0), rtol=1e-5, atol=1e-6)


def test_soft_dice_of_disjoint_masks_leaves_the_smoothing_alone():
    target = torch.tensor([[1, 1, 1, 0, 0]])
    predicted = torch.tensor([[0, 0, 0, 1, 1]])
    loss = soft_dice_loss(logits_of(predicted, 2), target, smooth=0.5)
    torch.testing.assert_close(loss, torch.tensor(1 - 0.5 / 5.5), rtol=1e-5, atol=1e-6)


def test_soft_dice_counts_a_label_absent_from_both_as_perfect():
    target = torch.tensor([[0, 1]])
    wrong = torch.tensor([[1, 0]])
    # label 1: (0 + 1) / (1 + 1 + 1); label 2: (0 + 1) / (0 + 1)
    expected = torch.tensor(1 - (1 / 3 + 1) / 2)
    torch.testing.assert_close(
        soft_dice_loss(logits_of(wrong, 3), target), expected, rtol=1e-5, atol=1e-6
    )


def test_soft_dice_equals_a_loop_over_images_and_labels():
    rng = np.random.default_rng(1)
    logits, target = rng.normal(size=(3, 4, 5, 2)), rng.integers(4, size=(3, 5, 2))
    overlaps = []
    for image, truth in zip(logits, target, strict=True):
        probabilities = np.exp(image) / np.exp(image).sum(0)
        for label in (1, 2, 3):
            p, t = probabilities[label], truth == label
            overlaps.append((2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    loss = soft_dice_loss(torch.from_numpy(logits), torch.from_numpy(target))
    assert loss.item() == pytest.approx(1 - np.mean(overlaps), rel=1e-12)


@pytest.mark.parametrize("criterion", [cross_entropy, soft_dice_loss])
def test_loss_of_a_batch_is_the_mean_over_its_images(criterion):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=generator)
    target = torch.randint(3, (4, 6, 6), generator=generator)
    parts = [criterion(logits[i : i + 1], target[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(
        criterion(logits, target), torch.stack(parts).mean(), rtol=1e-12, atol=0
    )
