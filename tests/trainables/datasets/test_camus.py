import shutil
import zlib

import nibabel
import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import camus
from trainables.datasets.base import split_indices

PEOPLE = ("patient0001", "patient0002")
STEMS = tuple(f"{view}_{instant}" for view in ("2CH", "4CH") for instant in ("ED", "ES"))
INFO = "ED: 1\nES: 18\nNbFrame: 18\nSex: F\nAge: 56\nImageQuality: {}\nEF: 54.5\nFrameRate: 50.5\n"


def picture(person, stem):
    """Rows and columns: dark, with a mark in the upper right corner; 8 rows, 6 columns."""
    number = int(person.removeprefix("patient")) - 1
    values = np.full((8, 6), (20 * number + 5 * STEMS.index(stem)) % 256, np.uint8)
    values[:2, 4:] = 255
    return values


def marks():
    """The ventricle on top, its muscle around it, the atrium below and to the left."""
    labels = np.zeros((8, 6), np.uint8)
    labels[1:5, 1:5], labels[2:4, 2:4], labels[5:7, 0:2] = 2, 1, 3
    return labels


def write_mhd(path, values, *, is_packed=False):
    rows, columns = values.shape
    path.with_suffix(".raw").write_bytes(
        zlib.compress(values.tobytes()) if is_packed else values.tobytes()
    )
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = {is_packed}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
        f"ElementSpacing = 0.308 0.154 1.54\nDimSize = {columns} {rows} 1\n"
        f"ElementType = MET_UCHAR\nElementDataFile = {path.stem}.raw\n"
    )


def write_nifti(path, values):
    """As SimpleITK writes one: columns first, and axes that lead to the left and to the front."""
    nibabel.Nifti1Image(values.T, np.diag([-0.308, -0.154, 1, 1])).to_filename(path)


def write_release(folder, write, suffix, people=PEOPLE):
    for person in people:
        (folder / person).mkdir(parents=True)
        for stem in STEMS:
            write(folder / person / f"{person}_{stem}{suffix}", picture(person, stem))
            write(folder / person / f"{person}_{stem}_gt{suffix}", marks())
        for view, quality in (("2CH", "Good"), ("4CH", "Poor")):
            (folder / person / f"Info_{view}.cfg").write_text(INFO.format(quality))


@pytest.fixture
def root(tmp_path):
    """The release of today: two people, their official splits beside them."""
    write_release(tmp_path / "database_nifti", write_nifti, ".nii.gz")
    lists = tmp_path / "database_split"
    lists.mkdir()
    (lists / "subgroup_training.txt").write_text("patient0002\n")
    (lists / "subgroup_testing.txt").write_text("patient0001\n")
    return tmp_path


@pytest.fixture
def old(tmp_path):
    """The challenge's release: MetaImages below `training`."""
    write_release(tmp_path / "old" / "training", write_mhd, ".mhd")
    return tmp_path / "old"


def first(root, name):
    return root / "database_nifti" / "patient0001" / name


def test_fields_follow_the_layout(root):
    dataset = camus.load(root, size=(8, 8))
    assert dataset.ids == tuple(f"{person}/{stem}" for person in PEOPLE for stem in STEMS)
    assert dataset.groups == ("patient0001",) * 4 + ("patient0002",) * 4
    assert dataset.labels == camus.SOURCE.labels == ("left-ventricle", "myocardium", "left-atrium")
    assert dataset.domain_names == camus.SOURCE.domain_names == ("2CH", "4CH")
    assert dataset.images.shape == (8, 1, 8, 8)
    np.testing.assert_array_equal(dataset.domains, [0, 0, 1, 1] * 2)
    np.testing.assert_array_equal(dataset.classes, -1)


def test_attributes_are_those_of_the_info_files_and_the_splits(root):
    first(root, "Info_4CH.cfg").unlink()
    attributes = camus.load(root, size=(8, 8)).attributes
    assert set(attributes) == {"sex", "age", "image_quality", "ejection_fraction", "split"}
    assert attributes["split"] == ("testing",) * 4 + ("training",) * 4
    assert attributes["sex"] == ("F", "F", "", "", "F", "F", "F", "F")
    assert attributes["image_quality"][:2] + attributes["image_quality"][-2:] == (
        ("Good", "Good", "Poor", "Poor")
    )
    np.testing.assert_array_equal(attributes["age"], [56, 56, np.nan, np.nan, 56, 56, 56, 56])
    np.testing.assert_array_equal(attributes["ejection_fraction"][:3], [54.5, 54.5, np.nan])


