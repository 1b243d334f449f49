import shutil

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import pandental

STEMS = ("1", "2", "10")
SHAPE = (6, 12)


def picture(stem):
    return np.random.default_rng(int(stem)).integers(0, 256, SHAPE, dtype=np.uint8)


def box(*, rows, columns, value=255):
    values = np.zeros(SHAPE, np.uint8)
    values[rows, columns] = value
    return values


MANDIBLE = box(rows=slice(2, 6), columns=slice(1, 9))
TEETH = box(rows=slice(1, 4), columns=slice(4, 8))


def expected_mask(*, mandible=1, teeth=2):
    labels = np.zeros(SHAPE, np.uint8)
    labels[MANDIBLE > 0] = mandible
    labels[TEETH > 0] = teeth
    # 6 x 12 is padded to 12 x 12, three rows above and below.
    return np.pad(labels, ((3, 3), (0, 0)))


def write(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path)


def write_pictures(root, stems=STEMS):
    """Pictures with a mask of the mandible and one of the teeth."""
    for stem in stems:
        write(root / "images" / f"{stem}.png", picture(stem))
        write(root / "mandible" / f"{stem}.png", MANDIBLE)
        write(root / "teeth" / f"{stem}.png", TEETH)


@pytest.fixture
def root(tmp_path):
    write_pictures(tmp_path)
    return tmp_path


def test_fields_follow_the_layout(root):
    dataset = pandental.load(root, size=(12, 12))
    assert dataset.ids == dataset.groups == STEMS
    assert dataset.labels == pandental.SOURCE.labels == ("mandible", "teeth")
    assert dataset.domain_names == ("pandental",)
    np.testing.assert_array_equal(dataset.domains, [0, 0, 0])
    np.testing.assert_array_equal(dataset.classes, -1)
    expected = np.pad(picture("10"), ((3, 3), (0, 0)), mode="edge") / 127.5 - 1
    np.testing.assert_allclose(dataset.images[2, 0], expected, rtol=1e-5, atol=1e-6)


def test_teeth_lie_over_the_mandible_whatever_their_number(root):
    masks = pandental.load(root, size=(12, 12)).masks
    np.testing.assert_array_equal(masks[0], expected_mask())
    dataset = pandental.load(root, size=(12, 12), structures="teeth,mandible")
    assert dataset.labels == ("teeth", "mandible")
    np.testing.assert_array_equal(dataset.masks[0], expected_mask(mandible=2, teeth=1))


def test_one_structure_needs_one_folder(root):
    shutil.rmtree(root / "teeth")
    dataset = pandental.load(root, size=(12, 12), structures="mandible")
    assert dataset.labels == ("mandible",)
    np.testing.assert_array_equal(dataset.masks[0], np.pad(MANDIBLE // 255, ((3, 3), (0, 0))))
    message = r"/teeth' is missing, nor is there orig_masks.*SerdarHelli.*structures=mandible"
    with pytest.raises(InputError, match=message):
        pandental.load(root)
    labels_of = pandental.SOURCE.labels_of
    assert (labels_of({}), labels_of({"structures": "teeth"})) == (
        ("mandible", "teeth"),
        ("teeth",),
    )


@pytest.mark.parametrize("value", ["", "gums", "teeth,teeth", 1])
def test_other_structures_are_refused(root, value):
    with pytest.raises(InputError, match=r"structures of pandental: expected one or more of mandi"):
        pandental.load(root, structures=value)


def test_folders_of_the_releases_are_found(root):
    expected = pandental.load(root, size=(12, 12))
    base = root / "above" / "DentalPanoramicXrays"
    base.mkdir(parents=True)
    for old, new in (("images", "Images"), ("mandible", "Segmentation1"), ("teeth", "Orig_Masks")):
        (root / old).rename(base / new)
    write(base / "Segmentation2" / "1.png", TEETH)
    for place in (base, base.parent):
        dataset = pandental.load(place, size=(12, 12))
        assert dataset.ids == expected.ids
        np.testing.assert_array_equal(dataset.images, expected.images)
        np.testing.assert_array_equal(dataset.masks, expected.masks)


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "LA"])
def test_masks_of_other_pixel_types_are_read(root, mode):
    write(root / "mandible" / "1.png", MANDIBLE, mode)
    write(root / "teeth" / "1.png", TEETH, mode)
    write(root / "images" / "1.png", picture("1"), "RGB")
    dataset = pandental.load(root, size=(12, 12))
    np.testing.assert_array_equal(dataset.masks[0], expected_mask())
    np.testing.assert_array_equal(dataset.images[0, 0, 3:9], picture("1") / np.float32(127.5) - 1)


