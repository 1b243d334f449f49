import shutil

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError
from trainables.datasets import cxr
from trainables.datasets.base import split_indices

SHAPE = (12, 16)

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
NIH_ROWS = (
    ("00000001_000.png", "Cardiomegaly", 1),
    ("00000001_001.png", "Cardiomegaly|Emphysema|Effusion", 1),
    ("00000002_000.png", "No Finding", 2),
    ("00000003_000.png", "Pneumothorax|Atelectasis|Consolidation", 3),
)
CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
VINDR_COLUMNS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Consolidation,Pleural effusion,"
    "Pneumothorax,No finding"
)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def write_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)


def write_rows(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def nih_row(name, findings, patient):
    return f"{name},{findings},0,{patient},58,M,PA,2682,2749,0.143,0.143"


def chexpert_row(path, view="Frontal", cardiomegaly="", pneumothorax="", effusion=""):
    path = f"CheXpert-v1.0-small/{path}"
    return (
        f"{path},Female,68,{view},AP,1.0,,{cardiomegaly},,,,,,0.0,{pneumothorax},{effusion},,,1.0"
    )


def vindr_row(
    name, *readers, atelectasis=0, cardiomegaly=0, consolidation=0, effusion=0, pneumothorax=0
):
    findings = (1, atelectasis, 0, cardiomegaly, consolidation, effusion, pneumothorax, 0)
    return ",".join(map(str, (name, *readers, *findings)))


def write_nih(root):
    folder = root / "nih"
    for seed, (name, _, _) in enumerate(NIH_ROWS):
        write_image(folder / "images" / name, seed)
    table = folder / "Data_Entry_2017_v2020.csv"
    write_rows(table, NIH_HEADER, *(nih_row(*row) for row in NIH_ROWS))


def write_chexpert(root):
    folder = root / "chexpert"
    write_rows(
        folder / "train.csv",
        CHEXPERT_HEADER,
        chexpert_row("train/patient00001/study1/view1_frontal.jpg", "Frontal", "-1.0", "1.0", ""),
        chexpert_row("train/patient00001/study2/view1_frontal.jpg", "Frontal", "", "", "1.0"),
        chexpert_row("train/patient00001/study2/view2_lateral.jpg", "Lateral", "", "", "1.0"),
    )
    write_rows(
        folder / "valid.csv",
        CHEXPERT_HEADER,
        chexpert_row("valid/patient64541/study1/view1_frontal.jpg", "Frontal", "1.0", "0.0", "0.0"),
    )
    write_image(folder / "train/patient00001/study1/view1_frontal.jpg")
    write_image(folder / "train/patient00001/study2/view1_frontal.jpg")
    write_image(folder / "valid/patient64541/study1/view1_frontal.jpg")


def write_vindr(root):
    folder = root / "vindr"
    write_rows(
        folder / "annotations" / "image_labels_train.csv",
        f"image_id,rad_id,{VINDR_COLUMNS}",
        vindr_row("0a1b", "R1", atelectasis=1, effusion=1),
        vindr_row("2c3d", "R1"),
        vindr_row("0a1b", "R2", atelectasis=1),
        vindr_row("0a1b", "R8"),
    )
    write_rows(
        folder / "annotations" / "image_labels_test.csv",
        f"image_id,{VINDR_COLUMNS}",
        vindr_row("4e5f", effusion=1),
    )
    write_image(folder / "train" / "0a1b.png")
    write_image(folder / "train" / "2c3d.jpg")
    write_image(folder / "test" / "4e5f.png")


@pytest.fixture
def root(tmp_path):
    write_nih(tmp_path)
    write_chexpert(tmp_path)
    write_vindr(tmp_path)
    return tmp_path


def load(root, **options):
    return cxr.load(root, **{"size": (12, 12)} | options)


def nih_table(root):
    return root / "nih" / "Data_Entry_2017_v2020.csv"


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_fields_follow_the_layouts(root):
    dataset = load(root)
    assert dataset.ids == (
        "nih/00000001_000",
        "nih/00000001_001",
        "nih/00000002_000",
        "nih/00000003_000",
        "chexpert/train/patient00001/study1/view1_frontal",
        "chexpert/train/patient00001/study2/view1_frontal",
        "chexpert/valid/patient64541/study1/view1_frontal",
        "vindr/train/0a1b",
        "vindr/train/2c3d",
        "vindr/test/4e5f",
    )
    assert dataset.domain_names == cxr.SOURCE.domain_names == ("nih", "chexpert", "vindr")
    np.testing.assert_array_equal(dataset.domains, [0] * 4 + [1] * 3 + [2] * 3)
    assert dataset.groups[:4] == ("nih/1", "nih/1", "nih/2", "nih/3")
    assert dataset.groups[4:7] == ("chexpert/patient00001",) * 2 + ("chexpert/patient64541",)
    assert dataset.groups[7:] == ("vindr/0a1b", "vindr/2c3d", "vindr/4e5f")
    assert dataset.images.shape == (10, 1, 12, 12)
    assert dataset.labels == cxr.SOURCE.labels == ()
    assert not dataset.masks.any()
    assert (dataset.classes == -1).all()
    assert np.isnan(dataset.targets).all()


def test_findings_of_three_vocabularies_are_one(root):
    assert cxr.SOURCE.finding_names == (
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Effusion",
        "Pneumothorax",
    )
    unknown = np.nan
    expected = [
        [0, 1, 0, 0, 0],
        [0, 1, 0, 1, 0],
        [0, 0, 0, 0, 0],
        [1, 0, 1, 0, 1],
        # uncertain cardiomegaly; blanks are 0
        [0, unknown, 0, 0, 1],
        [0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0],
        # two of three readers saw atelectasis, one an effusion
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
    ]
    np.testing.assert_array_equal(load(root).findings, expected)


def test_half_of_the_readers_leave_a_finding_unknown(root):
    table = root / "vindr" / "annotations" / "image_labels_train.csv"
    replace(table, vindr_row("0a1b", "R8") + "\n", "")
    np.testing.assert_array_equal(load(root).findings[7], [1, 0, 0, np.nan, 0])


def test_pictures_are_the_central_square_in_grey(root):
    image = load(root).images[0, 0]
    expected = pixels(0)[:, 2:14].astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)
    wide = load(root, size=(6, 16)).images[0, 0]
    np.testing.assert_allclose(wide, pixels(0)[3:9] / 127.5 - 1, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_files_may_be_stored_in_colour(root, mode):
    expected = load(root)
    path = root / "nih" / "images" / "00000001_000.png"
    Image.fromarray(pixels(0)).convert(mode).save(path)
    np.testing.assert_array_equal(load(root).images, expected.images)


def test_the_default_size_is_that_of_the_source(root):
    assert cxr.load(root).images.shape[1:] == (cxr.SOURCE.channels, *cxr.SOURCE.size)
    assert cxr.SOURCE.size == (224, 224)


@pytest.mark.parametrize("name", ["nih", "chexpert", "vindr"])
def test_a_domain_may_be_absent_and_others_keep_their_numbers(root, name):
    whole = load(root)
    shutil.rmtree(root / name)
    rest = load(root)
    number = whole.domain_names.index(name)
    np.testing.assert_array_equal(rest.domains, whole.domains[whole.domains != number])
    assert rest.domain_names == whole.domain_names


def test_no_domain_is_refused(root):
    for name in cxr.DOMAIN_NAMES:
        shutil.rmtree(root / name)
    with pytest.raises(InputError, match=r"no folder nih, chexpert, vindr; dataset\.root must"):
        load(root)


def test_the_older_table_and_folders_of_the_nih_are_read(root):
    expected = load(root)
    folder = root / "nih"
    table = nih_table(root)
    lines = table.read_text().splitlines()
    table.unlink()
    # every line of that table ends with a comma
    write_rows(folder / "Data_Entry_2017.csv", *(f"{line}," for line in lines), "")
    for place, name in (("images_001", "00000001_000.png"), ("images_012", "00000003_000.png")):
        (folder / place / "images").mkdir(parents=True)
        (folder / "images" / name).rename(folder / place / "images" / name)
    again = load(root)
    assert again.ids == expected.ids
    np.testing.assert_array_equal(again.findings, expected.findings)
    np.testing.assert_array_equal(again.images, expected.images)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (nih_row("1.png", "Mass", 9), "expected an image such as 00000001_000.png .*'1.png'"),
        (nih_row("../images/00000001_000.png", "Mass", 9), "expected an image such as"),
        (nih_row("00000009_000.png", "Mass", "x"), "the number of a patient, got .* and 'x'"),
        (nih_row("00000009_000.png", "Mass|Cough", 9), "unknown finding 'Cough'"),
        (nih_row("00000009_000.png", "", 9), "unknown finding ''"),
        (nih_row("00000001_000.png", "Mass", 1), "00000001_000.png has a row already"),
        (nih_row("00000009_000.png", "Mass", 9), "00000009_000.png is in no folder of images"),
        ("00000009_000.png,Mass,0", "expected 11 columns, got 3"),
        (nih_row("00000009_000.png", "Mass", 9) + ",1", "expected 11 columns, got 12"),
    ],
)
def test_a_bad_row_of_the_nih_is_refused(root, row, message):
    table = nih_table(root)
    write_rows(table, *table.read_text().splitlines(), "", row)
    with pytest.raises(InputError, match=rf"Data_Entry_2017_v2020\.csv: line 7: .*{message}"):
        load(root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (chexpert_row("../patient00001.jpg"), "expected a path such as CheXpert-v1.0-small/train"),
        (
            chexpert_row("train/patient00001/study1/view1_frontal.jpg", "Lateral"),
            "and its view, got .* and 'Lateral'",
        ),
        (
            chexpert_row("train/patient00009/study1/view1_frontal.jpg", effusion="2.0"),
            "expected 1.0, 0.0, -1.0 or a blank, got .*'2.0'",
        ),
        (
            chexpert_row("train/patient00001/study1/view1_frontal.jpg"),
            "train/patient00001/study1/view1_frontal.jpg has a row already",
        ),
        (
            chexpert_row("train/patient00009/study1/view1_frontal.jpg"),
            "'.*patient00009/study1/view1_frontal.jpg' is missing",
        ),
        ("CheXpert-v1.0-small/train", "expected 19 columns, got 1"),
    ],
)
def test_a_bad_row_of_chexpert_is_refused(root, row, message):
    table = root / "chexpert" / "valid.csv"
    write_rows(table, *table.read_text().splitlines(), row)
    with pytest.raises(InputError, match=rf"valid\.csv: line 3: .*{message}"):
        load(root)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (vindr_row("../0a1b", "R1"), "expected the id of an image .*got '../0a1b'"),
        (vindr_row("2c3d", "R2", effusion=-1), "and 1 or 0 for each finding, got .*'-1'"),
        (vindr_row("2c3d", "R1"), "2c3d has a row of reader R1 already"),
        (vindr_row("9999", "R1"), r"9999\.png or \.jpg is missing in '.*vindr/train'"),
        ("2c3d,R2,1", "expected 10 columns, got 3"),
    ],
)
def test_a_bad_row_of_vindr_is_refused(root, row, message):
    table = root / "vindr" / "annotations" / "image_labels_train.csv"
    write_rows(table, *table.read_text().splitlines(), row)
    with pytest.raises(InputError, match=rf"image_labels_train\.csv: line 6: .*{message}"):
        load(root)


