import gzip
import struct
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from search_spaces.errors import InputError
from trainables.datasets.nifti import (
    Scan,
    read_nifti,
    require_grid,
    require_same_affine,
    resample,
    whole_labels,
)

PATH = Path("a.nii.gz")
EXAMPLE = (35, 51, 35)


def encode(array, affine=None):
    image = nibabel.Nifti1Image(np.asarray(array), np.eye(4) if affine is None else affine)
    return gzip.compress(image.to_bytes(), 1)


def scan(affine, values=None):
    return Scan(PATH, np.zeros((4, 4, 4)) if values is None else np.asarray(values), affine)


def test_values_and_affine_are_read_as_scaled():
    stored = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = bytearray(nibabel.Nifti1Image(stored, np.diag([2, 3, 4, 1])).to_bytes())
    struct.pack_into("<ff", data, 112, 0.5, 1.0)  # scl_slope, scl_inter
    read = read_nifti(PATH, gzip.compress(bytes(data)), example=EXAMPLE)
    np.testing.assert_array_equal(read.values, stored * 0.5 + 1)
    np.testing.assert_array_equal(read.spacing_mm, [2, 3, 4])


def test_a_last_axis_of_length_one_is_left_out():
    assert read_nifti(PATH, encode(np.zeros((4, 5, 6, 1))), example=EXAMPLE).values.shape == (
        4,
        5,
        6,
    )
    slices = encode(np.zeros((4, 5, 1)))
    assert read_nifti(PATH, slices, example=(160, 192, 1)).values.shape == (4, 5)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 2), (4, 5, 6, 1, 1)])
def test_another_number_of_axes_is_refused(shape):
    with pytest.raises(InputError, match=r"expected one volume such as \(35, 51, 35\)"):
        read_nifti(PATH, encode(np.zeros(shape)), example=EXAMPLE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((900, 900, 900), "above 64000000 pixels; shrink it"),
        ((4, 0, 4), r"shape \(4, 0, 4\), expected one volume"),
    ],
)
def test_gigantic_and_empty_volumes_are_refused_by_their_headers(shape, message):
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    with pytest.raises(InputError, match=message):
        read_nifti(PATH, gzip.compress(header.binaryblock + bytes(4)), example=EXAMPLE)


@pytest.mark.parametrize(
    "dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]], ids=["complex", "colours"]
)
def test_values_that_are_no_numbers_are_refused(dtype):
    with pytest.raises(InputError, match="expected numbers, got"):
        read_nifti(PATH, encode(np.zeros((4, 4, 4), dtype)), example=EXAMPLE)


def test_broken_and_truncated_volumes_are_refused():
    data = encode(np.random.default_rng(0).random((8, 8, 8)))
    for broken in (b"", b"no image", data[:-300], gzip.decompress(data)[:-300]):
        with pytest.raises(InputError, match=r"a\.nii\.gz: expected a complete NIfTI file"):
            read_nifti(PATH, broken, example=EXAMPLE)


def test_damaged_headers_never_end_in_another_error():
    data = gzip.decompress(encode(np.zeros((4, 4, 4))))
    rng = np.random.default_rng(0)
    num_refused = 0
    for place, value in zip(rng.integers(0, 352, 300), rng.integers(0, 256, 300), strict=True):
        damaged = data[:place] + bytes([value]) + data[place + 1 :]
        try:
            read = read_nifti(PATH, gzip.compress(damaged, 1), example=EXAMPLE)
            require_grid(read, axes="R-A-S", spacing_mm=1)
        except InputError:
            num_refused += 1
    assert 0 < num_refused < 300


def test_grids_of_the_official_data_pass():
    require_grid(scan(np.eye(4)), axes="R-A-S", spacing_mm=1, shape=(4, 4, 4))
    lia = [[-2, 0, 0, 79], [0, 0, 2, -111], [0, -2, 0, 95], [0, 0, 0, 1]]
    require_grid(scan(np.array(lia, float)), axes="L-I-A", spacing_mm=2)


