"""`explorer datasets check` on whole, incomplete and damaged copies of every data set."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from explorer.cli import app
from tests.formats import FORMATS
from trainables.datasets.sources import DATASETS

# of each kind of file one, after whose loss the rest is no smaller data set but a damaged one
FILES = {
    "wbc": ("Dataset 1/003.bmp", "Dataset 2/004.png"),
    "oxford_pets": ("images/Bengal_3.jpg", "annotations/trimaps/american_bulldog_4.png"),
    "cub200": (
        "CUB_200_2011/images/002.Laysan_Albatross/Laysan_Albatross_0003_18.jpg",
        "segmentations/002.Laysan_Albatross/Laysan_Albatross_0005_18.png",
    ),
    "camus": (
        "database_nifti/patient0002/patient0002_2CH_ED.nii.gz",
        "database_nifti/patient0003/patient0003_4CH_ES_gt.nii.gz",
    ),
    "pandental": ("images/3.png", "mandible/4.png", "teeth/5.png"),
    "oasis": (
        "OASIS_OAS1_0003_MR1/slice_norm.nii.gz",
        "OASIS_OAS1_0004_MR1/slice_seg24.nii.gz",
    ),
    "oasis volume_2mm": (
        "OASIS_OAS1_0003_MR1/aligned_norm_2mm.nii.gz",
        "OASIS_OAS1_0003_MR2/aligned_seg35_2mm.nii.gz",
    ),
    "msd_hippocampus": (
        "Task04_Hippocampus/dataset.json",
        "Task04_Hippocampus/imagesTr/hippocampus_003.nii.gz",
        "Task04_Hippocampus/labelsTr/hippocampus_004.nii.gz",
    ),
    "cc359": (
        "Original/CC0401_siemens_15_41_M.nii.gz",
        "Silver-standard-machine-learning/Silver-standard/CC0402_philips_15_42_F_ss.nii.gz",
    ),
    "digits": (
        "MNIST/raw/train-images-idx3-ubyte.gz",
        "MNIST/raw/t10k-labels-idx1-ubyte",
        "test_32x32.mat",
        "usps.t.bz2",
        "mnist_m/mnist_m_train/00000003.png",
        "mnist_m/mnist_m_test_labels.txt",
    ),
    "leukocytes": (
        "wbc/Dataset 1/003.bmp",
        "bccd/BCCD/JPEGImages/BloodImage_00004.jpg",
        "bccd/BCCD/Annotations/BloodImage_00005.xml",
    ),
    "cxr": (
        "nih/Data_Entry_2017_v2020.csv",
        "nih/images/00000003_000.png",
        "chexpert/train/patient00004/study1/view1_frontal.jpg",
        "vindr/train/0004.png",
        "vindr/test/0005.png",
    ),
    "brain_age": ("participants.tsv", "sub-02/anat/sub-02_T1w.nii.gz"),
}
CASES = [(name, file) for name, files in FILES.items() for file in files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a complete copy; tests leave it as it is."""
    made = {}

    def find(name):
        if name not in made:
            source, *files = name.split()
            made[name] = tmp_path_factory.mktemp("whole") / source
            FORMATS[source](made[name], **({"files": files[0]} if files else {}))
        return made[name]

    return find


@pytest.fixture
def copy(whole, tmp_path):
    def make(name):
        return shutil.copytree(whole(name), tmp_path / "copy")

    return make


def check(name, root, *, as_json=False):
    """Exit code and what is said, by a command that must not end with a traceback."""
    options = ["--json"] if as_json else []
    done = CliRunner().invoke(app, ["datasets", "check", name.split()[0], "--root", root, *options])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.stderr == ""
    return done.exit_code, done.stdout


def test_every_data_set_with_files_is_checked():
    needing = {name for name, source in DATASETS.items() if source.needs_root}
    assert {name.split()[0] for name in FILES} == set(FORMATS) == needing


@pytest.mark.parametrize("name", FILES)
def test_complete_copy_is_sound(whole, name):
    code, said = check(name, str(whole(name)), as_json=True)
    report = json.loads(said)
    assert (code, report["problems"]) == (0, [])
    assert report["num_images"] > 0


@pytest.mark.parametrize("name", FILES)
def test_folder_of_something_else_is_refused(tmp_path, name):
    code, said = check(name, str(tmp_path))
    assert code == 2
    assert str(tmp_path) in said.partition("problem: ")[2]


@pytest.mark.parametrize("name", ["oxford_pets", "cub200"])
def test_all_that_is_missing_stands_in_one_line(tmp_path, name):
    said = check(name, str(tmp_path))[1]
    (line,) = [line for line in said.splitlines() if "problem: " in line]
    assert line.count(str(tmp_path)) > 3
    assert line.count("dataset.root must hold") == 1


@pytest.mark.parametrize(
    ("name", "folder"), [("oxford_pets", "images"), ("cub200", "CUB_200_2011/images/001.More")]
)
def test_pictures_that_no_list_names_are_told(copy, name, folder):
    root = copy(name)
    (root / folder).mkdir(exist_ok=True)
    for number in range(5):
        (root / folder / f"More_{number}.jpg").write_bytes(b"never read")
    code, said = check(name, str(root))
    assert code == 0
    (line,) = [line for line in said.splitlines() if "unlisted: " in line]
    assert line.endswith(" and 2 more")
    assert line.count("More_") == 3
    listed = json.loads(check(name, str(root), as_json=True)[1])["details"]["unlisted"]
    assert [path.rpartition("/")[2] for path in listed] == [f"More_{n}" for n in range(5)]


@pytest.mark.parametrize("damage", ["missing", "cut"])
@pytest.mark.parametrize(("name", "file"), CASES)
def test_file_that_is_missing_or_cut_in_half_is_named(copy, name, file, damage):
    root = copy(name)
    path = root / file
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    code, said = check(name, str(root))
    problems = [line for line in said.splitlines() if line.startswith("  problem: ")]
    assert code == 2
    assert len(problems) == 1
    assert path.name.removesuffix(".gz") in problems[0]
    assert path.parent.name in problems[0]
