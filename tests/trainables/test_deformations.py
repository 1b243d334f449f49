"""Warping, integration, Jacobians and registration losses against closed forms."""

import math

import numpy as np
import pytest
import torch

from trainables.deformations import (
    integrate,
    jacobian_determinants,
    mean_gradient,
    resized_field,
    warp,
)
from trainables.losses import (
    half_squared_gradient,
    local_ncc_loss,
    nmi_loss,
    overlap_loss,
    scaled_squares,
    soft_dice,
    total_variation,
)

SIZES = [(12, 16), (8, 10, 12)]


def coordinates(size):
    axes = [torch.arange(length, dtype=torch.float64) for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def constant(values, size):
    field = torch.tensor(values, dtype=torch.float64).view(1, -1, *[1] * len(size))
    return field.expand(1, len(values), *size).clone()


@pytest.mark.parametrize("size", SIZES)
def test_warp_reads_a_linear_ramp_at_the_displaced_place(size):
    ramp = coordinates(size)
    shift = [0.25 * (axis + 1) for axis in range(len(size))]
    moved = warp(ramp, constant(shift, size))
    inner = tuple(slice(1, -2) for _ in size)
    for axis, own in enumerate(shift):
        got, expected = moved[0, axis][inner], ramp[0, axis][inner] + own
        assert torch.allclose(got, expected, atol=1e-9)


def test_warp_repeats_the_border_and_keeps_labels_whole():
    image = torch.arange(6.0, dtype=torch.float64).view(1, 1, 2, 3)
    moved = warp(image, constant([0.0, 5.0], (2, 3)))
    assert moved[0, 0].tolist() == [[2.0] * 3, [5.0] * 3]
    nearest = warp(image, constant([0.0, 0.4], (2, 3)), mode="nearest")
    assert torch.equal(nearest, image)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_velocity_integrates_to_itself(size):
    shift = [1.5, -0.75, 0.5][: len(size)]
    field = constant(shift, size)
    assert torch.allclose(integrate(field), field, atol=1e-12)


def test_integration_of_a_linear_velocity_is_the_exponential():
    # v(x) = a (x - c) moves x - c to e^a (x - c)
    size, rate = (65, 65), 0.2
    centred = coordinates(size) - 32
    inner = (slice(None), slice(None), slice(16, 49), slice(16, 49))
    expected = (math.exp(rate) - 1) * centred
    got = integrate(rate * centred, num_steps=10)
    assert torch.allclose(got[inner], expected[inner], atol=2e-3)


def test_integration_is_inverted_by_the_opposite_velocity():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 2, 5, 5, generator=generator, dtype=torch.float64)
    velocity = torch.nn.functional.interpolate(coarse, size=(40, 40), mode="bicubic")
    there, back = integrate(velocity), integrate(-velocity)
    rest = back + warp(there, back)  # x to y and back again
    assert rest[..., 8:-8, 8:-8].abs().max() < 0.1
    assert there.abs().max() > 1


@pytest.mark.parametrize("size", SIZES)
def test_resized_field_counts_in_voxels_of_the_new_grid(size):
    half = tuple(length // 2 for length in size)
    field = constant([1.0, 2.0, 3.0][: len(size)], half)
    resized = resized_field(field, size)
    assert resized.shape[2:] == size
    assert torch.allclose(resized, constant([2.0, 4.0, 6.0][: len(size)], size))
    assert resized_field(field, half) is field


@pytest.mark.parametrize("size", SIZES)
def test_jacobian_of_a_linear_map_is_its_determinant(size):
    d = len(size)
    generator = np.random.default_rng(1)
    matrix = np.eye(d) + generator.uniform(-0.4, 0.4, (d, d))
    points = coordinates(size)[0].reshape(d, -1).numpy()
    moved = (matrix @ points).reshape(1, d, *size)
    displacement = torch.from_numpy(moved) - coordinates(size)
    determinants = jacobian_determinants(displacement)
    assert determinants.shape == (1, *size)
    assert torch.allclose(determinants, torch.full_like(determinants, np.linalg.det(matrix)))


def test_a_fold_has_a_negative_determinant():
    displacement = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    displacement[0, 0] = -2 * torch.arange(8.0).view(8, 1)  # the first axis is mirrored
    assert torch.allclose(jacobian_determinants(displacement), -torch.ones(1, 8, 8).double())


def test_gradient_measures_of_a_linear_field():
    field = torch.stack([0.5 * coordinates((9, 9))[0, 0], 0.25 * coordinates((9, 9))[0, 1]])[None]
    assert half_squared_gradient(field).item() == pytest.approx(0.5 * (0.25 + 0.0625))
    inner = math.sqrt(0.25 + 0.0625)  # the last row and column have one difference alone
    expected = (64 * inner + 8 * 0.5 + 8 * 0.25) / 81
    assert mean_gradient(field).item() == pytest.approx(expected)
    assert mean_gradient(constant([3.0, 4.0], (5, 5))).item() == 0


def test_scaled_squares_is_half_for_a_difference_of_one_deviation():
    zeros = torch.zeros(2, 1, 4, 4)
    assert scaled_squares(zeros + 0.05, zeros, noise_scale=0.05).item() == pytest.approx(0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [1, 3])
def test_local_correlation_ignores_linear_changes_of_intensity(size, radius):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, *size, generator=generator, dtype=torch.float64)
    other = torch.rand(2, 1, *size, generator=generator, dtype=torch.float64)
    assert local_ncc_loss(image, image, radius=radius).item() == pytest.approx(0, abs=1e-3)
    assert local_ncc_loss(1 - 0.5 * image, image, radius=radius).item() == pytest.approx(
        0, abs=1e-3
    )
    assert local_ncc_loss(other, image, radius=radius).item() > 0.3


