import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import leukocytes
from trainables.datasets.leukocytes import CLASS_NAMES, DEFAULT_CLASSES

# Images of each class in each domain: neutrophil, lymphocyte, monocyte, eosinophil, basophil.
COUNTS = {"wbc1": (9, 8, 8, 8, 1), "wbc2": (8, 9, 8, 8, 0), "bccd": (8, 8, 9, 8, 2)}
SHAPE = (30, 40, 3)
BOX = (10, 8, 22, 16)


def colours(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def box_xml(name, box):
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return (
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        + "</bndbox></object>"
    )


def write_boxes(root, number, *boxes):
    path = root / "bccd" / "BCCD" / "Annotations" / f"BloodImage_{number:05d}.xml"
    path.write_text(f"<annotation>{''.join(boxes)}</annotation>")
    return path


def write_labels(root, names):
    with (root / "bccd" / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("", "Image", "Category"), *(("", k, name) for k, name in names.items())]
        )


def names_of(counts):
    return [name for name, count in zip(CLASS_NAMES, counts, strict=True) for _ in range(count)]


def write_release(root):
    """A few cells of each class in every domain, in the official layouts."""
    for number in (1, 2):
        names = names_of(COUNTS[f"wbc{number}"])
        folder = root / "wbc" / f"Dataset {number}"
        folder.mkdir(parents=True)
        for k in range(len(names) + 1):  # the last has no class
            Image.fromarray(colours(k, (12, 10, 3))).save(folder / f"{k + 1:03d}.bmp")
        rows = [f"{k},{CLASS_NAMES.index(name) + 1}" for k, name in enumerate(names, start=1)]
        (root / "wbc" / f"Class Labels of Dataset {number}.csv").write_text(
            "\n".join(["image ID,class", *rows])
        )
    base = root / "bccd" / "BCCD"
    (base / "JPEGImages").mkdir(parents=True)
    (base / "Annotations").mkdir()
    names = names_of(COUNTS["bccd"])
    for k in range(len(names) + 3):
        Image.fromarray(colours(k)).save(base / "JPEGImages" / f"BloodImage_{k:05d}.jpg")
        # Boxes of other cells may be odd: some of the official ones are.
        write_boxes(root, k, box_xml("RBC", (3, 3, 3, 3)), box_xml("WBC", BOX))
    n = len(names)
    several = {n: "NEUTROPHIL, EOSINOPHIL", n + 1: "", n + 3: "MONOCYTE"}  # the last has no image
    write_labels(root, {**{k: name.upper() for k, name in enumerate(names)}, **several})


@pytest.fixture
def root(tmp_path):
    write_release(tmp_path)
    return tmp_path


def picture(root, number):
    path = root / "bccd" / "BCCD" / "JPEGImages" / f"BloodImage_{number:05d}.jpg"
    return np.asarray(Image.open(path))


def test_fields_follow_the_layout(root):
    dataset = leukocytes.load(root, size=(12, 12))
    assert dataset.domain_names == ("wbc1", "wbc2", "bccd")
    for domain, counts in enumerate(COUNTS.values()):
        own = dataset.classes[dataset.domains == domain]
        np.testing.assert_array_equal(np.bincount(own), counts[:4])
    assert dataset.images.shape == (99, 3, 12, 12)
    assert dataset.ids[0] == "wbc1/001"
    assert dataset.ids[-1] == "bccd/BloodImage_00032"
    assert dataset.labels == leukocytes.SOURCE.labels == ()
    assert dataset.masks.max() == 0
    assert leukocytes.SOURCE.class_names == DEFAULT_CLASSES


def test_cells_of_wbc_are_padded_to_squares(root):
    image = leukocytes.load(root, size=(12, 12)).images[0]
    stored = np.moveaxis(colours(0, (12, 10, 3)), -1, 0) / 127.5 - 1
    np.testing.assert_allclose(image[:, :, 1:11], stored, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(image[:, :, 0], image[:, :, 1])


def test_cells_of_bccd_are_cut_half_as_large_again(root):
    # 12 x 8 pixels about (16, 12): 18 x 18 from (7, 3)
    image = leukocytes.load(root, size=(18, 18)).images[-33]
    expected = np.moveaxis(picture(root, 0)[3:21, 7:25], -1, 0) / 127.5 - 1
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)


