"""Surface Dice: closed forms, and distances by another algorithm."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from trainables.metrics.surfaces import surface_dice_per_label


def square(size, low, high):
    mask = torch.zeros(1, size, size, dtype=torch.long)
    mask[:, low[0] : high[0], low[1] : high[1]] = 1
    return mask


def measured(predicted, target, tolerance, spacing=None, num_labels=1):
    return surface_dice_per_label(
        predicted, target, num_labels=num_labels, tolerance=tolerance, spacing=spacing
    )


def test_same_outline_counts_one_and_a_label_in_neither_is_undefined():
    mask = square(12, (3, 3), (8, 9))
    values = measured(mask, mask, 0.0, num_labels=2)
    assert values[0, 0] == 1
    assert torch.isnan(values[0, 1])
    assert measured(mask, torch.zeros_like(mask), 1.0)[0, 0] == 0


def test_shifted_square_keeps_the_sides_that_slide_along_themselves():
    """A square of n pixels moved by two: of 4 n - 4 pixels 2 (n - 2) fall on the other outline.

    The two sides along the move overlap in n - 2 pixels each; the other sides lie apart, but for
    their corners, which are among those.
    """
    n = 7
    values = measured(square(20, (5, 5), (5 + n, 5 + n)), square(20, (5, 7), (5 + n, 7 + n)), 0.0)
    assert values.item() == pytest.approx(2 * (n - 2) / (4 * n - 4), rel=1e-12)


@pytest.mark.parametrize(("tolerance", "expected"), [(1.9, "below"), (2.0, "one")])
def test_tolerance_is_inclusive_and_in_the_unit_of_the_spacing(tolerance, expected):
    a, b = square(20, (5, 5), (12, 12)), square(20, (6, 5), (13, 12))
    value = measured(a, b, tolerance, spacing=(2.0, 0.5)).item()
    assert (value == 1) if expected == "one" else (value < 1)


def test_border_of_the_image_belongs_to_the_outline():
    full = torch.ones(1, 5, 5, dtype=torch.long)
    inner = square(5, (1, 1), (4, 4))
    assert measured(full, inner, 0.0).item() == 0
    assert measured(full, inner, 1.0).item() == pytest.approx((16 - 4 + 8) / 24)  # not the corners


def by_distance_transform(predicted, target, num_labels, tolerance, spacing):
    values = np.full((len(target), num_labels), np.nan)
    for index, label in np.ndindex(values.shape):
        masks = [np.asarray(one[index]) == label + 1 for one in (predicted, target)]
        outlines = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
        total = sum(outline.sum() for outline in outlines)
        if total:
            kept = 0
            for own, other in (outlines, outlines[::-1]):
                if other.any():
                    far = ndimage.distance_transform_edt(~other, sampling=spacing)
                    kept += (far[own] <= tolerance + 1e-9).sum()
            values[index, label] = kept / total
    return values


@pytest.mark.parametrize(
    ("shape", "spacing", "tolerance"),
    [
        ((3, 17, 20), None, 1.0),
        ((3, 17, 20), (0.7, 1.3), 2.0),
        ((2, 9, 10, 8), None, 1.5),
        ((2, 9, 10, 8), (1.0, 0.4, 2.0), 1.0),
    ],
)
def test_equals_a_distance_transform(shape, spacing, tolerance):
    rng = np.random.default_rng(0)
    smooth = [
        ndimage.gaussian_filter(rng.normal(size=shape), 1.5, axes=range(1, len(shape)))
        for _ in range(2)
    ]
    predicted, target = (torch.from_numpy(np.digitize(x, [0.05, 0.2])) for x in smooth)
    expected = by_distance_transform(predicted, target, 3, tolerance, spacing)
    found = measured(predicted, target, tolerance, spacing, num_labels=3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isfinite(expected[:, :2]).all()