@pytest.mark.parametrize(
    ("affine", "found"),
    [
        (np.diag([-1, 1, 1, 1]), r"axes L-A-S, voxels of 1 x 1 x 1 mm from \(0, 0, 0\)"),
        (np.eye(4)[[1, 0, 2, 3]], "axes A-R-S, voxels of 1 x 1 x 1 mm"),
        (np.diag([1, 1, 1.5, 1]), "axes R-A-S, voxels of 1 x 1 x 1.5 mm"),
        (np.diag([1, 1, 0, 1]), r"axes R-A-\?, voxels of 1 x 1 x 0 mm"),
        (np.diag([1, 1, np.nan, 1]), "an affine that is not finite"),
    ],
)
def test_other_grids_are_refused_with_what_was_found(affine, found):
    with pytest.raises(
        InputError, match=rf"a\.nii\.gz: {found}.*; expected axes R-A-S, voxels of 1 x 1 x 1 mm"
    ):
        require_grid(scan(affine), axes="R-A-S", spacing_mm=1)


def test_another_shape_is_refused():
    with pytest.raises(InputError, match=r"shape \(4, 4, 4\), expected \(8, 8, 8\)"):
        require_grid(scan(np.eye(4)), axes="R-A-S", spacing_mm=1, shape=(8, 8, 8))


def test_affines_agree_up_to_rounding():
    shifted = np.eye(4)
    shifted[0, 3] = 1e-4
    require_same_affine(scan(np.eye(4)), scan(shifted))
    shifted[0, 3] = 0.5
    with pytest.raises(InputError, match=r"labels have .* from \(0.5, 0, 0\), the image has"):
        require_same_affine(scan(np.eye(4)), scan(shifted))


@pytest.mark.parametrize("value", [3, 0.5, -1, np.nan, np.inf])
def test_foreign_labels_are_refused(value):
    with pytest.raises(InputError, match=rf"label {value:g} in 1 voxels; .*from 0 to 2; look up"):
        whole_labels(scan(np.eye(4), [[[0.0, 1.0, 2.0, value]]]), 2, hint="look up")


def test_halving_a_volume_gives_means_and_nearest_labels():
    ramp = np.linspace(-1, 1, 8 * 10 * 12, dtype=np.float32).reshape(8, 10, 12)
    labels = (np.arange(8 * 10 * 12) % 7).reshape(8, 10, 12).astype(np.uint8)
    image, marks = resample(ramp, labels, (4, 5, 6))
    means = ramp.reshape(4, 2, 5, 2, 6, 2).mean(axis=(1, 3, 5))
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(image[0][inner], means[inner], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(marks, labels[1::2, 1::2, 1::2])


def test_no_axis_of_a_volume_is_special():
    rng = np.random.default_rng(0)
    volume = (rng.random((6, 9, 7), np.float32) * 2 - 1).astype(np.float32)
    labels = rng.integers(0, 5, volume.shape, dtype=np.uint8)
    image, marks = resample(volume, labels, (4, 5, 10))
    turned, turned_marks = resample(
        np.ascontiguousarray(volume.transpose(2, 0, 1)),
        np.ascontiguousarray(labels.transpose(2, 0, 1)),
        (10, 4, 5),
    )
    np.testing.assert_allclose(turned[0], image[0].transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(turned_marks, marks.transpose(2, 0, 1))


def test_a_volume_of_equal_slices_is_resampled_like_a_slice():
    plane = np.random.default_rng(0).random((9, 7), np.float32)
    labels = np.zeros((9, 7), np.uint8)
    flat, _ = resample(plane, labels, (5, 4))
    whole, _ = resample(np.stack([plane] * 6), np.stack([labels] * 6), (3, 5, 4))
    for each in whole[0]:
        np.testing.assert_allclose(each, flat[0], rtol=1e-5, atol=1e-6)


def test_the_own_size_changes_nothing():
    volume = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)).numpy()
    image, _ = resample(volume, np.zeros((3, 4, 5), np.uint8), (3, 4, 5))
    np.testing.assert_array_equal(image[0], volume)


def test_little_more_is_unpacked_than_the_voxels_that_may_be():
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    header["vox_offset"] = 2**26
    bomb = gzip.compress(header.binaryblock + bytes(2**26 + 512), 1)
    assert len(bomb) < 2**20
    tracemalloc.start()
    with pytest.raises(InputError, match="broken or truncated"):
        read_nifti(PATH, bomb, example=EXAMPLE, max_pixels=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_file_may_come_unpacked():
    volume = np.arange(24.0).reshape(2, 3, 4)
    data = gzip.decompress(encode(volume))
    np.testing.assert_array_equal(read_nifti(PATH, data, example=EXAMPLE).values, volume)
