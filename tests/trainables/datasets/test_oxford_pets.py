import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import oxford_pets


def write_pictures(root, *names):
    """Pictures with their trimaps in the official layout, without lists."""
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        trimap = np.full((8, 8), 2, np.uint8)
        trimap[2:6, 2:6], trimap[3:5, 3:5] = 3, 1
        Image.fromarray(image).save(root / "images" / f"{name}.jpg")
        Image.fromarray(trimap).save(root / "annotations" / "trimaps" / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    """Two cats and a dog in the official layout, and a picture that no list names."""
    write_pictures(tmp_path, "Bengal_1", "Abyssinian_2", "american_bulldog_3", "Bengal_9")
    lists = tmp_path / "annotations"
    (lists / "trainval.txt").write_text("Bengal_1 6 1 2\nAbyssinian_2 1 1 1\n")
    (lists / "test.txt").write_text("#Image CLASS-ID SPECIES BREED ID\namerican_bulldog_3 2 2 1\n")
    return tmp_path


def test_fields_follow_the_lists(root):
    dataset = oxford_pets.load(root, size=(8, 8))
    assert dataset.ids == ("Abyssinian_2", "Bengal_1", "american_bulldog_3")
    assert dataset.labels == oxford_pets.SOURCE.labels == ("pet",)
    assert dataset.domain_names == ("cat", "dog")
    np.testing.assert_array_equal(dataset.domains, [0, 0, 1])
    np.testing.assert_array_equal(dataset.classes, [0, 5, 1])
    assert dataset.digest != oxford_pets.load(root, size=(16, 16)).digest


def test_border_counts_as_pet(root):
    expected = np.zeros((8, 8), np.uint8)
    expected[2:6, 2:6] = 1
    np.testing.assert_array_equal(oxford_pets.load(root, size=(8, 8)).masks[0], expected)


@pytest.mark.parametrize("value", [0, 4, 255])
def test_foreign_trimap_value_is_refused(root, value):
    trimap = np.full((8, 8), 2, np.uint8)
    trimap[0, 0] = value
    Image.fromarray(trimap).save(root / "annotations" / "trimaps" / "Bengal_1.png")
    with pytest.raises(InputError, match=rf"Bengal_1\.png: mask value {value} in 1 pixels"):
        oxford_pets.load(root)
    assert oxford_pets.check(root).num_images == 2


@pytest.mark.parametrize("name", ["images/Bengal_1.jpg", "annotations/trimaps/Bengal_1.png"])
def test_listed_picture_without_files_is_refused(root, name):
    (root / name).unlink()
    with pytest.raises(InputError, match=f"{name}' is missing, but the lists name Bengal_1"):
        oxford_pets.load(root)


@pytest.mark.parametrize("name", ["trainval.txt", "test.txt"])
def test_missing_list_is_named(root, name):
    (root / "annotations" / name).unlink()
    with pytest.raises(InputError, match=f"annotations/{name}' is missing"):
        oxford_pets.load(root)


@pytest.mark.parametrize(
    "line", ["Bengal_1", "Bengal_1 6 3 2", "../Bengal_1 6 1 2", "Bengal_1 0 1 2"]
)
def test_bad_line_is_refused(root, line):
    (root / "annotations" / "test.txt").write_text(f"{line}\n")
    with pytest.raises(InputError, match=rf"test\.txt: line 1: expected name, class.*got '{line}'"):
        oxford_pets.load(root)


def test_picture_in_both_lists_and_empty_lists_are_refused(root):
    (root / "annotations" / "test.txt").write_text("Bengal_1 6 1 2\n")
    with pytest.raises(InputError, match=r"every picture once.*got 3 lines for 2 pictures"):
        oxford_pets.load(root)
    for name in oxford_pets.LISTS:
        (root / "annotations" / name).write_text("")
    with pytest.raises(InputError, match="got 0 lines for 0 pictures"):
        oxford_pets.load(root)


def test_check_reports_a_sound_folder(root):
    report = oxford_pets.check(root)
    assert (report.num_images, report.problems) == (3, ())
    assert report.details["domains"] == {"cat": 2, "dog": 1}


def test_real_data(data_dir):
    dataset = oxford_pets.load(data_dir / "oxford_pets", size=(64, 64))
    # One of the 480 pictures is in neither list.
    np.testing.assert_array_equal(np.bincount(dataset.domains), [319, 160])
    np.testing.assert_array_equal(np.unique(dataset.classes), [0, 1, 5])
    np.testing.assert_array_equal(np.unique(dataset.masks), [0, 1])
    assert 0.2 < dataset.masks.mean() < 0.5


def test_one_more_picture_is_read_as_those_of_the_folder_are(root):
    path = root / "images" / "Bengal_1.jpg"
    read = oxford_pets.SOURCE.read(path, path.read_bytes(), size=(6, 6))
    np.testing.assert_array_equal(read.pixels, oxford_pets.load(root, size=(6, 6)).images[1])
