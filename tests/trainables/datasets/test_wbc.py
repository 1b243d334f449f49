import shutil

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import wbc
from trainables.datasets.base import split_indices


def write_release(root, *, num_images=2):
    """So many images per stain in the official layout."""
    rng = np.random.default_rng(0)
    for number, header in ((1, "image ID,class label"), (2, "image ID,class")):
        folder = root / f"Dataset {number}"
        folder.mkdir(parents=True)
        lines = [header]
        for k in range(1, num_images + 1):
            image = rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            mask = np.zeros((12, 10), np.uint8)
            mask[3:9, 2:8], mask[5:7, 4:6] = 128, 255
            Image.fromarray(image).save(folder / f"{k:03d}.bmp")
            Image.fromarray(mask).save(folder / f"{k:03d}.png")
            lines.append(f"{k},{number if k == 1 else 5}")
        (root / f"Class Labels of Dataset {number}.csv").write_text("\n".join([*lines, ""]))


@pytest.fixture
def root(tmp_path):
    write_release(tmp_path)
    return tmp_path


def write_mask(root, value):
    mask = np.zeros((12, 10), np.uint8)
    mask[0, :3] = value
    Image.fromarray(mask).save(root / "Dataset 1" / "001.png")


def test_fields_follow_the_layout(root):
    dataset = wbc.load(root, size=(12, 12))
    assert dataset.ids == ("dataset1/001", "dataset1/002", "dataset2/001", "dataset2/002")
    assert dataset.labels == wbc.SOURCE.labels == ("nucleus", "cytoplasm")
    assert dataset.images.shape == (4, 3, 12, 12)
    np.testing.assert_array_equal(dataset.domains, [0, 0, 1, 1])
    np.testing.assert_array_equal(dataset.classes, [0, 4, 1, 4])
    assert np.isnan(dataset.targets).all()


def test_masks_are_padded_with_background_and_renumbered(root):
    mask = wbc.load(root, size=(12, 12)).masks[0]
    expected = np.zeros((12, 12), np.uint8)
    expected[3:9, 3:9], expected[5:7, 5:7] = 2, 1
    np.testing.assert_array_equal(mask, expected)


def test_images_are_normalised_and_their_edge_repeated(root):
    stored = np.asarray(Image.open(root / "Dataset 1" / "001.bmp"), dtype=np.float32)
    image = np.moveaxis(wbc.load(root, size=(12, 12)).images[0], 0, -1)
    np.testing.assert_allclose(image[:, 1:11], stored / 127.5 - 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(image[:, 0], image[:, 1])
    np.testing.assert_array_equal(image[:, 11], image[:, 10])


@pytest.mark.parametrize("value", [2, 50, 63])
def test_stray_values_below_64_are_background(root, value):
    write_mask(root, value)
    assert wbc.load(root).masks[0].max() == 0


@pytest.mark.parametrize("value", [64, 90, 127, 129, 254])
def test_foreign_mask_value_is_refused(root, value):
    write_mask(root, value)
    with pytest.raises(
        InputError, match=rf"001\.png: mask value {value} in 3 pixels; expected below 64"
    ):
        wbc.load(root)


@pytest.mark.parametrize("name", ["001.bmp", "001.png"])
def test_half_of_a_pair_is_refused(root, name):
    (root / "Dataset 2" / name).unlink()
    with pytest.raises(InputError, match=f"Dataset 2/{name}' is missing.*copy the official folder"):
        wbc.load(root)


def test_half_copied_root_is_refused(root):
    for suffix in ("bmp", "png"):
        (root / "Dataset 1" / f"002.{suffix}").unlink()
    with pytest.raises(InputError, match=r"Dataset 1/002\.bmp' is missing.*and 1 more: explorer"):
        wbc.load(root)


def test_missing_folder_is_named(root):
    shutil.rmtree(root / "Dataset 2")
    with pytest.raises(InputError, match=r"folder '.*Dataset 2' is missing"):
        wbc.load(root)


def test_empty_folder_is_named(root):
    shutil.rmtree(root / "Dataset 2")
    (root / "Dataset 2").mkdir()
    (root / "Class Labels of Dataset 2.csv").unlink()
    with pytest.raises(InputError, match=r"Dataset 2' holds no NNN\.bmp"):
        wbc.load(root)


def test_pair_of_different_sizes_is_refused(root):
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "Dataset 1" / "001.png")
    with pytest.raises(InputError, match="image is 10 x 12 pixels, its mask 5 x 5"):
        wbc.load(root)


