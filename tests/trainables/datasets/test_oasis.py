import gzip

import nibabel
import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import oasis
from trainables.datasets.base import split_indices


def write_nifti(path, array, dtype=np.float32):
    nibabel.Nifti1Image(np.asarray(array, dtype=dtype), np.eye(4)).to_filename(path)


@pytest.fixture
def root(tmp_path):
    """Two scans of a woman and one of a person of whom nothing is known, 10 x 12 pixels."""
    for index, name in enumerate(("0001_MR1", "0001_MR2", "0007_MR1")):
        folder = tmp_path / f"OASIS_OAS1_{name}"
        folder.mkdir()
        image = np.linspace(0, 1, 120).reshape(10, 12, 1)
        labels = np.full((10, 12, 1), index + 1)
        labels[:5] = 24
        write_nifti(folder / "slice_norm.nii.gz", image)
        write_nifti(folder / "slice_seg24.nii.gz", labels, np.uint8)
    (tmp_path / "participants.csv").write_text(
        "subject,sex,age\nOASIS_OAS1_0001_MR1,F,74\nOASIS_OAS1_0001_MR2,F,\nOASIS_OAS1_0099_MR1,M,20\n"
    )
    return tmp_path


def first(root, name):
    return root / "OASIS_OAS1_0001_MR1" / name


def test_fields_follow_folders_and_participants(root):
    dataset = oasis.load(root, size=(10, 12))
    assert dataset.ids[2] == "OASIS_OAS1_0007_MR1"
    assert dataset.groups == ("OAS1_0001", "OAS1_0001", "OAS1_0007")
    assert dataset.images.shape == (3, 1, 10, 12)
    np.testing.assert_array_equal(dataset.classes, [0, 0, -1])
    np.testing.assert_array_equal(dataset.targets, [74, np.nan, np.nan])
    assert dataset.labels == oasis.SOURCE.labels