def test_beyond_the_image_its_edge_is_repeated(root):
    write_boxes(root, 0, box_xml("WBC", (0, 22, 8, 30)))
    # 12 x 12 about (4, 26): from (-2, 20), two columns and two rows beyond
    image = leukocytes.load(root, size=(12, 12)).images[-33]
    stored = np.moveaxis(picture(root, 0)[20:30, :10], -1, 0) / 127.5 - 1
    expected = np.pad(stored, ((0, 0), (0, 2), (2, 0)), mode="edge")
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)


def test_the_largest_box_is_cut(root):
    images = leukocytes.load(root).images
    boxes = (box_xml("WBC", (0, 0, 11, 8)), box_xml("WBC", BOX), box_xml("RBC", (0, 0, 30, 30)))
    write_boxes(root, 0, *boxes)
    np.testing.assert_array_equal(leukocytes.load(root).images, images)


def test_images_without_box_are_left_out(root):
    write_boxes(root, 0, box_xml("Platelets", BOX))
    with pytest.raises(InputError, match=r"classes left out: neutrophil \(7 in bccd\)"):
        leukocytes.load(root)
    assert "bccd/BloodImage_00000" not in leukocytes.load(root, min_per_class=7).ids


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ("wbc/Dataset 1", ("wbc2", "bccd")),
        ("wbc/Dataset 2", ("wbc1", "bccd")),
        ("wbc", ("bccd",)),
        ("bccd", ("wbc1", "wbc2")),
    ],
)
def test_missing_domains_are_left_out(root, missing, left):
    shutil.rmtree(root / missing)
    dataset = leukocytes.load(root)
    assert dataset.domain_names == left
    sizes = [sum(COUNTS[name][:4]) for name in left]
    np.testing.assert_array_equal(np.bincount(dataset.domains), sizes)
    assert list(leukocytes.check(root).details["domains"]) == list(left)


def test_classes_are_chosen_and_numbered_in_their_order(root):
    dataset = leukocytes.load(root, classes="monocyte, neutrophil")
    np.testing.assert_array_equal(np.bincount(dataset.classes), [25, 25])
    assert dataset.classes[0] == 1
    names_of = leukocytes.SOURCE.class_names_of
    assert names_of({"classes": "monocyte, neutrophil"}) == ("monocyte", "neutrophil")
    assert names_of({}) == DEFAULT_CLASSES


def test_rare_classes_are_refused_and_the_others_named(root):
    message = (
        r"left out: basophil \(1 in wbc1, 0 in wbc2, 2 in bccd\), expected at least 8 images in"
        r" every domain; set dataset.options.classes=neutrophil,monocyte, or lower"
    )
    with pytest.raises(InputError, match=message):
        leukocytes.load(root, classes="neutrophil,basophil,monocyte")
    with pytest.raises(InputError, match=r"every domain; lower dataset\.options\.min_per_class"):
        leukocytes.load(root, classes="neutrophil,basophil")
    dataset = leukocytes.load(root, classes=",".join(CLASS_NAMES), min_per_class=0)
    np.testing.assert_array_equal(np.bincount(dataset.classes), [25, 25, 25, 24, 3])


@pytest.mark.parametrize(
    "classes", ["", "neutrophil", "neutrophil,", "neutrophil,neutrophil", "neutrophil,rbc", 3, None]
)
def test_other_classes_are_refused(root, classes):
    with pytest.raises(InputError, match="classes of leukocytes: expected two or more of neutro"):
        leukocytes.load(root, classes=classes)


@pytest.mark.parametrize("number", [-1, 2.5, "4", True, None])
def test_another_least_number_is_refused(root, number):
    with pytest.raises(InputError, match="min_per_class of leukocytes: expected a whole number"):
        leukocytes.load(root, min_per_class=number)


