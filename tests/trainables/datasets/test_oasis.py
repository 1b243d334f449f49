import gzip

import nibabel
import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import oasis, oasis_labels
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


def test_scans_of_different_shape_are_refused(root):
    other = sorted(root.glob("OASIS_*"))[-1]
    for name, dtype in (("slice_norm.nii.gz", float), ("slice_seg24.nii.gz", np.uint8)):
        write_nifti(other / name, np.zeros((12, 10, 1), dtype))
    message = (
        rf"{other.name}/slice_norm.*shape \(12, 10\), but that of the first scan is \(10, 12\)"
    )
    with pytest.raises(InputError, match=message):
        oasis.load(root)
    assert any("scans must share one grid" in line for line in oasis.check(root).problems)


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
        with pytest.raises(InputError, match=r"slice_norm\.nii\.gz: expected a complete NIfTI"):
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


def test_root_with_other_files_says_which(root):
    message = (
        r"no folder of '.*' holds aligned_norm\.nii\.gz; files there: slice, 24 labels; choose"
    )
    with pytest.raises(InputError, match=message):
        oasis.load(root, files="volume")
    with pytest.raises(InputError, match=r"holds slice_seg4\.nii\.gz; files there: slice, 24"):
        oasis.load(root, segmentation=4)


def test_slices_with_four_labels(root):
    for folder in root.glob("OASIS*"):
        write_nifti(folder / "slice_seg4.nii.gz", np.full((10, 12, 1), 4), np.uint8)
    dataset = oasis.load(root, segmentation=4)
    assert dataset.labels == ("Cortex", "Subcortical-Gray-Matter", "White-Matter", "CSF")
    assert (dataset.masks == 4).all()
    assert dataset.digest != oasis.load(root).digest
    report = oasis.check(root)
    assert report.details["files"] == {"slice, 24 labels": 3, "slice, 4 labels": 3}


def test_attributes_are_the_columns_of_the_participants(root):
    (root / "participants.csv").write_text(
        "subject,site,sex,age,iq,code,note\n"
        "OASIS_OAS1_0007_MR1,b,,30,99.5,007,\n"
        "OASIS_OAS1_0001_MR1,a,F,74,-1,12,\n"
    )
    attributes = oasis.load(root).attributes
    assert set(attributes) == {"site", "sex", "age", "iq", "code"}
    assert attributes["site"] == ("a", "", "b")
    assert attributes["sex"] == ("F", "", "")
    assert attributes["code"] == ("12", "", "007")
    np.testing.assert_array_equal(attributes["age"], [74, np.nan, 30])
    np.testing.assert_array_equal(attributes["iq"], [-1, np.nan, 99.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": "volumes"}, "files of oasis: expected slice, volume, volume_2mm, got 'volumes'"),
        ({"segmentation": 35}, "segmentation of oasis: expected 24 or 4 labels .* got 35"),
        ({"files": "volume", "segmentation": 24}, "expected 35 or 4 labels for files volume"),
        ({"segmentation": "4"}, "expected 24 or 4 labels for files slice, got '4'"),
    ],
)
def test_unknown_options_are_refused_with_and_without_files(root, options, message):
    with pytest.raises(InputError, match=rf"dataset\.options\.{message}|{message}"):
        oasis.load(root, **options)
    for ask in (oasis.SOURCE.labels_of, oasis.SOURCE.size_of):
        with pytest.raises(InputError, match=message):
            ask(options)


# volumes

SHAPE = (80, 96, 112)
AFFINE = np.array([[-2, 0, 0, 79], [0, 0, 2, -111], [0, -2, 0, 95], [0, 0, 0, 1]], dtype=float)
FINE_SHAPE = (160, 192, 224)
FINE_AFFINE = np.array([[-1, 0, 0, 79.5], [0, 0, 1, -111.5], [0, -1, 0, 95.5], [0, 0, 0, 1]])


def write_volume(path, array, affine=AFFINE):
    nibabel.Nifti1Image(array, affine).to_filename(path)


@pytest.fixture
def volumes(tmp_path):
    """Two scans of two people at 2 mm: a ramp along the first axis, left half and right half."""
    ramp = np.linspace(0, 255, SHAPE[0]).astype(np.uint8)[:, None, None]
    for number, name in enumerate(("0001_MR1", "0007_MR1")):
        folder = tmp_path / f"OASIS_OAS1_{name}"
        folder.mkdir()
        image = nibabel.Nifti1Image(np.broadcast_to(ramp / 255, SHAPE), AFFINE)
        image.set_data_dtype(np.uint8)
        image.to_filename(folder / "aligned_norm_2mm.nii.gz")
        for count in (35, 4):
            labels = np.full(SHAPE, number + 1, np.uint8)
            labels[40:] = count
            write_volume(folder / f"aligned_seg{count}_2mm.nii.gz", labels)
    return tmp_path


def load_volumes(root, **options):
    return oasis.load(root, files="volume_2mm", **options)