def test_neither_value_of_a_mask_matters(root):
    colours = np.zeros((*SHAPE, 3), np.uint8)
    colours[MANDIBLE > 0] = (70, 0, 0)
    write(root / "mandible" / "1.png", colours, "RGB")
    write(root / "mandible" / "2.png", 255 - MANDIBLE)
    write(root / "mandible" / "10.png", MANDIBLE // 255)
    for mask in pandental.load(root, size=(12, 12)).masks:
        np.testing.assert_array_equal(mask, expected_mask())


def test_a_patient_may_have_no_teeth_but_has_a_mandible(root):
    write(root / "teeth" / "2.png", np.zeros(SHAPE, np.uint8))
    masks = pandental.load(root, size=(12, 12)).masks
    np.testing.assert_array_equal(masks[1], np.pad(MANDIBLE // 255, ((3, 3), (0, 0))))
    write(root / "mandible" / "2.png", np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match=r"mandible/2\.png: no pixel is marked; expected a mandib"):
        pandental.load(root)


@pytest.mark.parametrize("name", ["mandible", "teeth"])
def test_mask_of_more_values_is_refused(root, name):
    values = MANDIBLE.copy()
    values[0, 2:6] = 128
    write(root / name / "1.png", values)
    with pytest.raises(InputError, match=rf"{name}/1\.png: 6% of the pixels are neither backgro"):
        pandental.load(root)
    assert pandental.check(root).num_images == 2
    values[0, 2:4] = 0
    write(root / name / "1.png", values)
    assert pandental.check(root).num_images == 3


@pytest.mark.parametrize("name", ["mandible", "teeth"])
def test_mask_of_another_size_and_truncated_files_are_refused(root, name):
    path = root / name / "2.png"
    write(path, MANDIBLE.T)
    message = rf"{name}/2\.png: mask is 6 x 12 pixels, its picture 12 x 6; expected the same"
    with pytest.raises(InputError, match=message):
        pandental.load(root)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{name}/2\.png: expected a complete .* truncated"):
        pandental.load(root)
    assert pandental.check(root).num_images == 2


@pytest.mark.parametrize("name", ["images", "mandible", "teeth"])
def test_missing_file_and_missing_folder_are_named(root, name):
    (root / name / "10.png").unlink()
    with pytest.raises(InputError, match=rf"{name}/10\.png' is missing, but its picture or a mask"):
        pandental.load(root)
    report = pandental.check(root)
    assert (report.num_images, len(report.problems)) == (2, 1)
    shutil.rmtree(root / name)
    with pytest.raises(InputError, match=rf"folder '.*/{name}' is missing"):
        pandental.load(root)


def test_two_files_of_one_name_and_empty_folders_are_refused(root):
    write(root / "images" / "1.BMP", picture("1"))
    with pytest.raises(InputError, match=r"images/1\.png' and 1\.BMP: expected one file of each"):
        pandental.load(root)
    for name in ("images", "mandible", "teeth"):
        shutil.rmtree(root / name)
        (root / name).mkdir()
    (root / "images" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"images' holds no pictures"):
        pandental.load(root)


@pytest.mark.parametrize("name", ["images", "mandible", "teeth"])
def test_digest_follows_every_folder(root, name):
    before = pandental.load(root, size=(12, 12)).digest
    assert before == pandental.load(root, size=(12, 12)).digest
    write(root / name / "1.png", box(rows=slice(3, 5), columns=slice(2, 5)))
    assert pandental.load(root, size=(12, 12)).digest != before


def test_endings_of_masks_may_differ(root):
    expected = pandental.load(root, size=(12, 12)).masks
    for name, ending in (("mandible", "bmp"), ("teeth", "BMP")):
        (root / name / "1.png").unlink()
        write(root / name / f"1.{ending}", MANDIBLE if name == "mandible" else TEETH)
    np.testing.assert_array_equal(pandental.load(root, size=(12, 12)).masks, expected)


def test_check_reports_what_stands(root):
    report = pandental.check(root)
    assert (report.num_images, report.problems) == (3, ())
    assert report.details["structures"] == ["mandible", "teeth"]
    shutil.rmtree(root / "mandible")
    report = pandental.check(root)
    assert report.num_images == 3
    assert report.details["structures"] == ["teeth"]
    (problem,) = report.problems
    assert "mandible' is missing, nor is there Segmentation1" in problem
    assert "structures=teeth" in problem


def test_one_more_picture_is_read_as_those_of_the_folder_are(root):
    path = root / "images" / "2.png"
    read = pandental.SOURCE.read(path, path.read_bytes(), size=(6, 6), structures="teeth")
    np.testing.assert_array_equal(read.pixels, pandental.load(root, size=(6, 6)).images[1])
    with pytest.raises(InputError, match=r"2\.png: more than 50 pixels"):
        pandental.SOURCE.read(path, path.read_bytes(), size=(6, 6), max_pixels=50)