def test_an_image_of_the_test_set_has_one_row(root):
    table = root / "vindr" / "annotations" / "image_labels_test.csv"
    write_rows(table, *table.read_text().splitlines(), vindr_row("4e5f"))
    with pytest.raises(InputError, match="line 3: 4e5f has a row already"):
        load(root)


@pytest.mark.parametrize("name", ["0a1b.dicom", "0a1b.dcm"])
def test_dicom_files_are_refused_once_for_all(root, name):
    folder = root / "vindr" / "train"
    (folder / "0a1b.png").rename(folder / name)
    (folder / "2c3d.jpg").rename(folder / "2c3d.dicom")
    with pytest.raises(
        InputError, match=f"{name}' and 1 more are DICOM files, which are not read; convert each to"
    ):
        load(root)
    assert len(cxr.check(root).problems) == 1
    write_image(folder / "0a1b.png")
    write_image(folder / "2c3d.png")
    assert len(load(root)) == 10


@pytest.mark.parametrize(
    "name",
    [
        "nih/Data_Entry_2017_v2020.csv",
        "chexpert/train.csv",
        "chexpert/valid.csv",
        "vindr/annotations/image_labels_train.csv",
        "vindr/annotations/image_labels_test.csv",
    ],
)
def test_a_missing_table_is_named(root, name):
    (root / name).unlink()
    with pytest.raises(InputError, match=f"{name}' is missing; copy the official release again"):
        load(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Image Index,Finding Labels\n", "no column Patient ID; copy the original table again"),
        (b"", "no column Image Index, Finding Labels, Patient ID"),
        (b"\xff\xfe\x00", "expected UTF-8 text"),
    ],
)
def test_a_table_of_another_kind_is_refused(root, content, message):
    nih_table(root).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(root)