def test_volumes_are_loaded_with_their_labels(volumes):
    dataset = load_volumes(volumes)
    assert dataset.images.shape == (2, 1, *SHAPE)
    assert len(dataset.labels) == 35
    # Stored in 8 bits.
    ramp = np.linspace(-1, 1, SHAPE[0])[:, None, None]
    assert np.abs(dataset.images[0, 0] - ramp).max() < 2 / 255
    assert (dataset.masks[1, :40] == 2).all()
    assert (dataset.masks[1, 40:] == 35).all()
    few = load_volumes(volumes, segmentation=4)
    assert few.labels[3] == "CSF"
    assert (few.masks[1, 40:] == 4).all()
    assert few.digest != dataset.digest


def test_volumes_of_one_millimetre_are_resampled_to_another_size(tmp_path):
    folder = tmp_path / "OASIS_OAS1_0001_MR1"
    folder.mkdir()
    labels = np.zeros(FINE_SHAPE, np.uint8)
    labels[:, 96:] = 35
    write_volume(folder / "aligned_norm.nii.gz", (labels > 0).astype(np.uint8), FINE_AFFINE)
    write_volume(folder / "aligned_seg35.nii.gz", labels, FINE_AFFINE)
    dataset = oasis.load(tmp_path, files="volume", size=(20, 24, 28))
    assert dataset.images.shape == (1, 1, 20, 24, 28)
    # The antialiased filter reaches one voxel over the border between the halves.
    assert (dataset.images[0, 0, :, :11] == -1).all()
    assert (dataset.images[0, 0, :, 13:] == 1).all()
    assert (dataset.masks[0, :, :12] == 0).all()
    assert (dataset.masks[0, :, 12:] == 35).all()


def test_names_of_labels_come_from_their_own_file(volumes):
    lines = ["0 Background", *(f"{number} part-{number}" for number in range(1, 36))]
    (volumes / "seg35_labels.txt").write_text("\n".join(lines))
    assert load_volumes(volumes).labels[34] == "part-35"
    assert load_volumes(volumes, segmentation=4).labels[0] == "Cortex"
    (volumes / "seg4_labels.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"seg4_labels\.txt: .* each label from 1 to 4, got"):
        load_volumes(volumes, segmentation=4)


@pytest.mark.parametrize("name", ["aligned_norm_2mm.nii.gz", "aligned_seg35_2mm.nii.gz"])
def test_a_scan_without_its_volume_is_named(volumes, name):
    first(volumes, name).unlink()
    with pytest.raises(InputError, match=rf"0001_MR1/{name}' is missing; copy the release again"):
        load_volumes(volumes)
    report = oasis.check(volumes)
    assert report.num_images == 1
    assert len(report.problems) == 1


def test_a_volume_has_three_axes(volumes):
    with pytest.raises(InputError, match="size must be 3 whole numbers of at least 4"):
        load_volumes(volumes, size=(80, 96))


def both(root, array, affine=AFFINE):
    """Write image and labels of the first scan alike."""
    write_volume(first(root, "aligned_norm_2mm.nii.gz"), array, affine)
    write_volume(first(root, "aligned_seg35_2mm.nii.gz"), array, affine)


@pytest.mark.parametrize(
    ("affine", "found"),
    [
        (np.diag([2.0, 2, 2, 1]), r"axes R-A-S, voxels of 2 x 2 x 2 mm from \(0, 0, 0\)"),
        (AFFINE @ np.diag([-1.0, 1, 1, 1]), "axes R-I-A, voxels of 2 x 2 x 2 mm"),
        (AFFINE @ np.diag([0.5, 0.5, 0.5, 1]), "axes L-I-A, voxels of 1 x 1 x 1 mm"),
    ],
)
def test_another_orientation_is_refused(volumes, affine, found):
    both(volumes, np.zeros(SHAPE, np.uint8), affine)
    with pytest.raises(
        InputError, match=rf"aligned_norm_2mm.*: {found}.*; expected axes L-I-A, voxels of 2 x 2"
    ):
        load_volumes(volumes)


def test_labels_elsewhere_than_their_image_are_refused(volumes):
    path = first(volumes, "aligned_seg35_2mm.nii.gz")
    write_volume(path, np.zeros(SHAPE, np.uint8), np.diag([2.0, 2, 2, 1]))
    with pytest.raises(InputError, match=r"seg35_2mm.*: labels have axes R-A-S, .*axes L-I-A"):
        load_volumes(volumes)


def test_volumes_of_different_shape_are_refused(volumes):
    write_volume(first(volumes, "aligned_seg35_2mm.nii.gz"), np.zeros((80, 96, 8), np.uint8))
    with pytest.raises(InputError, match=r"labels are \(80, 96, 8\), the image is \(80, 96, 112\)"):
        load_volumes(volumes)


def test_volumes_off_the_grid_of_the_release_are_refused(volumes):
    both(volumes, np.zeros((64, 64, 64), np.uint8))
    with pytest.raises(InputError, match=r"shape \(64, 64, 64\), expected \(80, 96, 112\)"):
        load_volumes(volumes)


def test_a_slice_is_no_volume(volumes):
    both(volumes, np.zeros((80, 96, 1), np.uint8))
    with pytest.raises(InputError, match=r"shape \(80, 96, 1\), expected"):
        load_volumes(volumes)


@pytest.mark.parametrize("value", [255, np.nan])
def test_voxels_outside_the_unit_range_are_refused(volumes, value):
    image = np.zeros(SHAPE, np.float32)
    image[0, 0, 0] = value
    write_volume(first(volumes, "aligned_norm_2mm.nii.gz"), image)
    with pytest.raises(InputError, match=r"aligned_norm_2mm.*intensities in .* expected \[0, 1\]"):
        load_volumes(volumes)


def test_foreign_label_of_a_volume_is_refused(volumes):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0, 0, :2] = 36
    write_volume(first(volumes, "aligned_seg35_2mm.nii.gz"), labels)
    with pytest.raises(InputError, match=r"label 36 in 2 voxels; .*use aligned_seg35_2mm of the"):
        load_volumes(volumes)


