import shutil

import nibabel
import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import brain_age
from trainables.datasets.base import split_indices

# A volume that fills the field of view with voxels of 8 mm.
SHAPE = (20, 24, 20)
SPACING = (8.0, 8.0, 8.0)
HEADER = "participant_id\tage\tsite\tsex"
ROWS = (
    "sub-01\t23\tixi\tF",
    "sub-02\t71.5\tadni\tM",
    "sub-03\t8\tixi\tn/a",
    "sub-04\t44\tcamcan\tM",
)


def brain(seed=0):
    """Random intensities in the middle of background."""
    values = np.zeros(SHAPE, np.float32)
    inner = (slice(4, 16), slice(5, 19), slice(4, 16))
    values[inner] = np.random.default_rng(seed).uniform(100, 900, (12, 14, 12))
    return values


def write_volume(path, values, spacing=SPACING, axes="RAS"):
    """A file whose voxels are stored along other axes, lying where they would along R-A-S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.asarray(values), np.diag([*spacing, 1]))
    ras, stored = map(nibabel.orientations.axcodes2ornt, ("RAS", axes))
    image.as_reoriented(nibabel.orientations.ornt_transform(ras, stored)).to_filename(path)


def volume_path(root, name="sub-01"):
    return root / name / "anat" / f"{name}_T1w.nii.gz"


def write_table(root, *rows, header=HEADER, name="participants.tsv"):
    (root / name).write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def root(tmp_path):
    """Four volumes of three sites in the manner of BIDS."""
    for seed, row in enumerate(ROWS):
        write_volume(volume_path(tmp_path, row[:6]), brain(seed))
    write_table(tmp_path, *ROWS)
    return tmp_path


def load(root, **options):
    return brain_age.load(root, **{"size": SHAPE} | options)


def scaled(values):
    low, high = np.percentile(values[values != 0], (1, 99))
    pixels = np.clip((values - low) / (high - low), 0, 1) * 2 - 1
    return np.where(values == 0, -1, pixels)


def test_fields_follow_the_table(root):
    dataset = load(root)
    assert dataset.ids == dataset.groups == ("sub-01", "sub-02", "sub-03", "sub-04")
    assert dataset.domain_names == ("adni", "camcan", "ixi")
    np.testing.assert_array_equal(dataset.domains, [2, 0, 2, 1])
    np.testing.assert_array_equal(dataset.targets, [23, 71.5, 8, 44])
    assert brain_age.SOURCE.target_name == "age (years)"
    np.testing.assert_array_equal(dataset.attributes["age"], dataset.targets)
    assert dataset.attributes["site"] == ("ixi", "adni", "ixi", "camcan")
    assert dataset.attributes["sex"] == ("F", "M", "", "M")
    assert dataset.images.shape == (4, 1, *SHAPE)
    assert dataset.labels == brain_age.SOURCE.labels == ()
    assert not dataset.masks.any()
    assert (dataset.classes == -1).all()


def test_the_default_size_has_voxels_of_two_millimetres(root):
    assert brain_age.load(root).images.shape[1:] == (1, *brain_age.SOURCE.size)
    assert brain_age.SOURCE.size == (80, 96, 80)
    path = volume_path(root)
    read = brain_age.SOURCE.read(path, path.read_bytes(), size=(80, 96, 80))
    np.testing.assert_allclose(np.linalg.norm(read.affine[:3, :3], axis=0), 2)


def test_intensities_are_scaled_by_percentiles_of_the_brain(root):
    image = load(root).images[0, 0]
    np.testing.assert_allclose(image, scaled(brain()), rtol=1e-5, atol=1e-6)
    assert (image[brain() == 0] == -1).all()


def test_zero_is_background_whatever_the_scale(root):
    values = brain()
    values[values != 0] -= 500
    write_volume(volume_path(root), values)
    image = load(root).images[0, 0]
    np.testing.assert_allclose(image, scaled(values), rtol=1e-5, atol=1e-5)
    assert (image[values == 0] == -1).all()


def test_a_bright_vessel_does_not_set_the_scale(root):
    before = load(root).images[0]
    values = brain()
    values[8, 8, 8:10] = 1e6
    write_volume(volume_path(root), values)
    assert np.abs(load(root).images[0] - before).mean() < 0.01


@pytest.mark.parametrize("axes", ["LPS", "PSR", "SAL", "LIA"])
def test_volumes_are_turned_to_one_orientation(root, axes):
    expected = load(root).images[0]
    write_volume(volume_path(root), brain(), axes=axes)
    np.testing.assert_allclose(load(root).images[0], expected, atol=1e-6)


def test_the_field_of_view_is_cut_and_padded_about_the_middle(root):
    expected = load(root).images[0, 0]
    large = np.full((24, 24, 22), 5e5, np.float32)
    large[2:22, :, 1:21] = brain()
    write_volume(volume_path(root), large)
    np.testing.assert_allclose(load(root).images[0, 0], expected, atol=1e-6)
    write_volume(volume_path(root), brain()[2:18, 3:21, 4:16])
    np.testing.assert_allclose(load(root).images[0, 0], expected, atol=1e-6)


def test_voxels_of_any_size_show_the_same_place(root):
    places = [4 * (np.arange(length) + 0.5) for length in (40, 48, 40)]
    x, y, z = np.meshgrid(*places, indexing="ij")
    fine = (1000 + x + 2 * y + 3 * z).astype(np.float32)
    flat = fine.reshape(20, 2, 48, 20, 2).mean(axis=(1, 4))
    middle = (slice(1, -1),) * 3  # the outermost voxels have neighbours on one side only
    write_volume(volume_path(root), fine, spacing=(4, 4, 4))
    expected = load(root).images[0, 0]
    write_volume(volume_path(root), flat, spacing=(8, 4, 8))
    np.testing.assert_allclose(load(root).images[0, 0][middle], expected[middle], atol=0.02)


@pytest.mark.parametrize(
    "place",
    [
        "sub-{0}/anat/sub-{0}_T1w.nii",
        "sub-{0}_T1w.nii.gz",
        "{0}/{0}.nii.gz",
        "{0}.nii.gz",
    ],
)
@pytest.mark.parametrize("prefix", ["sub-", ""])
def test_volumes_are_found_by_id(root, place, prefix):
    expected = load(root)
    volume_path(root).unlink()
    write_volume(root / place.format("01"), brain())
    write_table(root, f"{prefix}01\t23\tixi\tF", *ROWS[1:])
    dataset = load(root)
    assert dataset.ids[0] == f"{prefix}01"
    np.testing.assert_array_equal(dataset.images, expected.images)


def test_a_column_of_files_comes_first(root):
    write_volume(root / "more" / "a.nii.gz", brain(9))
    write_table(
        root,
        "sub-01\t23\tixi\tmore/a.nii.gz",
        "sub-02\t71.5\tadni\tn/a",
        header="participant_id\tage\tsite\tfile",
    )
    dataset = load(root)
    np.testing.assert_allclose(dataset.images[0, 0], scaled(brain(9)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.images[1, 0], scaled(brain(1)), rtol=1e-5, atol=1e-6)
    assert "sex" not in dataset.attributes


@pytest.fixture
def scans(tmp_path):
    """Three scans of two people of one site, named by a table with commas."""
    for seed, name in enumerate(("A_1", "A_2", "B_1")):
        write_volume(tmp_path / name / "norm.nii.gz", brain(seed))
    write_table(
        tmp_path,
        "A_1,A,20",
        "A_2,A,21",
        "B_1,B,80",
        header="subject,person,age",
        name="participants.csv",
    )
    return tmp_path


def test_options_tell_of_a_folder_of_another_kind(scans):
    dataset = load(scans, image="norm.nii.gz", site="oasis", group="person")
    assert dataset.ids == ("A_1", "A_2", "B_1")
    assert dataset.groups == ("A", "A", "B")
    assert dataset.domain_names == ("oasis",)
    np.testing.assert_array_equal(dataset.targets, [20, 21, 80])
    assert load(scans, image="norm.nii.gz", site="oasis").groups == dataset.ids
    (scans / "participants.csv").rename(scans / "all.csv")
    again = load(scans, image="norm.nii.gz", site="oasis", group="person", table="all.csv")
    np.testing.assert_array_equal(again.images, dataset.images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "no.tsv"}, r"holds no no\.tsv; dataset\.root must be"),
        ({"table": "../all.csv"}, r"options\.table of brain_age: expected a file below its"),
        ({"image": "/norm.nii.gz"}, r"options\.image of brain_age: expected a file below its"),
        ({"site": 3}, r"options\.site of brain_age: expected a text, got 3"),
        ({"group": "family"}, r"participants\.csv: no column family; expected participant_id"),
        ({"site": ""}, r"participants\.csv: no column site; expected the site of each volume"),
        ({"image": "t1.nii.gz"}, r"line 2: '.*A_1/t1\.nii\.gz' is missing; copy it again"),
        ({"image": ""}, r"sub-A_1_T1w\.nii\.gz' is missing, nor one of the 7 other names"),
    ],
)
def test_wrong_options_are_refused(scans, options, message):
    with pytest.raises(InputError, match=message):
        load(scans, **{"image": "norm.nii.gz", "site": "oasis"} | options)


def test_a_site_is_told_once(root):
    with pytest.raises(InputError, match=r"column site, and dataset\.options\.site is 'here'"):
        load(root, site="here")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("participant_id\tage\tscanner\tsex", "no column site; expected the site of each volume"),
        ("participant_id\tyears\tsite\tsex", "no column age; expected participant_id"),
        ("name\tyears\tsite\tsex", "no column participant_id, age; expected participant_id"),
        ("participant_id,age,site,sex", "no column participant_id, age"),
        ("", "no column participant_id, age"),
    ],
)
def test_a_table_without_a_column_is_refused(root, header, message):
    write_table(root, *ROWS, header=header)
    with pytest.raises(InputError, match=rf"participants\.tsv: {message}"):
        load(root)
    assert message in brain_age.check(root).problems[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("sub-05\t30\tixi", "expected 4 columns, got 3; correct the row"),
        ("sub-05\tn/a\tixi\tF", "expected an age from 0 to 120 years, got 'n/a'; fill it in"),
        ("sub-05\t\tixi\tF", "expected an age from 0 to 120 years, got ''"),
        ("sub-05\t-3\tixi\tF", "expected an age from 0 to 120 years, got '-3'"),
        ("sub-05\tnan\tixi\tF", "expected an age from 0 to 120 years, got 'nan'"),
        ("sub-05\t372\tixi\tF", "expected an age from 0 to 120 years, got '372'"),
        ("sub-05\t30\tn/a\tF", "expected a site, got 'n/a'; fill it in"),
        ("sub-05\t30\tixi\tF", "'.*sub-05_T1w.nii.gz' is missing, nor one of the 7 other names"),
        ("sub-02\t30\tixi\tF", "sub-02 has a row already; take one out"),
        ("02\t30\tixi\tF", "sub-02/anat/sub-02_T1w.nii.gz is of another row already"),
        ("../sub-02\t30\tixi\tF", "expected an id of letters, digits, .* got '../sub-02'"),
        ("\t30\tixi\tF", "expected an id of letters, digits, .* got ''"),
    ],
)
def test_a_bad_row_is_refused(root, row, message):
    write_table(root, *ROWS, "", row)
    with pytest.raises(InputError, match=rf"participants\.tsv: line 7: {message}"):
        load(root)


def test_a_file_elsewhere_is_refused(root):
    write_table(root, "sub-01\t23\tixi\t/etc/a.nii", header="participant_id\tage\tsite\tfile")
    with pytest.raises(InputError, match="line 2: expected a file below the table's folder"):
        load(root)


def test_a_blank_person_is_refused(root):
    write_table(root, "sub-01\t23\tixi\tn/a")
    with pytest.raises(InputError, match="line 2: expected a person in column sex, got a blank"):
        load(root, group="sex")


def test_a_table_without_rows_is_refused(root):
    write_table(root)
    with pytest.raises(InputError, match=r"participants\.tsv: no row; expected one for each"):
        load(root)


def test_a_table_that_is_no_text_is_refused(root):
    (root / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"participants\.tsv: expected UTF-8 text"):
        load(root)


@pytest.mark.parametrize(
    ("values", "spacing", "message"),
    [
        (np.zeros(SHAPE, np.float32), SPACING, "the middle 160 x 192 x 160 mm hold zeros alone"),
        (np.ones(SHAPE, np.float32), SPACING, "intensities are 1 almost everywhere"),
        (np.full(SHAPE, np.nan, np.float32), SPACING, "9600 voxels are not finite"),
        (brain(), (0.1, 8, 8), "voxels of 0.1 x 8 x 8 mm .* expected three directions"),
        (brain(), (8, 8, 80), "voxels of 8 x 8 x 80 mm .* voxels from 0.45 to 10 mm"),
        (np.ones((4, 5), np.float32), SPACING, "expected one volume such as"),
    ],
)
def test_a_damaged_volume_is_refused(root, values, spacing, message):
    path = volume_path(root)
    nibabel.Nifti1Image(values, np.diag([*spacing, 1])).to_filename(path)
    with pytest.raises(InputError, match=rf"sub-01_T1w\.nii\.gz: .*{message}"):
        load(root)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([8, 0, 0, 0], r"axes .*\?.* expected three directions in space"),
        ([np.nan, 8, 0, 0], "an affine that is not finite; expected three directions in space"),
    ],
)
def test_axes_that_lead_nowhere_are_refused(root, column, message):
    image = nibabel.Nifti1Image(brain(), np.diag([*SPACING, 1]))
    affine = np.diag([*SPACING, 1])
    affine[:, 1] = column
    image.header.set_sform(affine, code=1)
    nibabel.Nifti1Image(brain(), None, image.header).to_filename(volume_path(root))
    with pytest.raises(InputError, match=message):
        load(root)


def test_a_truncated_volume_is_refused(root):
    path = volume_path(root, "sub-02")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"sub-02_T1w\.nii\.gz: expected a complete NIfTI file"):
        load(root)


@pytest.mark.parametrize("size", [(80, 96), (2, 96, 80), (80.0, 96, 80)])
def test_a_wrong_size_is_refused(root, size):
    with pytest.raises(InputError, match="dataset 'brain_age': size must be 3 whole numbers"):
        load(root, size=size)


def test_the_digest_is_of_the_table_and_the_volumes(root):
    digest = load(root).digest
    assert load(root).digest == digest
    assert load(root, size=(16, 16, 16)).digest != digest
    write_table(root, "sub-01\t24\tixi\tF", *ROWS[1:])
    changed = load(root).digest
    assert changed != digest
    write_volume(volume_path(root), brain(9))
    assert load(root).digest != changed


def test_check_counts_what_is_usable_and_reports_every_problem(root):
    report = brain_age.check(root)
    assert (report.num_images, report.problems) == (4, ())
    assert report.details["domains"] == {"ixi": 2, "adni": 1, "camcan": 1}
    volume_path(root, "sub-02").write_bytes(b"")
    shutil.rmtree(root / "sub-03")
    write_table(root, *ROWS, "sub-05\tn/a\tixi\tF")
    report = brain_age.check(root)
    assert report.num_images == 2
    assert len(report.problems) == 3
    assert report.details["domains"] == {"ixi": 1, "camcan": 1}


def test_one_more_volume_is_read_as_those_of_the_folder_are(root):
    write_volume(volume_path(root), brain()[2:18], axes="LIA")
    dataset = load(root)
    path = volume_path(root)
    read = brain_age.SOURCE.read(path, path.read_bytes(), size=SHAPE, site="here")
    np.testing.assert_array_equal(read.pixels, dataset.images[0])
    # two voxels were padded before the first along R
    np.testing.assert_allclose(
        read.affine, [[8, 0, 0, -16], [0, 8, 0, 0], [0, 0, 8, 0], [0] * 3 + [1]]
    )
    with pytest.raises(InputError, match="is above 100 pixels"):
        brain_age.SOURCE.read(path, path.read_bytes(), size=SHAPE, max_pixels=100)


def test_a_resampled_volume_keeps_its_edges(root):
    path = volume_path(root)
    read = brain_age.SOURCE.read(path, path.read_bytes(), size=(40, 48, 40))
    np.testing.assert_allclose(np.diag(read.affine), [4, 4, 4, 1])
    np.testing.assert_allclose(read.affine[:3, 3], -2)


def test_real_data(data_dir):
    dataset = brain_age.load(
        data_dir / "oasis_malf35",
        image="aligned_norm_2mm.nii.gz",
        site="oasis",
        group="oasis_id",
    )
    assert dataset.images.shape == (28, 1, 80, 96, 80)
    assert len(set(dataset.groups)) == 24
    assert (dataset.targets.min(), dataset.targets.max()) == (18, 90)
    # Brains fit into the field of view, and their volume is that of brains, in litres.
    is_brain = dataset.images[:, 0] > -1
    for axis in (1, 2, 3):
        assert not is_brain.take([0, -1], axis).any()
    litres = is_brain.sum(axis=(1, 2, 3)) * 8e-6
    assert 1.2 < litres.min() < litres.max() < 1.7
    # The mean brain is like its mirror image: the first axis leads from side to side.
    mean = dataset.images[:, 0].mean(axis=0)
    unlike = [np.abs(mean - np.flip(mean, axis)).mean() for axis in range(3)]
    assert 2 * unlike[0] < min(unlike[1:])
    assert sum(map(len, split_indices(dataset, seed=0).values())) == 28
    report = brain_age.check(data_dir / "oasis_malf35")
    assert report.num_images == 0
    assert "no column site" in report.problems[0]