def test_tables_without_rows_are_refused(root):
    nih_table(root).write_text(NIH_HEADER)
    with pytest.raises(InputError, match=r"the tables in '.*nih' name no image"):
        load(root)


def test_a_broken_image_is_refused(root):
    path = root / "nih" / "images" / "00000002_000.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"00000002_000\.png: expected a complete"):
        load(root)
    Image.fromarray(np.zeros(SHAPE, np.uint16)).save(path)
    with pytest.raises(InputError, match=r"00000002_000\.png: expected an 8-bit"):
        load(root)


def test_a_draw_is_of_so_many_images_of_each_domain_in_their_order(root):
    whole = load(root).ids
    previous = set()
    for number, counts in ((1, [1, 1, 1]), (2, [2, 2, 2]), (3, [3, 3, 3]), (4, [4, 3, 3])):
        drawn = load(root, max_per_domain=number)
        np.testing.assert_array_equal(np.bincount(drawn.domains), counts)
        assert drawn.ids == tuple(name for name in whole if name in drawn.ids)
        assert previous < set(drawn.ids)
        previous = set(drawn.ids)


def test_a_draw_keeps_the_images_of_a_patient_together(root):
    rows = []
    for name in (f"{patient:08}_{number:03}.png" for patient in range(1, 9) for number in range(4)):
        write_image(root / "nih" / "images" / name)
        rows.append(nih_row(name, "Mass", int(name[:8])))
    write_rows(nih_table(root), NIH_HEADER, *rows)
    groups = load(root, max_per_domain=12).groups
    counts = [groups.count(f"nih/{patient}") for patient in range(1, 9)]
    assert sorted(counts) == [0, 0, 0, 0, 0, 4, 4, 4]