def test_folders_without_any_cell_of_the_classes_are_refused(root):
    shutil.rmtree(root / "wbc")
    write_labels(root, {0: "BASOPHIL"})
    with pytest.raises(InputError, match="holds no neutrophil or monocyte; copy it again"):
        leukocytes.load(root, classes="neutrophil,monocyte", min_per_class=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wbc/Dataset 1/003.bmp", r"Dataset 1/003\.bmp' is missing, but .*Class Labels of"),
        ("wbc/Class Labels of Dataset 2.csv", r"Class Labels of Dataset 2\.csv: cannot be read"),
        ("bccd/labels.csv", r"bccd/labels\.csv: cannot be read"),
        ("bccd/BCCD/JPEGImages/BloodImage_00004.jpg", r"00004\.jpg' is missing, but .*4\.xml"),
        ("bccd/BCCD/Annotations/BloodImage_00004.xml", r"00004\.xml' is missing, but .*4\.jpg"),
    ],
)
def test_incomplete_copies_are_refused(root, name, message):
    (root / name).unlink()
    with pytest.raises(InputError, match=message):
        leukocytes.load(root)
    report = leukocytes.check(root)
    assert len(report.problems) == 1
    assert 60 <= report.num_images <= 99


def test_empty_lists_and_folders_are_refused(root):
    (root / "wbc" / "Class Labels of Dataset 1.csv").write_text("image ID,class label\n")
    with pytest.raises(InputError, match=r"Class Labels of Dataset 1\.csv names no image"):
        leukocytes.load(root)
    shutil.rmtree(root / "wbc")
    shutil.rmtree(root / "bccd" / "BCCD")
    with pytest.raises(InputError, match="bccd' holds no cell with a class; expected BCCD/JPEG"):
        leukocytes.load(root)


@pytest.mark.parametrize("name", ["wbc/Dataset 1/003.bmp", "bccd/BCCD/JPEGImages/BloodImage_00004"])
def test_damaged_images_are_refused(root, name):
    path = next(root.glob(f"{name}*"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=rf"{path.name}: expected a complete .* truncated file"):
        leukocytes.load(root)
    report = leukocytes.check(root)
    assert (report.num_images, len(report.problems)) == (98, 1)


@pytest.mark.parametrize(
    "row",
    [",1", ",one,MONOCYTE", ",123456,MONOCYTE", ",50,RBC", ",50,MONOCYTE,x", ",0,MONOCYTE", "50"],
)
def test_bad_labels_are_refused(root, row):
    path = root / "bccd" / "labels.csv"
    text = path.read_text().strip()
    path.write_text(f"{text}\n\n{row}\n")
    line = len(text.splitlines()) + 2
    with pytest.raises(InputError, match=rf"labels\.csv: line {line}: expected .*got '{row}'"):
        leukocytes.load(root)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "<other/>",
        f"<annotation>{box_xml('WBC', (5, 5, 5, 9))}</annotation>",
        f"<annotation>{box_xml('WBC', (5, 9, 8, 5))}</annotation>",
        f"<annotation>{box_xml('WBC', (-5, 5, 8, 9))}</annotation>",
        f"<annotation>{box_xml('WBC', (1.5, 5, 8, 9))}</annotation>",
        "<annotation><object><name>WBC</name></object></annotation>",
        "\ufeff<annotation>\ufffe</annotation>",
    ],
)
def test_bad_annotations_are_refused(root, text):
    write_boxes(root, 0).write_text(text)
    with pytest.raises(InputError, match=r"_00000\.xml: expected a complete Pascal VOC annotation"):
        leukocytes.load(root)
    assert len(leukocytes.check(root).problems) == 1


def test_annotations_of_another_encoding_are_refused(root):
    path = write_boxes(root, 0)
    path.write_bytes('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'.encode("utf-16"))
    with pytest.raises(InputError, match=r"_00000\.xml: expected a complete Pascal VOC annotation"):
        leukocytes.load(root)


