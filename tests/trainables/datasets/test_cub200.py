import shutil

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import cub200

NAMES = (
    "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18",
    "002.Laysan_Albatross/Laysan_Albatross_0002_1027",
    "002.Laysan_Albatross/Laysan_Albatross_0003_1033",
)
CLASSES = "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n"


def marks():
    """What two, three and five of five annotators marked; the bird is in the upper left."""
    values = np.zeros((8, 8), np.uint8)
    values[:4, :5], values[:3, :4], values[:2, :3] = 102, 153, 255
    return values


def write_lists(folder, names=NAMES):
    """A picture's species is told by its name; all but the first are to be trained on."""
    numbered = list(enumerate(names, start=1))
    rows = {
        "images": [f"{number} {name}.jpg" for number, name in numbered],
        "image_class_labels": [f"{number} {int(name[:3])}" for number, name in numbered],
        "train_test_split": [f"{number} {int(number > 1)}" for number, _ in numbered],
    }
    for name, lines in rows.items():
        (folder / f"{name}.txt").write_text("\n".join([*lines, ""]))
    (folder / "classes.txt").write_text(CLASSES)


def write_release(root, names=NAMES):
    """Pictures of two species, the segmentations beside the folder of the pictures."""
    folder = root / "CUB_200_2011"
    rng = np.random.default_rng(0)
    for name in names:
        for place, ending in ((folder / "images", "jpg"), (root / "segmentations", "png")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            values = colours if ending == "jpg" else marks()
            Image.fromarray(values).save(place / f"{name}.{ending}")
    write_lists(folder, names)


@pytest.fixture
def root(tmp_path):
    write_release(tmp_path)
    return tmp_path


def test_fields_follow_the_lists(root):
    dataset = cub200.load(root, size=(8, 8))
    assert dataset.ids == dataset.groups == NAMES
    assert dataset.labels == cub200.SOURCE.labels == ("bird",)
    assert dataset.domain_names == ("cub200",)
    assert dataset.images.shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(dataset.domains, [0, 0, 0])
    np.testing.assert_array_equal(dataset.classes, [0, 1, 1])
    assert dataset.attributes["split"] == ("test", "train", "train")
    assert dataset.attributes["species"] == (
        "001.Black_footed_Albatross",
        "002.Laysan_Albatross",
        "002.Laysan_Albatross",
    )


def test_a_bird_is_what_most_annotators_marked(root):
    expected = np.zeros((8, 8), np.uint8)
    expected[:3, :4] = 1
    np.testing.assert_array_equal(cub200.load(root, size=(8, 8)).masks[0], expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_segmentations_of_other_pixel_types_are_read(root, mode):
    before = cub200.load(root, size=(8, 8))
    path = root / "segmentations" / f"{NAMES[0]}.png"
    Image.fromarray(marks()).convert(mode).save(path)
    after = cub200.load(root, size=(8, 8))
    np.testing.assert_array_equal(after.masks, before.masks)
    assert after.digest != before.digest


def test_coloured_and_deep_segmentations_are_refused(root):
    path = root / "segmentations" / f"{NAMES[0]}.png"
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[0, :2] = (255, 0, 0)
    Image.fromarray(colours).save(path)
    with pytest.raises(InputError, match=r"0046_18\.png: 2 pixels are coloured; expected grey"):
        cub200.load(root)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
    with pytest.raises(InputError, match=r"0046_18\.png: expected an 8-bit .* type 'I;16'"):
        cub200.load(root)
    assert cub200.check(root).num_images == 2


def test_segmentations_may_stand_within_the_folder(root):
    before = cub200.load(root, size=(8, 8))
    (root / "segmentations").rename(root / "CUB_200_2011" / "segmentations")
    for place in (root, root / "CUB_200_2011"):
        dataset = cub200.load(place, size=(8, 8))
        np.testing.assert_array_equal(dataset.images, before.images)
        np.testing.assert_array_equal(dataset.masks, before.masks)


@pytest.mark.parametrize(
    "name",
    ["images", "images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt"],
)
def test_missing_part_is_named_with_its_source(root, name):
    path = root / "CUB_200_2011" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=rf"{name}' is missing; .*caltech\.edu/records/65de6"):
        cub200.load(root)


def test_missing_segmentations_are_named_with_their_source(root):
    shutil.rmtree(root / "segmentations")
    with pytest.raises(InputError, match=r"segmentations' is missing; .*records/w9d68-gec53"):
        cub200.load(root)
    report = cub200.check(root)
    assert (report.num_images, len(report.problems)) == (0, 1)


@pytest.mark.parametrize(
    "name", [f"CUB_200_2011/images/{NAMES[1]}.jpg", f"segmentations/{NAMES[1]}.png"]
)
def test_listed_picture_without_a_file_is_refused(root, name):
    (root / name).unlink()
    with pytest.raises(InputError, match=f"{name}' is missing, but images.txt lists {NAMES[1]}"):
        cub200.load(root)
    assert cub200.check(root).num_images == 2


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("images.txt", "1 ../secret/a.jpg"),
        ("images.txt", "1 a/../b.jpg"),
        ("images.txt", "1 /a/b.jpg"),
        ("images.txt", "1 a/b.png"),
        ("images.txt", "one a/b.jpg"),
        ("image_class_labels.txt", "1 0"),
        ("train_test_split.txt", "1 2"),
        ("classes.txt", "1"),
    ],
)
def test_bad_line_is_refused(root, name, line):
    (root / "CUB_200_2011" / name).write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=rf"{name}: line 2: expected a number.*got '{line}'"):
        cub200.load(root)


