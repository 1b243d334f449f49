import io
import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import synthetic
from trainables.datasets.base import split_indices


@pytest.fixture(scope="module")
def dataset():
    return synthetic.load()


def test_same_options_give_the_same_bits_and_another_seed_others():
    first, again, other = (synthetic.load(num_images=5, seed=seed) for seed in (1, 1, 2))
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.images, again.images)
    assert first.digest != other.digest
    assert not np.array_equal(first.masks, other.masks)


def test_first_images_do_not_depend_on_their_number(dataset):
    few = synthetic.load(num_images=7)
    np.testing.assert_array_equal(few.images, dataset.images[:7])
    np.testing.assert_array_equal(few.masks, dataset.masks[:7])
    assert few.ids == dataset.ids[:7]
    assert few.digest != dataset.digest


def test_global_generators_are_left_alone():
    np.random.seed(0)  # noqa: NPY002 - the global generator is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    synthetic.load(num_images=2)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_defaults_are_those_of_the_source(dataset):
    source = synthetic.SOURCE
    assert dataset.images.shape == (400, source.channels, *source.size)
    assert dataset.images.dtype == np.float32
    assert dataset.masks.dtype == np.uint8
    assert (
        dataset.labels
        == source.labels
        == ("structure_1", "structure_2", "structure_3", "structure_4")
    )
    assert source.check(None).num_images == 400


def test_every_image_holds_every_label(dataset):
    for label in range(1, 5):
        assert (dataset.masks == label).any(axis=(1, 2)).all()


def test_domains_are_even_and_all_classes_occur(dataset):
    np.testing.assert_array_equal(np.bincount(dataset.domains), [100] * 4)
    assert (np.bincount(dataset.classes, minlength=3) > 100).all()
    assert len(split_indices(dataset, seed=0)["train"]) == 256


def test_twin_looks_like_the_organ_in_each_domain_and_domains_differ(dataset):
    pixels = dataset.images[:, 0]
    means = np.array(
        [
            [
                pixels[dataset.domains == d][dataset.masks[dataset.domains == d] == k].mean()
                for k in (1, 2, 3)
            ]
            for d in range(4)
        ]
    )
    assert (np.abs(means[:, 0] - means[:, 2]) < 0.1).all()
    assert (np.abs(means[:, 0] - means[:, 1]) > 0.2).all()
    assert np.ptp(means[:, 0]) > 0.8


def test_target_is_the_size_of_structure_1_and_standardised(dataset):
    # Structure 2 covers a part of structure 1; the deformation blurs the relation.
    area = np.isin(dataset.masks, (1, 2)).sum(axis=(1, 2))
    assert np.corrcoef(area, dataset.targets)[0, 1] > 0.8
    assert abs(dataset.targets.mean()) < 0.15
    assert abs(dataset.targets.std() - 1) < 0.1


def test_class_tells_the_side_of_the_lobe(dataset):
    organ = np.isin(dataset.masks, (1, 2)).astype(np.float64)
    centre = np.array([np.average(axis, weights=organ.mean(axis=0)) for axis in np.mgrid[:64, :64]])
    lean = []
    for index in range(3):
        excess = organ[dataset.classes == index].mean(axis=0) - organ.mean(axis=0)
        lean.append(np.unravel_index(excess.argmax(), excess.shape) - centre)
    below, right, left = lean
    assert below[0] > 2 * abs(below[1])
    assert right[1] > 2 * abs(right[0])
    assert -left[1] > 2 * abs(left[0])


def test_labels_correspond_between_images(dataset):
    # Every structure stays near its place: what a registration of pairs needs.
    grid = np.mgrid[:64, :64].reshape(2, -1)
    for label in range(1, 5):
        inside = (dataset.masks[:100] == label).reshape(100, -1)
        centres = inside @ grid.T / inside.sum(axis=1, keepdims=True)
        assert (centres.std(axis=0) < 5).all()