@pytest.mark.parametrize(
    "entity", ['<!ENTITY b SYSTEM "file:///etc/passwd">', '<!ENTITY b "b"><!ENTITY c "&b;&b;">']
)
def test_document_types_are_refused(root, entity):
    write_boxes(root, 0).write_text(
        f'<?xml version="1.0" encoding="utf-8"?><!DOCTYPE annotation [{entity}]>'
        f"<annotation><a>&b;</a>{box_xml('WBC', BOX)}</annotation>"
    )
    with pytest.raises(InputError, match=r"_00000\.xml: holds a document type; copy"):
        leukocytes.load(root)


def test_endless_annotations_are_refused(root):
    write_boxes(root, 0, " " * 2**18)
    with pytest.raises(InputError, match=r"_00000\.xml: \d+ bytes, expected at most 262144"):
        leukocytes.load(root)


@pytest.mark.parametrize("box", [(10, 8, 41, 16), (10, 8, 22, 31), (0, 0, 99_999, 5)])
def test_boxes_beyond_the_image_are_refused(root, box):
    write_boxes(root, 0, box_xml("WBC", box))
    with pytest.raises(InputError, match=r"_00000\.xml: box \(.*\) in an image of 40 x 30 pixels;"):
        leukocytes.load(root)


def test_squares_of_gigantic_boxes_are_refused(root):
    Image.fromarray(colours(0, (1, 9000, 3))).save(
        root / "bccd" / "BCCD" / "JPEGImages" / "BloodImage_00000.jpg"
    )
    write_boxes(root, 0, box_xml("WBC", (0, 0, 9000, 1)))
    with pytest.raises(InputError, match="in an image of 9000 x 1 pixels"):
        leukocytes.load(root)


def test_digest_follows_images_boxes_lists_and_size(root, tmp_path_factory):
    digest = leukocytes.load(root).digest
    assert digest != leukocytes.load(root, size=(32, 32)).digest
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy)
    assert leukocytes.load(str(copy)).digest == digest
    write_boxes(copy, 0, box_xml("WBC", (11, 8, 22, 16)))
    assert leukocytes.load(copy).digest != digest


def test_check_counts_cells_and_says_what_is_left_out(root):
    report = leukocytes.check(root)
    assert (report.num_images, report.problems) == (99, ())
    assert report.details["domains"] == {name: sum(COUNTS[name][:4]) for name in COUNTS}
    assert report.details["cells"] == {
        name: {each: k for each, k in zip(CLASS_NAMES, counts, strict=True) if k}
        for name, counts in COUNTS.items()
    }
    assert report.details["left_out"] == {"basophil": "1 in wbc1, 0 in wbc2, 2 in bccd"}


def test_check_reports_rare_classes_as_load_refuses_them(root):
    write_labels(root, dict.fromkeys(range(20), "MONOCYTE"))
    (problem,) = leukocytes.check(root).problems
    assert "left out: neutrophil (0 in bccd); lymphocyte (0 in bccd); eosinophil" in problem


def test_one_more_picture_is_read_as_those_of_wbc_are(root):
    dataset = leukocytes.load(root, size=(8, 8))
    path = root / "wbc" / "Dataset 1" / "002.bmp"
    read = leukocytes.SOURCE.read(path, path.read_bytes(), size=(8, 8), classes="a,b")
    np.testing.assert_array_equal(read.pixels, dataset.images[1])


def test_real_data(data_dir):
    dataset = leukocytes.load(data_dir)
    assert dataset.domain_names == ("wbc1", "wbc2", "bccd")
    counts = [np.bincount(dataset.classes[dataset.domains == k]).tolist() for k in range(3)]
    assert counts == [[138, 41, 42, 19], [27, 28, 12, 10], [165, 24, 15, 70]]


def test_check_of_real_data(data_dir):
    report = leukocytes.check(data_dir)
    assert (report.num_images, report.problems) == (591, ())
    assert report.details["left_out"] == {"basophil": "0 in wbc1, 3 in wbc2, 1 in bccd"}