def test_lists_that_disagree_are_refused(root):
    folder = root / "CUB_200_2011"
    (folder / "train_test_split.txt").write_text("1 0\n2 1\n")
    with pytest.raises(InputError, match=r"split\.txt: expected the numbers .* such as 3"):
        cub200.load(root)
    write_lists(folder)
    (folder / "classes.txt").write_text("1 001.Black_footed_Albatross\n")
    with pytest.raises(InputError, match=r"classes\.txt: class 2 of image_class_labels"):
        cub200.load(root)
    (folder / "images.txt").write_text(f"1 {NAMES[0]}.jpg\n2 {NAMES[0]}.jpg\n")
    with pytest.raises(InputError, match=r"every picture once.* got 2 lines for 1 pictures"):
        cub200.load(root)
    (folder / "images.txt").write_text("1 a/b.jpg\n1 a/c.jpg\n")
    with pytest.raises(InputError, match=r"images\.txt: line 2: expected a number, each once"):
        cub200.load(root)


def test_picture_of_another_size_and_a_truncated_one_are_refused(root):
    path = root / "segmentations" / f"{NAMES[2]}.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    with pytest.raises(InputError, match=r"0003_1033\.jpg: image is 8 x 8 pixels, its mask 5 x 5"):
        cub200.load(root)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"0003_1033\.png: expected a complete .* truncated"):
        cub200.load(root)


def test_digest_follows_files_lists_and_size(root):
    digests = [cub200.load(root, size=size).digest for size in ((8, 8), (8, 8), (16, 16))]
    (root / "CUB_200_2011" / "train_test_split.txt").write_text("1 1\n2 1\n3 1\n")
    digests.append(cub200.load(root, size=(8, 8)).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_check_reports_a_sound_folder(root):
    report = cub200.check(root)
    assert (report.num_images, report.problems) == (3, ())
    assert report.details == {"domains": {"cub200": 3}, "classes": {"0": 1, "1": 2}, "groups": 3}


def test_one_more_picture_is_read_as_those_of_the_folder_are(root):
    path = root / "CUB_200_2011" / "images" / f"{NAMES[1]}.jpg"
    read = cub200.SOURCE.read(path, path.read_bytes(), size=(6, 6))
    np.testing.assert_array_equal(read.pixels, cub200.load(root, size=(6, 6)).images[1])
