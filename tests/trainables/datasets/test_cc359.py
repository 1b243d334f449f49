import gzip
import math
import struct

import nibabel
import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import cc359
from trainables.datasets.base import split_indices

STEMS = (
    "CC0001_philips_15_55_M",
    "CC0061_philips_3_63_F",
    "CC0121_siemens_15_61_M",
    "CC0181_siemens_3_36_F",
    "CC0241_ge_15_60_F",
    "CC0301_ge_3_45_M",
)
SHAPE = (20, 24, 15)
SPACING = (2.0, 1.5, 2.0)
# of R, A and S
LENGTHS_MM = (40, 36, 30)
RADIUS = 11
SIZE = (40, 36)


def centres(axis):
    """Where the voxels' centres lie along an axis, the middle of the volume being 0 mm."""
    return (np.arange(SHAPE[axis]) - (SHAPE[axis] - 1) / 2) * SPACING[axis]


def ball():
    x, y, z = np.meshgrid(*map(centres, range(3)), indexing="ij")
    return (x**2 + y**2 + z**2 <= RADIUS**2).astype(np.uint8)


def ramp():
    """Intensities that rise by 10 a millimetre upwards."""
    return np.broadcast_to(10 * centres(2) + 500, SHAPE).astype(np.float32)


def write_nifti(path, array, spacing=SPACING, axes="RAS"):
    """A file whose voxels are stored along other axes, lying where they would along R-A-S."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.asarray(array), np.diag([*spacing, 1]))
    ras, stored = map(nibabel.orientations.axcodes2ornt, ("RAS", axes))
    image.as_reoriented(nibabel.orientations.ornt_transform(ras, stored)).to_filename(path)


def volume_path(root, stem=STEMS[0]):
    return root / "Original" / f"{stem}.nii.gz"


def mask_path(root, stem=STEMS[0]):
    return root / "Silver-standard-machine-learning" / "Silver-standard" / f"{stem}_ss.nii.gz"


def write_pair(root, stem, **options):
    write_nifti(volume_path(root, stem), ramp(), **options)
    write_nifti(mask_path(root, stem), ball(), **options)


@pytest.fixture
def root(tmp_path):
    """A volume of each scanner, of voxels of 2 x 1.5 x 2 mm, whose brain is a ball."""
    for stem in STEMS:
        write_pair(tmp_path, stem)
    return tmp_path


def load(root, **options):
    return cc359.load(root, **{"size": SIZE, "num_slices": 4} | options)


def patch_header(path, place, *numbers):
    data = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(f"<{len(numbers)}f", data, place, *numbers)
    path.write_bytes(gzip.compress(bytes(data), 1))


def index_of(name):
    return int(name.partition("/")[2])


def test_names_tell_of_the_slices(root):
    dataset = load(root)
    assert dataset.images.shape == (24, 1, *SIZE)
    assert dataset.masks.shape == (24, *SIZE)
    assert dataset.labels == ("brain",)
    assert dataset.domain_names == (
        "philips_15",
        "philips_3",
        "siemens_15",
        "siemens_3",
        "ge_15",
        "ge_3",
    )
    np.testing.assert_array_equal(dataset.domains, np.repeat(np.arange(6), 4))
    ages = np.repeat([55, 63, 61, 36, 60, 45], 4)
    np.testing.assert_array_equal(dataset.targets, ages)
    np.testing.assert_array_equal(dataset.attributes["age"], ages)
    assert dataset.attributes["sex"] == tuple(sex for sex in "MFMFFM" for _ in range(4))
    assert dataset.groups == tuple(stem for stem in STEMS for _ in range(4))
    assert [name.partition("/")[0] for name in dataset.ids] == list(dataset.groups)
    assert (dataset.classes == -1).all()


def test_slices_are_spread_over_those_that_hold_brain(root):
    every = cc359.load(root, size=SIZE, num_slices=20)
    # The ball fills 22 of the 30 points of 1 mm along the third axis.
    held = [index_of(name) for name in every.ids[:20]]
    assert (min(held), max(held)) == (4, 25)
    assert every.masks.any(axis=(1, 2)).all()
    few = [index_of(name) for name in load(root).ids[:4]]
    assert few == [6, 12, 17, 23]
    assert load(root, num_slices=1).ids[0] == f"{STEMS[0]}/15"


def test_slices_show_the_place_that_they_name(root):
    dataset = load(root)
    low, high = np.percentile(ramp(), (1, 99))
    for image, name in zip(dataset.images[:4, 0], dataset.ids[:4], strict=True):
        height_mm = index_of(name) - (LENGTHS_MM[2] - 1) / 2
        expected = 2 * (10 * height_mm + 500 - low) / (high - low) - 1
        np.testing.assert_allclose(image, expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_lie_at_one_millimetre_in_plane(root, axis):
    shape = [-1 if each == axis else 1 for each in range(3)]
    rising = np.broadcast_to(centres(axis).reshape(shape), SHAPE).astype(np.float32)
    write_nifti(volume_path(root), rising)
    image = load(root).images[0, 0]
    low, high = np.percentile(rising, (1, 99))
    places_mm = np.arange(SIZE[axis]) - (SIZE[axis] - 1) / 2
    expected = np.clip(2 * (places_mm - low) / (high - low) - 1, -1, 1)
    # Between the two outermost voxels the image is clipped before it is interpolated.
    inner = slice(3, -3)
    along = image if axis == 0 else image.T
    np.testing.assert_allclose(along[inner, 5], expected[inner], atol=1e-5)


def test_a_balls_area_is_counted_in_square_millimetres(root):
    dataset = cc359.load(root, size=SIZE, num_slices=20)
    for mask, name in zip(dataset.masks[:20], dataset.ids[:20], strict=True):
        height_mm = index_of(name) - (LENGTHS_MM[2] - 1) / 2
        expected = math.pi * (RADIUS**2 - height_mm**2)
        if abs(height_mm) < 8:
            assert mask.sum() == pytest.approx(expected, rel=0.08)
    middle = dataset.masks[9]
    np.testing.assert_array_equal(middle, middle[::-1, ::-1])


@pytest.mark.parametrize("axes", ["LPS", "PSR", "SAL", "AIL"])
def test_volumes_are_turned_to_one_orientation(root, axes):
    random = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    blob = np.zeros(SHAPE, np.uint8)
    blob[3:9, 12:20, 2:12] = 1
    for stem, kept in ((STEMS[0], "RAS"), (STEMS[1], axes)):
        write_nifti(volume_path(root, stem), random, axes=kept)
        write_nifti(mask_path(root, stem), blob, axes=kept)
    dataset = load(root)
    np.testing.assert_allclose(dataset.images[:4], dataset.images[4:8], atol=1e-6)
    np.testing.assert_array_equal(dataset.masks[:4], dataset.masks[4:8])
    first, turned = (
        [index_of(name) for name in dataset.ids[rows]] for rows in (slice(4), slice(4, 8))
    )
    assert first == turned
    # to the left, in front
    places = np.argwhere(dataset.masks[0]).mean(axis=0)
    assert (places[0] < 15, places[1] > 20) == (True, True)


def test_voxels_of_one_millimetre_are_kept(root):
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_nifti(volume_path(root), image, spacing=(1, 1, 1))
    write_nifti(mask_path(root), ball(), spacing=(1, 1, 1))
    dataset = cc359.load(root, size=SHAPE[:2], num_slices=3)
    low, high = np.percentile(image, (1, 99))
    for row in range(3):
        index = index_of(dataset.ids[row])
        expected = np.clip((image[:, :, index] - low) / (high - low), 0, 1) * 2 - 1
        np.testing.assert_allclose(dataset.images[row, 0], expected, atol=1e-5)
        np.testing.assert_array_equal(dataset.masks[row], ball()[:, :, index])


def test_a_few_extreme_voxels_do_not_set_the_scale(root):
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_nifti(volume_path(root), image)
    before = load(root).images[:4]
    image[0, 0, :2], image[1, 0, 0] = 1e6, -1e6
    write_nifti(volume_path(root), image)
    after = load(root).images[:4]
    assert np.abs(after - before).mean() < 0.01


def test_slices_are_padded_and_cropped_centrally(root):
    whole = load(root)
    padded = load(root, size=(48, 40))
    np.testing.assert_array_equal(padded.images[:, :, 4:44, 2:38], whole.images)
    assert (padded.images[:, :, :4] == -1).all()
    assert (padded.masks.sum(), padded.masks[:, :, :2].sum()) == (whole.masks.sum(), 0)
    cropped = load(root, size=(20, 16))
    np.testing.assert_array_equal(cropped.masks, whole.masks[:, 10:30, 10:26])


def test_a_mask_may_hold_another_value_than_one(root):
    expected = load(root).masks
    write_nifti(mask_path(root), ball() * 255)
    np.testing.assert_array_equal(load(root).masks, expected)


def test_folders_may_be_nested_or_not(root):
    expected = load(root)
    (root / "Original").rename(root / "moved")
    (root / "Original").mkdir()
    (root / "moved").rename(root / "Original" / "Original")
    (root / "Silver-standard-machine-learning" / "Silver-standard").rename(root / "Silver-standard")
    (root / "Original" / "Original" / "._CC0001_philips_15_55_M.nii.gz").write_bytes(b"x")
    nested = load(root)
    assert nested.ids == expected.ids
    np.testing.assert_array_equal(nested.images, expected.images)
    (root / "release" / "Reconstructed").mkdir(parents=True)
    for name in ("Original", "Silver-standard"):
        (root / name).rename(root / "release" / "Reconstructed" / name)
    assert load(root / "release").digest == nested.digest


def test_the_digest_is_of_files_and_options(root):
    digest = load(root).digest
    assert load(root).digest == digest
    assert load(root, num_slices=5).digest != digest
    assert load(root, size=(40, 40)).digest != digest
    image = np.array(ramp())
    image[0, 0, 0] += 1
    write_nifti(volume_path(root), image)
    assert load(root).digest != digest


def test_no_split_cuts_a_person(root):
    dataset = load(root)
    splits = split_indices(dataset, seed=0)
    people = [{dataset.groups[index] for index in indices} for indices in splits.values()]
    assert sum(map(len, people)) == len(set().union(*people)) == len(STEMS)


@pytest.mark.parametrize("num_slices", [0, -1, 2.5, "4", True, None])
def test_another_number_of_slices_is_refused(root, num_slices):
    with pytest.raises(InputError, match=r"num_slices of cc359: expected a whole number of at"):
        load(root, num_slices=num_slices)


@pytest.mark.parametrize("size", [(40,), (40, 40, 40), (2, 40)])
def test_size_must_have_two_axes(root, size):
    with pytest.raises(InputError, match="size must be 2 whole numbers of at least 4"):
        load(root, size=size)


def test_more_slices_than_hold_brain_are_refused(root):
    message = r"_M_ss.nii.gz: 22 slices hold brain, expected at least 23; lower dataset.options"
    with pytest.raises(InputError, match=message):
        load(root, num_slices=23)


@pytest.mark.parametrize("name", ["Original", "Silver-standard-machine-learning"])
def test_a_missing_folder_is_named(root, name):
    (root / name).rename(root / "elsewhere")
    message = rf"holds no folder {name} with NIfTI files; dataset\.root must be the folder"
    with pytest.raises(InputError, match=message):
        load(root)
    report = cc359.check(root)
    assert (report.num_images, len(report.problems)) == (0, 1)


def test_a_volume_without_mask_is_refused(root):
    mask_path(root).unlink()
    with pytest.raises(InputError, match=r"_55_M.nii.gz' has no mask CC0001.*_M_ss.nii.gz in '"):
        load(root)


def test_a_mask_without_volume_is_refused(root):
    volume_path(root).unlink()
    with pytest.raises(
        InputError, match=r"_55_M_ss.nii.gz' has no volume CC0001.*_55_M.nii.gz in '"
    ):
        load(root)


@pytest.mark.parametrize(
    "name",
    [
        "CC0002_toshiba_15_55_M.nii.gz",
        "CC0002_philips_7_55_M.nii.gz",
        "CC0002_philips_15_M.nii.gz",
        "CC0002_philips_15_55_X.nii.gz",
        "CC0002_philips_15_55_M.nii",
        "head.nii.gz",
    ],
)
def test_another_name_is_refused(root, name):
    (root / "Original" / name).write_bytes(b"")
    with pytest.raises(InputError, match=rf"{name}': expected a name such as CC0001_.*rename it"):
        load(root)


def test_a_second_volume_of_a_subject_is_refused(root):
    write_pair(root, "CC0001_philips_15_56_M")
    with pytest.raises(InputError, match=r"15_56_M.* is of the same subject as CC0001_.*15_55_M;"):
        load(root)


@pytest.mark.parametrize("path_of", [volume_path, mask_path])
@pytest.mark.parametrize("cut", [lambda data: data[:-300], lambda data: b"no volume"])
def test_damaged_volumes_are_refused(root, path_of, cut):
    path = path_of(root)
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(InputError, match=rf"{path.name}: expected a complete NIfTI file"):
        load(root)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e-3, 1e6])
@pytest.mark.parametrize("has_affine", [True, False])
def test_spacing_that_no_scanner_has_is_refused(root, value, has_affine):
    patch_header(volume_path(root), 76 + 4 * 3, value)  # pixdim[3]
    if not has_affine:
        patch_header(volume_path(root), 252, 0.0)  # both codes of affines
    with pytest.raises(InputError, match=r"15_55_M.nii.gz: voxels of .* mm by the sizes in the"):
        load(root)


@pytest.mark.parametrize("value", [0, math.nan, math.inf, 1])
def test_an_affine_of_another_spacing_is_refused(root, value):
    patch_header(volume_path(root), 280 + 4 * 10, value)  # srow_z[2]
    with pytest.raises(InputError, match=r"voxels of 2 x 1.5 x 2 mm .* mm by its affine"):
        load(root)


def test_an_affine_whose_axes_are_parallel_is_refused(root):
    affine = np.diag([2, 1.5, 2, 1])
    affine[:3, 1] = 1.5, 0, 0
    image = nibabel.Nifti1Image(ramp(), np.diag([*SPACING, 1]))
    image.header["srow_x"], image.header["srow_y"] = affine[0], affine[1]
    image.to_filename(volume_path(root))
    patch_header(volume_path(root), 280, *affine[0], *affine[1])
    with pytest.raises(InputError, match=r"15_55_M.nii.gz: axes .* lead nowhere"):
        load(root)


def test_masks_of_another_shape_are_refused(root):
    write_nifti(mask_path(root), ball()[:-1])
    with pytest.raises(InputError, match=r"_ss.nii.gz: labels are \(19, 24, 15\), the image is"):
        load(root)


def test_an_empty_mask_is_refused(root):
    write_nifti(mask_path(root), np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match=r"_ss.nii.gz: the mask holds no brain; copy"):
        load(root)


@pytest.mark.parametrize("value", [0.5, -1, math.nan, math.inf, 2])
def test_a_mask_of_several_values_is_refused(root, value):
    mask = ball().astype(np.float32)
    mask[0, 0, 0] = value
    write_nifti(mask_path(root), mask)
    with pytest.raises(InputError, match=r"_ss.nii.gz: mask value .*expected 0 and one other"):
        load(root)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_voxels_that_are_not_finite_are_refused(root, value):
    image = np.array(ramp())
    image[0, 0, :3] = value
    write_nifti(volume_path(root), image)
    with pytest.raises(InputError, match=r"15_55_M.nii.gz: 3 voxels are not finite"):
        load(root)


def test_an_empty_volume_is_refused(root):
    write_nifti(volume_path(root), np.full(SHAPE, 5, np.float32))
    with pytest.raises(InputError, match="intensities are 5 almost everywhere"):
        load(root)


def test_gigantic_volumes_are_refused_before_they_are_decoded(root):
    data = bytearray(gzip.decompress(volume_path(root).read_bytes()))
    struct.pack_into("<3h", data, 42, 2000, 2000, 2000)  # dim
    volume_path(root).write_bytes(gzip.compress(bytes(data), 1))
    with pytest.raises(InputError, match=r"\(2000, 2000, 2000\) is above 64000000 pixels; shrink"):
        load(root)


def test_gigantic_fields_of_view_are_refused(root):
    shape = (60, 60, 60)
    for path in (volume_path(root), mask_path(root)):
        write_nifti(path, np.ones(shape, np.uint8), spacing=(10, 10, 10))
    with pytest.raises(InputError, match=r"600 x 600 x 600 mm are above 64000000 voxels of 1 mm"):
        load(root)


def test_check_counts_slices(root):
    # Its default of 24 slices needs a larger ball.
    for stem in STEMS:
        write_nifti(mask_path(root, stem), np.ones(SHAPE, np.uint8))
    report = cc359.check(root)
    assert (report.num_images, report.problems) == (144, ())
    assert report.details["domains"] == dict.fromkeys(cc359.DOMAIN_NAMES, 24)
    assert report.details["groups"] == 6
    mask_path(root, STEMS[0]).unlink()
    report = cc359.check(root)
    assert (report.num_images, len(report.problems)) == (120, 1)
    path = volume_path(root, STEMS[1])
    path.write_bytes(path.read_bytes()[:-300])
    report = cc359.check(root)
    assert (report.num_images, len(report.problems)) == (96, 2)
    assert "expected a complete NIfTI file" in report.problems[1]
    assert report.details["groups"] == 4


def test_the_middle_slice_of_one_more_volume_is_read_as_those_of_the_folder_are(root):
    path = volume_path(root)
    write_nifti(path, np.random.default_rng(0).random(SHAPE))
    read = cc359.SOURCE.read(path, path.read_bytes(), size=SIZE, num_slices=1)
    dataset = load(root, num_slices=1)
    assert index_of(dataset.ids[0]) == LENGTHS_MM[2] // 2
    np.testing.assert_array_equal(read.pixels, dataset.images[0])
    with pytest.raises(InputError, match="is above 7199 pixels"):
        cc359.SOURCE.read(path, path.read_bytes(), size=SIZE, max_pixels=7199)


def test_pixels_are_a_millimetre_wide():
    assert cc359.SOURCE.spacing_mm == (1.0, 1.0)