@pytest.mark.parametrize(
    ("size", "num_labels", "channels"),
    [((37, 50), 2, 3), ((16, 18, 21), 5, 1), ((4, 4), 1, 1), ((96, 32), 24, 2)],
)
def test_any_size_and_number_of_labels(size, num_labels, channels):
    options = {"size": size, "num_labels": num_labels, "channels": channels}
    dataset = synthetic.load(num_images=6, num_domains=6, **options)
    assert dataset.images.shape == (6, channels, *size)
    assert dataset.labels == synthetic.labels_of(num_labels)
    assert len(dataset.domain_names) == 6


def test_three_axes_hold_all_labels():
    dataset = synthetic.load(size=(24, 24, 24), num_images=4)
    assert all(set(np.unique(mask)) == set(range(5)) for mask in dataset.masks)


def test_size_of_the_grid_does_not_move_structures():
    small, large = (synthetic.load(size=(n, n), num_images=3).masks for n in (48, 96))
    agreement = (small == large[:, ::2, ::2]).mean()
    assert agreement > 0.9  # sampling a mask at every other pixel shifts it by half a pixel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (64,)}, "size must be 2 or 3 whole numbers"),
        ({"num_images": 0}, r"num_images must be a whole number in \[1, 1000000\], got 0"),
        ({"num_labels": 65}, r"num_labels must be .* got 65"),
        ({"num_domains": 0}, "num_domains must be"),
        ({"channels": 0}, "channels must be"),
        ({"seed": -1}, "seed must be"),
        ({"num_labels": 2.5}, r"num_labels must be a whole number in \[1, 64\], got 2.5"),
        ({"size": (4000, 4000), "num_images": 1000}, "num_images x channels x size is above"),
    ],
)
def test_options_outside_their_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        synthetic.load(**options)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_an_image_gives_that_image_again(channels):
    image = synthetic.load(num_images=1, channels=channels, size=(16, 20)).images[0]
    stored = np.round((image + 1) * 127.5).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(stored[0] if channels == 1 else np.moveaxis(stored, 0, -1)).save(data, "TIFF")
    read = synthetic.SOURCE.read(
        Path("image"), data.getvalue(), size=(16, 20), channels=channels, num_images=1
    )
    np.testing.assert_allclose(read.pixels, image, atol=0.5 / 127.5 + 1e-6)  # 8 bits


def test_a_volume_of_an_image_gives_that_image_again():
    image = synthetic.load(num_images=1, size=(8, 10, 12)).images[0]
    volume = nibabel.Nifti1Image((image[0] + 1) / 2, np.diag([2.0, 2.0, 2.0, 1.0]))
    read = synthetic.SOURCE.read(Path("image"), volume.to_bytes(), size=(8, 10, 12))
    np.testing.assert_allclose(read.pixels, image, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(read.affine, volume.affine)


def test_files_cannot_hold_any_number_of_channels():
    with pytest.raises(InputError, match="no file holds 2 channels of 2 axes"):
        synthetic.SOURCE.read(Path("image"), b"", size=(8, 8), channels=2)


def test_calibration_moves_the_intensity_of_one_uptake_from_domain_to_domain():
    data = synthetic.load(
        size=(32, 32), num_images=400, num_labels=1, num_domains=4, shift="calibration"
    )
    assert data.classes.min() == 0
    assert data.classes.max() == 2
    assert np.corrcoef(data.classes, data.targets)[0, 1] > 0.9
    slopes, outside = [], []
    for domain in range(4):
        own = np.flatnonzero(data.domains == domain)
        inside = [data.images[k, 0][data.masks[k] == 1].mean() for k in own]
        slopes.append(np.polyfit(data.targets[own], inside, 1)[0])
        outside.append(np.median(data.images[own, 0, :2, :2]))
    assert all(a > b for a, b in itertools.pairwise(slopes))
    assert slopes[3] == pytest.approx(slopes[0] / 2, rel=0.25)
    assert all(a < b for a, b in itertools.pairwise(outside))


def test_contrast_is_the_default_shift_and_unchanged():
    plain, named = synthetic.load(num_images=4), synthetic.load(num_images=4, shift="contrast")
    assert plain.digest == named.digest
    assert plain.digest != synthetic.load(num_images=4, shift="calibration").digest
    with pytest.raises(InputError, match="shift must be one of contrast, calibration"):
        synthetic.load(num_images=4, shift="other")
