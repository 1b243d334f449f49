import json

import nibabel
import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import msd_hippocampus
from trainables.datasets.base import split_indices

SHAPES = {"001": (35, 51, 36), "003": (34, 52, 35), "010": (60, 40, 35)}


def write_nifti(path, array, affine=None):
    nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)


def write_table(task, numbers=("010", "001", "003"), **changes):
    names = [f"hippocampus_{number}.nii.gz" for number in numbers]
    document = {
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
        "test": ["./imagesTs/hippocampus_002.nii.gz"],
    }
    (task / "dataset.json").write_text(json.dumps(document | changes))


def write_volumes(task, shapes):
    """Volumes of the official form, by number, on scales of their own; without the table."""
    for folder in ("imagesTr", "labelsTr"):
        (task / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for scale, (number, shape) in enumerate(shapes.items(), start=1):
        labels = np.zeros(shape, np.uint8)
        labels[10:20, 10:20, 10:20], labels[10:20, 20:30, 10:20] = 1, 2
        image = (rng.random(shape) * 10**scale).astype(np.float32)
        write_nifti(task / "imagesTr" / f"hippocampus_{number}.nii.gz", image)
        write_nifti(task / "labelsTr" / f"hippocampus_{number}.nii.gz", labels)


@pytest.fixture
def root(tmp_path):
    """Three volumes, one wider than the others."""
    task = tmp_path / "Task04_Hippocampus"
    write_volumes(task, SHAPES)
    write_table(task)
    return tmp_path


def first(root, folder):
    return root / "Task04_Hippocampus" / folder / "hippocampus_001.nii.gz"


def test_volumes_follow_the_table(root):
    dataset = msd_hippocampus.load(root)
    assert dataset.ids == tuple(f"hippocampus_{number}" for number in SHAPES)
    assert dataset.images.shape == (3, 1, 48, 64, 48)
    assert dataset.labels == ("anterior", "posterior")
    assert dataset.groups == dataset.ids
    assert dataset.digest == msd_hippocampus.load(root / "Task04_Hippocampus").digest
    assert dataset.digest != msd_hippocampus.load(root, size=(48, 48, 48)).digest


def test_volumes_are_padded_centrally_with_dark_background(root):
    image = nibabel.load(first(root, "imagesTr")).get_fdata()
    dataset = msd_hippocampus.load(root)
    low, high = np.percentile(image, (1, 99))
    inner = (slice(6, 41), slice(6, 57), slice(6, 42))
    expected = np.clip((image - low) / (high - low), 0, 1) * 2 - 1
    np.testing.assert_allclose(dataset.images[0, 0][inner], expected, rtol=1e-5, atol=1e-6)
    outside = np.ones((48, 64, 48), bool)
    outside[inner] = False
    assert (dataset.images[0, 0][outside] == -1).all()
    assert (dataset.masks[0][outside] == 0).all()
    labels = nibabel.load(first(root, "labelsTr")).get_fdata()
    np.testing.assert_array_equal(dataset.masks[0][inner], labels)


def test_volumes_are_cropped_centrally(root):
    labels = nibabel.load(first(root, "labelsTr")).get_fdata()
    mask = msd_hippocampus.load(root, size=(16, 16, 16)).masks[0]
    np.testing.assert_array_equal(mask, labels[9:25, 17:33, 10:26])


def test_intensities_do_not_depend_on_a_volumes_scale(root):
    before = msd_hippocampus.load(root).images[0]
    image = nibabel.load(first(root, "imagesTr")).get_fdata()
    write_nifti(first(root, "imagesTr"), image * 1e5 + 7)
    np.testing.assert_allclose(msd_hippocampus.load(root).images[0], before, atol=1e-5)


@pytest.mark.parametrize("size", [(48, 48), (48, 64, 2)])
def test_size_must_have_three_axes(root, size):
    with pytest.raises(InputError, match="size must be 3 whole numbers of at least 4"):
        msd_hippocampus.load(root, size=size)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_missing_volume_is_named(root, folder):
    first(root, folder).unlink()
    with pytest.raises(InputError, match=f"{folder}/hippocampus_001.nii.gz' is missing, but"):
        msd_hippocampus.load(root)
    assert msd_hippocampus.check(root).num_images == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "background", "1": "cancer"}}, r"labels: expected .*must be Task04"),
        ({"labels": None}, "labels: expected .*got null"),
        ({"training": []}, "training: expected a list of volumes"),
        ({"training": ["x"]}, "training, entry 1: expected an image"),
        ({"training": [{"image": "./imagesTr/a.nii.gz"}]}, "training, entry 1: expected an image"),
        (
            {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/b.nii.gz"}]},
            "training, entry 1: .*got './imagesTr/a.nii.gz' and './labelsTr/b.nii.gz'",
        ),
        (
            {"training": [{"image": "../../a.nii.gz", "label": "../../a.nii.gz"}]},
            "training, entry 1: expected an image",
        ),
        (
            {"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}] * 2},
            "training, entry 2: .*each once",
        ),
    ],
)
def test_bad_tables_are_refused(root, changes, message):
    write_table(root / "Task04_Hippocampus", **changes)
    with pytest.raises(InputError, match=rf"dataset\.json: {message}"):
        msd_hippocampus.load(root)
    assert "dataset.json" in msd_hippocampus.check(root).problems[0]


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_table_that_is_no_json_is_refused(root, text):
    (root / "Task04_Hippocampus" / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json: expected JSON, got a broken file"):
        msd_hippocampus.load(root)


def test_a_table_of_something_else_is_refused(root):
    (root / "Task04_Hippocampus" / "dataset.json").write_text("[]")
    with pytest.raises(InputError, match=r"dataset\.json: labels: expected"):
        msd_hippocampus.load(root)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_that_are_not_finite_are_refused(root, value):
    image = np.random.default_rng(0).random(SHAPES["001"])
    image[0, 0, :3] = value
    write_nifti(first(root, "imagesTr"), image)
    with pytest.raises(InputError, match=r"imagesTr.*: 3 voxels are not finite"):
        msd_hippocampus.load(root)


def test_an_empty_image_is_refused(root):
    write_nifti(first(root, "imagesTr"), np.full(SHAPES["001"], 5, np.float32))
    with pytest.raises(InputError, match="intensities are 5 almost everywhere"):
        msd_hippocampus.load(root)


def test_another_orientation_is_refused(root):
    for folder in ("imagesTr", "labelsTr"):
        array = nibabel.load(first(root, folder)).get_fdata()
        write_nifti(first(root, folder), array, np.diag([-1, 1, 1, 1]))
    with pytest.raises(InputError, match=r"imagesTr.*_001.*: axes L-A-S.*; expected axes R-A-S"):
        msd_hippocampus.load(root)


def test_labels_elsewhere_than_their_image_are_refused(root):
    array = nibabel.load(first(root, "labelsTr")).get_fdata()
    write_nifti(first(root, "labelsTr"), array, np.diag([1, -1, 1, 1]))
    with pytest.raises(InputError, match=r"labelsTr.*: labels have axes R-P-S.*expected the same"):
        msd_hippocampus.load(root)


def test_labels_of_another_shape_are_refused(root):
    write_nifti(first(root, "labelsTr"), np.zeros((35, 51, 35), np.uint8))
    with pytest.raises(InputError, match=r"labels are \(35, 51, 35\), the image is \(35, 51, 36\)"):
        msd_hippocampus.load(root)


def test_foreign_label_is_refused(root):
    labels = np.zeros(SHAPES["001"], np.uint8)
    labels[0, 0, 0] = 3
    write_nifti(first(root, "labelsTr"), labels)
    with pytest.raises(InputError, match=r"labelsTr.*: label 3 in 1 voxels; .*from 0 to 2"):
        msd_hippocampus.load(root)


def test_truncated_volume_is_refused_and_counted_out(root):
    path = first(root, "imagesTr")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="expected a complete NIfTI file"):
        msd_hippocampus.load(root)
    report = msd_hippocampus.check(root)
    assert (report.num_images, len(report.problems)) == (2, 1)