def test_images_come_out_upright(root):
    dataset = camus.load(root, size=(8, 8))
    # 8 x 6 is padded to 8 x 8, one column on either side.
    for index, sample in enumerate(dataset.ids):
        person, stem = sample.split("/")
        expected = np.pad(picture(person, stem), ((0, 0), (1, 1)), mode="edge")
        np.testing.assert_allclose(
            dataset.images[index, 0], expected / 127.5 - 1, rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(dataset.masks[index], np.pad(marks(), ((0, 0), (1, 1))))


@pytest.mark.parametrize("is_packed", [False, True])
def test_both_formats_give_the_same_images(root, old, is_packed):
    for person in PEOPLE:
        write_mhd(
            old / "training" / person / f"{person}_2CH_ED.mhd",
            picture(person, "2CH_ED"),
            is_packed=is_packed,
        )
    today, before = (camus.load(each, size=(16, 12)) for each in (root, old))
    assert today.ids == before.ids
    np.testing.assert_array_equal(today.images, before.images)
    np.testing.assert_array_equal(today.masks, before.masks)
    assert today.digest != before.digest


def test_the_folder_of_the_patients_may_be_the_root(old):
    expected = camus.load(old, size=(8, 8))
    dataset = camus.load(old / "training", size=(8, 8))
    assert dataset.ids == expected.ids
    np.testing.assert_array_equal(dataset.images, expected.images)


def test_unpacked_nifti_files_are_read(root):
    path = first(root, "patient0001_2CH_ED.nii.gz")
    expected = camus.load(root, size=(8, 8)).images
    write_nifti(first(root, "patient0001_2CH_ED.nii"), picture("patient0001", "2CH_ED"))
    path.unlink()
    np.testing.assert_array_equal(camus.load(root, size=(8, 8)).images, expected)


def test_views_and_instants_are_chosen(root):
    for path in (root / "database_nifti").glob("*/*_2CH_ES*"):
        path.unlink()
    dataset = camus.load(root, size=(8, 8), views="4CH,2CH", instants="ED")
    assert dataset.ids[:2] == ("patient0001/4CH_ED", "patient0001/2CH_ED")
    assert dataset.domain_names == ("4CH", "2CH")
    np.testing.assert_array_equal(dataset.domains, [0, 1, 0, 1])
    assert camus.load(root, size=(8, 8), views="4CH").domain_names == ("4CH",)
    with pytest.raises(InputError, match=r"2CH_ES\.nii\.gz' is missing.*and 3 more: explorer"):
        camus.load(root)


@pytest.mark.parametrize("option", ["views", "instants"])
@pytest.mark.parametrize("value", ["", "3CH", "2CH,2CH", "ED,ED", 2])
def test_other_options_are_refused(root, option, value):
    with pytest.raises(InputError, match=rf"dataset\.options\.{option} of camus: expected one or"):
        camus.load(root, **{option: value})


@pytest.mark.parametrize("name", ["patient0001_4CH_ED.nii.gz", "patient0001_4CH_ED_gt.nii.gz"])
def test_missing_file_is_named(root, name):
    first(root, name).unlink()
    with pytest.raises(InputError, match=f"patient0001/{name}' is missing, nor is there"):
        camus.load(root)
    assert camus.check(root).num_images == 7


def test_missing_patient_of_a_list_is_named(root):
    shutil.rmtree(root / "database_nifti" / "patient0002")
    message = r"database_nifti/patient0002' is missing, but subgroup_training\.txt lists it"
    with pytest.raises(InputError, match=message):
        camus.load(root)


def test_folder_without_patients_is_refused_with_the_source(tmp_path):
    (tmp_path / "database_nifti").mkdir()
    message = r"holds no folder patientNNNN; dataset\.root must be .*creatis\.insa-lyon.*registrat"
    with pytest.raises(InputError, match=message):
        camus.load(tmp_path)


def test_other_folders_and_lists_are_refused(root):
    (root / "database_nifti" / "patient3").mkdir()
    with pytest.raises(InputError, match=r"patient3': expected patientNNNN; rename it"):
        camus.load(root)
    shutil.rmtree(root / "database_nifti" / "patient3")
    (root / "database_split" / "subgroup_testing.txt").write_text("../../secret\n")
    with pytest.raises(InputError, match=r"subgroup_testing\.txt: expected one .*'\.\./\.\./secr"):
        camus.load(root)
    (root / "database_split" / "subgroup_testing.txt").write_text("patient0002\n")
    with pytest.raises(InputError, match=r"subgroup_testing\.txt: expected one .* in one list"):
        camus.load(root)
    (root / "database_split" / "subgroup_testing.txt").unlink()
    first(root, "Info_2CH.cfg").write_text("Age 56\n")
    with pytest.raises(InputError, match=r"Info_2CH\.cfg: expected lines such as .*got 'Age 56'"):
        camus.load(root)


@pytest.mark.parametrize("value", [4, 255])
def test_foreign_label_is_refused(root, value):
    labels = marks()
    labels[0, :3] = value
    write_nifti(first(root, "patient0001_2CH_ED_gt.nii.gz"), labels)
    with pytest.raises(InputError, match=rf"2CH_ED_gt\.nii\.gz: label {value} in 3 pixels; expec"):
        camus.load(root)


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan])
def test_foreign_intensity_is_refused(root, value):
    values = picture("patient0001", "2CH_ED").astype(np.float32)
    values[0, 0] = value
    write_nifti(first(root, "patient0001_2CH_ED.nii.gz"), values)
    with pytest.raises(
        InputError, match=r"2CH_ED\.nii\.gz: intensities in .* whole numbers from 0"
    ):
        camus.load(root)