def test_truncated_volume_is_refused(volumes):
    path = first(volumes, "aligned_norm_2mm.nii.gz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="expected a complete NIfTI file"):
        load_volumes(volumes)


def test_gigantic_volume_is_refused_before_it_is_decoded(volumes):
    header = nibabel.Nifti1Header()
    header.set_data_shape((1600, 1920, 224))
    path = first(volumes, "aligned_norm_2mm.nii.gz")
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(InputError, match="above 64000000 pixels"):
        load_volumes(volumes)


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
    assert [len(splits[name]) for name in ("train", "val", "test")] == [18, 4, 6]
    assert set(dataset.attributes) >= {"sex", "age"}
    np.testing.assert_array_equal(dataset.attributes["age"], dataset.targets)
    assert dataset.digest == "5a0a5261756914ea5c54ecdba2e05c1a8cc174c546b619aabb596576f90141f6"


@pytest.mark.timeout(60)  # 100 million voxels of real scans
@pytest.mark.parametrize(
    ("folder", "files", "num_scans", "num_people", "size"),
    [
        ("oasis_malf35_1mm", "volume", 8, 8, (160, 192, 224)),
        ("oasis_malf35", "volume_2mm", 28, 24, (80, 96, 112)),
    ],
)
def test_real_volumes(data_dir, folder, files, num_scans, num_people, size):
    dataset = oasis.load(data_dir / folder, files=files)
    assert dataset.images.shape == (num_scans, 1, *size)
    assert len(set(dataset.groups)) == num_people
    assert dataset.labels == oasis_labels.SEG35
    # The source of these labels has no choroid plexus, and vessels are tiny.
    always = set(range(1, 36)) - {18, 19, 34, 35}
    for mask in dataset.masks:
        present = set(np.flatnonzero(np.bincount(mask.ravel())))
        assert always <= present - {0} <= always | {18, 34}
    white = dataset.images[:, 0][np.isin(dataset.masks, (1, 20))]
    assert abs(np.median(white) - (2 * 110 / 255 - 1)) < 0.02
    few = oasis.load(data_dir / folder, files=files, segmentation=4)
    assert np.all(np.bincount(few.masks.ravel()) > 0)
    assert len(few.labels) == few.masks.max() == 4
    # Cerebral white matter is white in both.
    assert (few.masks[np.isin(dataset.masks, (1, 20))] == 3).all()


def test_real_people_are_in_one_split(data_dir):
    dataset = oasis.load(data_dir / "oasis_malf35", files="volume_2mm")
    for seed in range(3):
        splits = split_indices(dataset, seed=seed)
        people = [{dataset.groups[index] for index in own} for own in splits.values()]
        assert sum(map(len, people)) == len(set.union(*people)) == 24


def test_real_folders_are_checked_whole(data_dir):
    report = oasis.check(data_dir / "oasis_malf35")
    assert (report.num_images, report.problems) == (28, ())
    assert report.details["files"] == dict.fromkeys(
        ("slice, 24 labels", "slice, 4 labels", "volume_2mm, 35 labels", "volume_2mm, 4 labels"), 28
    )


def test_one_more_slice_is_read_as_those_of_the_folder_are(root):
    path = first(root, "slice_norm.nii.gz")
    read = oasis.SOURCE.read(path, path.read_bytes(), size=(5, 6))
    np.testing.assert_array_equal(read.pixels, oasis.load(root, size=(5, 6)).images[0])
    assert read.affine is None


def test_one_more_volume_is_read_as_those_of_the_folder_are_and_lies_where_it_lay(volumes):
    path = first(volumes, "aligned_norm_2mm.nii.gz")
    dataset = load_volumes(volumes, size=(40, 48, 56))
    read = oasis.SOURCE.read(path, path.read_bytes(), size=(40, 48, 56), files="volume_2mm")
    np.testing.assert_array_equal(read.pixels, dataset.images[0])
    # the centre of eight voxels is that of the one that they became
    corner = AFFINE @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(read.affine @ [0, 0, 0, 1], corner, rtol=1e-12)
    np.testing.assert_allclose(read.affine[:3, :3], 2 * AFFINE[:3, :3], rtol=1e-12)
    with pytest.raises(InputError, match=r"shape .*, expected \(160, 192, 224\)"):
        oasis.SOURCE.read(path, path.read_bytes(), size=(40, 48, 56), files="volume")