def test_a_draw_does_not_change(root):
    for number in range(4, 40):
        write_image(root / "nih" / "images" / f"{number:08}_000.png")
    rows = [nih_row(f"{number:08}_000.png", "Mass", number) for number in range(4, 40)]
    write_rows(nih_table(root), *nih_table(root).read_text().splitlines(), *rows)
    first = [name for name in load(root, max_per_domain=10).ids if name.startswith("nih/")]
    assert first != [name for name in load(root).ids if name.startswith("nih/")][:10]
    shutil.rmtree(root / "chexpert")
    shutil.rmtree(root / "vindr")
    assert list(load(root, max_per_domain=10).ids) == first


@pytest.mark.parametrize("number", [-1, 1.5, True, "3"])
def test_a_wrong_max_per_domain_is_refused(root, number):
    message = "options.max_per_domain of cxr: expected a whole number, 0 for all"
    with pytest.raises(InputError, match=message):
        load(root, max_per_domain=number)
    with pytest.raises(InputError, match=message):
        cxr.read(root, b"", size=(8, 8), max_per_domain=number)


def test_no_split_cuts_a_patient(root):
    dataset = load(root)
    splits = split_indices(dataset, seed=0)
    groups = [{dataset.groups[index] for index in own} for own in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))


def test_the_digest_is_of_tables_and_images(root):
    digest = load(root).digest
    assert load(root).digest == digest
    assert load(root, max_per_domain=1).digest != digest
    replace(root / "chexpert" / "train.csv", "-1.0", "0.0")
    changed = load(root).digest
    assert changed != digest
    write_image(root / "vindr" / "test" / "4e5f.png", 1)
    assert load(root).digest != changed


def test_check_counts_what_is_usable_and_reports_every_problem(root):
    assert cxr.check(root).problems == ()
    (root / "nih" / "images" / "00000002_000.png").write_bytes(b"")
    (root / "nih" / "images" / "00000003_000.png").unlink()
    (root / "chexpert" / "train.csv").unlink()
    report = cxr.check(root)
    assert report.num_images == 6
    assert len(report.problems) == 3
    assert report.details["domains"] == {"nih": 2, "chexpert": 1, "vindr": 3}
    assert report.details["groups"] == 5


def test_one_more_picture_is_read_as_those_of_the_folder_are(root):
    dataset = load(root)
    path = root / "vindr" / "test" / "4e5f.png"
    read = cxr.SOURCE.read(path, path.read_bytes(), size=(12, 12), max_per_domain=3)
    np.testing.assert_array_equal(read.pixels, dataset.images[9])
    with pytest.raises(InputError, match="more than 100 pixels"):
        cxr.SOURCE.read(path, path.read_bytes(), size=(12, 12), max_pixels=100)