def test_real_data(data_dir):
    dataset = msd_hippocampus.load(data_dir / "msd_hippocampus")
    assert dataset.images.shape == (208, 1, 48, 64, 48)
    for mask in dataset.masks:
        assert set(np.unique(mask)) == {0, 1, 2}
    foreground = (dataset.masks > 0).sum(axis=(1, 2, 3))
    assert (foreground.min() >= 2382, foreground.max() <= 4401) == (True, True)
    sizes = {name: len(own) for name, own in split_indices(dataset, seed=0).items()}
    assert sizes == {"train": 133, "val": 33, "test": 42}
    report = msd_hippocampus.check(data_dir / "msd_hippocampus" / "Task04_Hippocampus")
    assert (report.num_images, report.problems) == (208, ())


def test_one_more_volume_is_read_as_those_of_the_folder_are_and_lies_where_it_lay(root):
    path = root / "Task04_Hippocampus" / "imagesTr" / "hippocampus_010.nii.gz"
    read = msd_hippocampus.SOURCE.read(path, path.read_bytes(), size=(48, 64, 48))
    np.testing.assert_array_equal(read.pixels, msd_hippocampus.load(root).images[2])
    # 60 x 40 x 35 voxels: six are cut off at the front of the first axis, twelve and six put before
    np.testing.assert_array_equal(read.affine[:3, 3], [6, -12, -6])
    np.testing.assert_array_equal(read.affine[:3, :3], np.eye(3))