def test_intensities_are_mapped_and_labels_kept(root):
    dataset = oasis.load(root, size=(10, 12))
    expected = np.linspace(-1, 1, 120).reshape(10, 12)
    np.testing.assert_allclose(dataset.images[1, 0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dataset.masks[1, :5], 24)
    np.testing.assert_array_equal(dataset.masks[1, 5:], 2)


def test_another_size_resamples(root):
    dataset = oasis.load(root, size=(5, 6))
    assert dataset.images.shape == (3, 1, 5, 6)
    # Means over 2 x 2 pixels of a linear ramp are the ramp in between, away from the border.
    ramp = np.linspace(-1, 1, 120).reshape(10, 12)
    means = ramp.reshape(5, 2, 6, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(dataset.images[0, 0, 1:-1, 1:-1], means[1:-1, 1:-1], atol=1e-5)
    assert set(np.unique(dataset.masks[0])) == {1, 24}
    assert dataset.digest != oasis.load(root, size=(10, 12)).digest


def test_label_names_come_from_the_file(root):
    lines = ["0 Background", *(f"{number} part-{number}" for number in range(1, 25))]
    (root / "seg24_labels.txt").write_text("\n".join(lines))
    assert oasis.load(root).labels == tuple(f"part-{number}" for number in range(1, 25))
    (root / "seg24_labels.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"seg24_labels\.txt: expected one line 'number name'"):
        oasis.load(root)
    assert "seg24_labels.txt" in oasis.check(root).problems[0]


def test_missing_slice_is_named(root):
    first(root, "slice_seg24.nii.gz").unlink()
    with pytest.raises(InputError, match=r"0001_MR1/slice_seg24\.nii\.gz' is missing; copy"):
        oasis.load(root)


def test_half_copied_root_is_refused(root):
    (root / "subjects.txt").write_text("OASIS_OAS1_0001_MR1\nOASIS_OAS1_0400_MR1\n")
    with pytest.raises(InputError, match=r"OASIS_OAS1_0400_MR1' is missing, but subjects\.txt"):
        oasis.load(root)


def test_folder_with_another_name_is_refused(root):
    (root / "OASIS_OAS1_12_MR1").mkdir()
    with pytest.raises(InputError, match="OASIS_OAS1_12_MR1': expected OASIS_OAS1_XXXX_MRn"):
        oasis.load(root)


@pytest.mark.parametrize("value", [25, 0.5, -1])
def test_foreign_label_is_refused(root, value):
    labels = np.zeros((10, 12, 1))
    labels[0, 0] = value
    write_nifti(first(root, "slice_seg24.nii.gz"), labels)
    with pytest.raises(InputError, match=rf"slice_seg24.*: label {value:g} in 1 pixels"):
        oasis.load(root)


@pytest.mark.parametrize("value", [255, -1, np.nan])
def test_intensities_outside_the_unit_range_are_refused(root, value):
    write_nifti(first(root, "slice_norm.nii.gz"), np.full((10, 12, 1), value))
    with pytest.raises(InputError, match=r"slice_norm.*intensities in .* expected \[0, 1\]"):
        oasis.load(root)


def test_slices_of_different_shape_are_refused(root):
    write_nifti(first(root, "slice_norm.nii.gz"), np.zeros((12, 10, 1)))
    with pytest.raises(InputError, match=r"labels are \(10, 12\), the image is \(12, 10\)"):
        oasis.load(root)


def test_volume_is_refused(root):
    write_nifti(first(root, "slice_norm.nii.gz"), np.zeros((10, 12, 3)))
    with pytest.raises(InputError, match=r"shape \(10, 12, 3\), expected one slice"):
        oasis.load(root)


def test_gigantic_slice_is_refused_before_it_is_decoded(root):
    header = nibabel.Nifti1Header()
    header.set_data_shape((9000, 9000, 1))
    first(root, "slice_norm.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(InputError, match="above 64000000 pixels"):
        oasis.load(root)


def test_colours_are_refused(root):
    colours = np.zeros((10, 12, 1), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.Nifti1Image(colours, np.eye(4)).to_filename(first(root, "slice_norm.nii.gz"))
    with pytest.raises(InputError, match="expected numbers, got"):
        oasis.load(root)


def test_broken_and_truncated_files_are_refused(root):
    path = first(root, "slice_norm.nii.gz")
    data = path.read_bytes()
    plain = gzip.decompress(data)
    for broken in (
        b"",
        b"no image",
        data[:-30],
        gzip.compress(plain[:100]),
        gzip.compress(plain[:400]),
    ):
        path.write_bytes(broken)
        with pytest.raises(
            InputError, match=r"slice_norm\.nii\.gz: expected a complete gzipped NIfTI"
        ):
            oasis.load(root)
    assert oasis.check(root).num_images == 2


@pytest.mark.parametrize("row", [",F,20", "OASIS_OAS1_0001_MR1,X,20", "OASIS_OAS1_0001_MR1,F,old"])
def test_bad_participants_are_refused(root, row):
    (root / "participants.csv").write_text(f"subject,sex,age\n{row}\n")
    with pytest.raises(
        InputError, match=r"participants\.csv: line 2: expected the columns subject"
    ):
        oasis.load(root)


def test_root_without_lists_loads(root):
    (root / "participants.csv").unlink()
    dataset = oasis.load(root)
    assert (dataset.classes == -1).all()
    assert np.isnan(dataset.targets).all()


def test_real_data(data_dir):
    dataset = oasis.load(data_dir / "oasis_malf35")
    assert dataset.labels == oasis.LABELS
    assert dataset.images.shape == (28, 1, 160, 192)
    assert len(set(dataset.groups)) == 24
    always = {1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 18, 19, 20, 22, 23}
    for mask in dataset.masks:
        assert always <= set(np.unique(mask)) - {0} <= always | {4, 8, 17, 21}
    assert (dataset.targets.min(), dataset.targets.max()) == (18, 90)
    # Median white matter is 110 of 255 in whole volumes; one slice is a part of them.
    white = dataset.images[:, 0][np.isin(dataset.masks, (1, 14))]
    assert abs(np.median(white) - (2 * 110 / 255 - 1)) < 0.05
    splits = split_indices(dataset, seed=0)
    people = [{dataset.groups[index] for index in indices} for indices in splits.values()]
    assert sum(map(len, people)) == 24