def test_local_correlation_of_one_window_is_the_squared_correlation():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 3, 3))
    expected = np.corrcoef(a.ravel(), b.ravel())[0, 1] ** 2
    whole = 1 - local_ncc_loss(
        torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], radius=15
    )
    assert whole.item() == pytest.approx(expected, abs=1e-4)  # every window holds all nine


def test_nmi_of_equal_and_of_independent_images():
    # values in the centres of bins, each as often as the others
    values = torch.arange(32, dtype=torch.float64) / 31
    rows, columns = torch.meshgrid(values, values, indexing="ij")
    rows, columns = rows[None, None], columns[None, None]
    assert nmi_loss(rows, rows).item() == pytest.approx(-2)
    assert nmi_loss(1 - rows, rows).item() == pytest.approx(-2)  # any one-to-one change
    assert nmi_loss(rows, columns).item() == pytest.approx(-1)


def test_nmi_between_the_two_from_its_table():
    # two bins; joint shares 3/8, 1/8, 1/8, 3/8
    a = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.float64).view(1, 1, 2, 4)
    b = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1], dtype=torch.float64).view(1, 1, 2, 4)
    joint = -2 * (3 / 8 * math.log(3 / 8) + 1 / 8 * math.log(1 / 8))
    expected = -2 * math.log(2) / joint
    assert nmi_loss(a, b, num_bins=2).item() == pytest.approx(expected)


def test_overlap_counts_the_labels_that_are_there():
    a = torch.zeros(1, 3, 4, 4)
    b = torch.zeros(1, 3, 4, 4)
    a[0, 0, :2], b[0, 0, 1:3] = 1, 1  # half
    a[0, 1, 0] = 1  # in one alone: nothing
    assert soft_dice(a, b)[0, :2].tolist() == [0.5, 0.0]
    assert soft_dice(a, b)[0, 2].isnan()
    assert overlap_loss(a, b).item() == pytest.approx(0.75)


@pytest.mark.parametrize("loss", ["mse", "ncc", "nmi"])
def test_losses_have_the_gradient_of_finite_differences(loss):
    functions = {
        "mse": lambda a, b: scaled_squares(a, b, noise_scale=0.1),
        "ncc": lambda a, b: local_ncc_loss(a, b, radius=2),
        "nmi": nmi_loss,
    }
    generator = torch.Generator().manual_seed(0)
    fixed = torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64)
    image = torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64)
    direction = torch.randn(1, 1, 6, 6, generator=generator, dtype=torch.float64)
    image.requires_grad_()
    (slope,) = torch.autograd.grad(functions[loss](image, fixed), image)
    step = 1e-6
    with torch.no_grad():
        after = functions[loss](image + step * direction, fixed)
        before = functions[loss](image - step * direction, fixed)
    assert (slope * direction).sum().item() == pytest.approx(
        ((after - before) / (2 * step)).item(), rel=1e-4
    )


def test_total_variation_of_a_ramp_is_its_slopes():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    field = torch.stack([0.5 * y, -0.25 * x + 2 * y])[None]
    assert total_variation(field).item() == pytest.approx(0.5 + 0.25 + 2)
    assert total_variation(torch.ones(2, 3, 4, 4, 4)).item() == 0