def test_labels_of_another_size_are_refused(root):
    write_nifti(first(root, "patient0001_2CH_ED_gt.nii.gz"), marks().T)
    with pytest.raises(InputError, match=r"ED\.nii\.gz: image is 6 x 8 pixels, its mask 8 x 6"):
        camus.load(root)


def test_sequence_and_truncated_file_are_refused(root):
    path = first(root, "patient0001_2CH_ED.nii.gz")
    nibabel.Nifti1Image(np.zeros((6, 8, 5), np.uint8), np.eye(4)).to_filename(path)
    with pytest.raises(InputError, match=r"2CH_ED\.nii\.gz: shape \(6, 8, 5\), expected one slice"):
        camus.load(root)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"2CH_ED\.nii\.gz: expected a complete NIfTI"):
        camus.load(root)


def test_damaged_metaimages_are_refused(old):
    folder = old / "training" / "patient0001"
    data = folder / "patient0001_2CH_ED.raw"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"2CH_ED\.raw: got 47 pixels, expected 48, the 6 x 8"):
        camus.load(old)
    data.unlink()
    with pytest.raises(InputError, match=r"2CH_ED\.raw' is missing, but patient0001_2CH_ED\.mhd"):
        camus.load(old)
    assert camus.check(old).num_images == 7


@pytest.mark.parametrize("name", ["../../secret.raw", "/etc/hostname", "patient0001_2CH_ED.raw"])
def test_header_that_names_another_file_is_refused(old, name):
    (old / "secret.raw").write_bytes(bytes(48))
    header = old / "training" / "patient0001" / "patient0001_2CH_ED_gt.mhd"
    text = header.read_text().replace("patient0001_2CH_ED_gt.raw", name)
    header.write_text(text)
    with pytest.raises(InputError, match=r"2CH_ED_gt\.mhd: ElementDataFile: expected .*, got"):
        camus.load(old)
    assert camus.check(old).num_images == 7


@pytest.mark.parametrize("name", ["patient0001_2CH_ED.mhd", "patient0001_2CH_ED.raw"])
def test_digest_follows_header_and_pixels(old, name):
    before = camus.load(old, size=(8, 8)).digest
    path = old / "training" / "patient0001" / name
    content = path.read_bytes()
    is_header = name.endswith("mhd")
    path.write_bytes(
        content.replace(b"Offset = 0 0 0", b"Offset = 0 0 1") if is_header else b"\x01" * 48
    )
    assert camus.load(old, size=(8, 8)).digest != before


def test_digest_follows_infos_lists_and_size(root):
    digests = {camus.load(root, size=size).digest for size in ((8, 8), (8, 8), (16, 16))}
    assert len(digests) == 2
    first(root, "Info_2CH.cfg").write_text("Age: 57\n")
    digests.add(camus.load(root, size=(8, 8)).digest)
    (root / "database_split" / "subgroup_testing.txt").unlink()
    digests.add(camus.load(root, size=(8, 8)).digest)
    assert len(digests) == 4


def test_splits_keep_people_together(tmp_path):
    write_release(tmp_path, write_mhd, ".mhd")
    for number in range(3, 12):
        shutil.copytree(tmp_path / "patient0001", tmp_path / f"patient{number:04d}")
        for path in (tmp_path / f"patient{number:04d}").glob("patient0001*"):
            path.rename(path.with_name(path.name.replace("0001", f"{number:04d}", 1)))
        for path in (tmp_path / f"patient{number:04d}").glob("*.mhd"):
            path.write_text(path.read_text().replace("patient0001", f"patient{number:04d}"))
    dataset = camus.load(tmp_path, size=(8, 8))
    people = [
        {dataset.groups[index] for index in indices}
        for indices in split_indices(dataset, seed=0).values()
    ]
    assert sum(map(len, people)) == len(set.union(*people)) == 11


def test_check_reports_sound_folders(root, old):
    for folder in (root, old):
        report = camus.check(folder)
        assert (report.num_images, report.problems) == (8, ())
        assert report.details["domains"] == {"2CH": 4, "4CH": 4}
        assert report.details["groups"] == 2


def test_one_more_image_is_read_as_those_of_the_folder_are(root, old):
    path = first(root, "patient0001_2CH_ES.nii.gz")
    pixels = camus.SOURCE.read(path, path.read_bytes(), size=(6, 6), views="2CH").pixels
    np.testing.assert_array_equal(pixels, camus.load(root, size=(6, 6)).images[1])
    header = old / "training" / "patient0001" / "patient0001_2CH_ES.mhd"
    with pytest.raises(InputError, match=r"2CH_ES\.mhd: half of a MetaImage; .* bring it as NIfTI"):
        camus.SOURCE.read(header, header.read_bytes(), size=(6, 6))
