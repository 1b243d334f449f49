import math

import numpy as np
import pytest
import torch

from trainables.metrics.segmentation import dice_per_label, mean_over_labels


def naive_dice(predicted, target, num_labels):
    rows = []
    for a, b in zip(predicted.tolist(), target.tolist(), strict=True):
        pairs = list(zip(np.ravel(a), np.ravel(b), strict=True))
        row = []
        for label in range(1, num_labels + 1):
            both = sum(p == label and t == label for p, t in pairs)
            total = sum(int(p == label) + int(t == label) for p, t in pairs)
            row.append(2 * both / total if total else math.nan)
        rows.append(row)
    return rows


def test_dice_of_equal_masks_is_one_for_every_label():
    mask = torch.tensor([[[0, 1], [2, 3]]])
    assert dice_per_label(mask, mask, num_labels=3).tolist() == [[1.0, 1.0, 1.0]]


def test_dice_of_disjoint_masks_is_zero():
    a, b = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[0, 0, 1, 1]])
    assert dice_per_label(a, b, num_labels=1).tolist() == [[0.0]]


def test_dice_of_half_overlap_is_two_thirds():
    a, b = torch.tensor([[1, 1]]), torch.tensor([[1, 0]])
    assert dice_per_label(a, b, num_labels=1).tolist() == [[2 / 3]]


def test_dice_is_nan_where_a_label_is_in_neither_and_zero_where_in_one():
    a, b = torch.tensor([[0, 2]]), torch.tensor([[0, 0]])
    dice = dice_per_label(a, b, num_labels=3)[0].tolist()
    assert math.isnan(dice[0])
    assert dice[1] == 0
    assert math.isnan(dice[2])


@pytest.mark.parametrize("shape", [(5, 7, 6), (3, 4, 3, 5), (1, 9)])
def test_dice_equals_a_loop_over_pixels(shape):
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(5, shape, generator=generator)
    b = torch.randint(5, shape, generator=generator)
    dice = dice_per_label(a, b.to(torch.uint8), num_labels=5)  # label 5 is absent
    assert dice.dtype == torch.float64
    np.testing.assert_allclose(dice.numpy(), naive_dice(a, b, 5), rtol=1e-12)


def test_dice_is_symmetric_and_does_not_depend_on_the_order_of_pixels():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(3, (2, 50), generator=generator) for _ in range(2))
    order = torch.randperm(50, generator=generator)
    dice = dice_per_label(a, b, num_labels=2)
    assert torch.equal(dice, dice_per_label(b, a, num_labels=2))
    assert torch.equal(dice, dice_per_label(a[:, order], b[:, order], num_labels=2))


def test_mean_over_labels_leaves_absent_ones_out():
    dice = torch.tensor([[0.5, math.nan, 1.0], [0.25, 0.75, 0.5]], dtype=torch.float64)
    assert mean_over_labels(dice).tolist() == [0.75, 0.5]


def test_mean_over_labels_is_nan_where_no_label_is_present():
    assert math.isnan(mean_over_labels(torch.full((1, 3), math.nan)).item())