def test_truncated_image_is_refused(root):
    path = root / "Dataset 1" / "002.bmp"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"002\.bmp: expected a complete .* truncated file"):
        wbc.load(root)


@pytest.mark.parametrize("row", ["1", "one,1", "1,6", "1,0", "1,1,1"])
def test_bad_class_list_is_refused(root, row):
    (root / "Class Labels of Dataset 1.csv").write_text(f"image ID,class label\n2,1\n\n{row}\n")
    with pytest.raises(InputError, match=f"line 4: expected an image number .*got '{row}'"):
        wbc.load(root)


def test_unlisted_images_have_no_class(root):
    (root / "Class Labels of Dataset 1.csv").write_text("image ID,class label\n2,1\n")
    (root / "Class Labels of Dataset 2.csv").unlink()
    np.testing.assert_array_equal(wbc.load(root).classes, [-1, 0, -1, -1])


def test_hidden_files_are_ignored(root):
    (root / "Dataset 1" / "._001.bmp").write_bytes(b"resource fork")
    assert len(wbc.load(root)) == 4


def test_digest_follows_content_and_size_and_not_the_place(root, tmp_path_factory):
    digest = wbc.load(root).digest
    assert digest == wbc.load(root).digest
    assert digest != wbc.load(root, size=(32, 32)).digest
    copy = tmp_path_factory.mktemp("copy") / "wbc"
    shutil.copytree(root, copy)
    assert wbc.load(str(copy)).digest == digest
    write_mask(copy, 128)
    assert wbc.load(copy).digest != digest


def test_check_counts_what_is_usable_and_reports_every_problem(root):
    write_mask(root, 100)
    (root / "Dataset 2" / "001.png").unlink()
    (root / "Dataset 2" / "002.bmp").write_bytes(b"")
    report = wbc.check(root)
    assert report.num_images == 1
    assert len(report.problems) == 3
    assert report.details == {"domains": {"dataset1": 1}, "classes": {"4": 1}, "groups": 1}


def test_real_data(data_dir):
    dataset = wbc.load(data_dir / "wbc")
    np.testing.assert_array_equal(np.bincount(dataset.domains), [240, 80])
    np.testing.assert_array_equal(np.bincount(dataset.classes[:240]), [138, 41, 42, 19])
    np.testing.assert_array_equal(np.bincount(dataset.classes[240:]), [27, 28, 12, 10, 3])
    np.testing.assert_array_equal(np.unique(dataset.masks), [0, 1, 2])
    # Shares of nucleus and cytoplasm in Dataset 2, whose images are square: published values.
    shares = [(dataset.masks[240:] == label).mean() for label in (1, 2)]
    np.testing.assert_allclose(shares, [0.101, 0.127], atol=0.01)
    assert [len(indices) for indices in split_indices(dataset, seed=0).values()] == [205, 51, 64]
    report = wbc.check(data_dir / "wbc")
    assert (report.num_images, report.problems) == (320, ())


def test_one_more_picture_is_read_as_those_of_the_folder_are(root):
    dataset = wbc.load(root, size=(8, 8))
    path = root / "Dataset 1" / "002.bmp"
    read = wbc.SOURCE.read(path, path.read_bytes(), size=(8, 8))
    np.testing.assert_array_equal(read.pixels, dataset.images[1])
    with pytest.raises(InputError, match="more than 100 pixels"):
        wbc.SOURCE.read(path, path.read_bytes(), size=(8, 8), max_pixels=100)
