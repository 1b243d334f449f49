"""Small folders of the real data sets in their official formats, with images for every split.

Each function is given a folder that may be missing and writes below it.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.trainables.datasets import (
    test_brain_age,
    test_camus,
    test_cc359,
    test_cub200,
    test_cxr,
    test_digits,
    test_leukocytes,
    test_msd_hippocampus,
    test_oasis,
    test_oxford_pets,
    test_pandental,
    test_wbc,
)

N = 25  # images, or images per domain


def write_wbc(root: Path) -> None:
    """Both stains, with more than the 24 images to train on that adaptation asks for."""
    test_wbc.write_release(root, num_images=40)


def write_oxford_pets(root: Path) -> None:
    """Cats and dogs, some in either list."""
    cats, dogs = ([f"{breed}_{k}" for k in range(1, N)] for breed in ("Bengal", "american_bulldog"))
    test_oxford_pets.write_pictures(root, *cats, *dogs)
    rows = [*(f"{name} 6 1 2" for name in cats), *(f"{name} 2 2 1" for name in dogs)]
    for name, own in (("trainval", rows[::2]), ("test", rows[1::2])):
        (root / "annotations" / f"{name}.txt").write_text("\n".join([*own, ""]))


def write_cub200(root: Path) -> None:
    """Birds of two species."""
    species = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    names = [f"{species[k % 2]}/{species[k % 2][4:]}_{k:04d}_18" for k in range(N)]
    test_cub200.write_release(root, names)


def write_camus(root: Path) -> None:
    """People with two views and two instants each, as NIfTI files."""
    people = [f"patient{k:04d}" for k in range(1, 8)]
    folder = root / "database_nifti"
    test_camus.write_release(folder, test_camus.write_nifti, ".nii.gz", people)


def write_pandental(root: Path) -> None:
    """Panoramic pictures with a mask of the mandible and one of the teeth."""
    test_pandental.write_pictures(root, [str(k) for k in range(1, N + 1)])


def write_oasis(root: Path, *, files: str = "slice") -> None:
    """Scans whose labels are bands, lying a little lower in one than in the other.

    Volumes are few, of people with two scans each: they have a size of their own.
    """
    write = _write_slice if files == "slice" else partial(_write_volume, files=files)
    per_person, num_scans = (1, N) if files == "slice" else (2, 8)
    rows = ["subject,sex,age"]
    for k in range(num_scans):
        person, visit = divmod(k, per_person)
        folder = root / f"OASIS_OAS1_{person + 1:04d}_MR{visit + 1}"
        folder.mkdir(parents=True)
        rows.append(f"{folder.name},{'FM'[person % 2]},{20 + person}")
        write(folder, k)
    (root / "participants.csv").write_text("\n".join([*rows, ""]))


def _write_slice(folder: Path, k: int) -> None:
    labels = np.roll(_bands((48, 40, 1), 24), k % 4, axis=0)
    test_oasis.write_nifti(folder / "slice_norm.nii.gz", labels / 24)
    test_oasis.write_nifti(folder / "slice_seg24.nii.gz", labels, np.uint8)


def _write_volume(folder: Path, k: int, files: str) -> None:
    suffix, shape, affine = {
        "volume": ("", test_oasis.FINE_SHAPE, test_oasis.FINE_AFFINE),
        "volume_2mm": ("_2mm", test_oasis.SHAPE, test_oasis.AFFINE),
    }[files]
    names = [f"aligned_norm{suffix}.nii.gz", f"aligned_seg35{suffix}.nii.gz"]
    if k > 1:  # packing takes seconds: every other scan is the same
        for name in names:
            alike = f"OASIS_OAS1_0001_MR{k % 2 + 1}"
            shutil.copyfile(folder.parent / alike / name, folder / name)
        return
    labels = np.roll(_bands(shape, 35), 3 * k, axis=0)
    for name, values in zip(names, ((labels % 2).astype(np.uint8), labels), strict=True):
        test_oasis.write_volume(folder / name, values, affine)


def _bands(shape: tuple[int, ...], num_labels: int) -> Any:
    """Labels 1 to `num_labels` as bands of equal width along the first axis."""
    numbers = 1 + np.arange(shape[0]) * num_labels // shape[0]
    along = numbers.reshape(-1, *[1] * (len(shape) - 1))
    return np.broadcast_to(along, shape).astype(np.uint8)


def write_msd_hippocampus(root: Path) -> None:
    """Volumes of an official shape, with the table that names them."""
    task = root / "Task04_Hippocampus"
    numbers = [f"{k:03d}" for k in range(1, N + 1)]
    test_msd_hippocampus.write_volumes(task, dict.fromkeys(numbers, (35, 51, 36)))
    test_msd_hippocampus.write_table(task, numbers)


def write_cc359(root: Path) -> None:
    """Six people of the scanners that shipped explorations name, one of every other."""
    brain = np.zeros(test_cc359.SHAPE, np.uint8)
    brain[5:15, 6:18] = 1  # in enough slices for the data set's default number of them
    image = test_cc359.ramp() + 200 * brain
    stems = [stem for stem in test_cc359.STEMS if not stem.endswith(("_55_M", "_61_M"))]
    for k, scanner in enumerate(6 * ["philips_15", "siemens_15"]):
        stems.append(f"CC{400 + k:04d}_{scanner}_{40 + k}_{'FM'[k % 2]}")
    for stem in stems:
        test_cc359.write_nifti(test_cc359.volume_path(root, stem), image)
        test_cc359.write_nifti(test_cc359.mask_path(root, stem), brain)


def write_digits(root: Path) -> None:
    """Two dozen digits of every collection but one, which has half as many."""
    test_digits.write_files(root)


def write_leukocytes(root: Path) -> None:
    """Some 33 cells of each of the three places."""
    test_leukocytes.write_release(root)


def write_cxr(root: Path) -> None:
    """Radiographs of three hospitals, every finding in about half of those of each."""
    known = ("Atelectasis", "Cardiomegaly", "Consolidation", "Effusion", "Pneumothorax")
    present = np.random.default_rng(0).integers(0, 2, (3, N, len(known))).tolist()
    nih, chexpert, vindr = ([dict(zip(known, row, strict=True)) for row in one] for one in present)

    rows = [test_cxr.NIH_HEADER]
    for k, findings in enumerate(nih):
        name = f"{k:08d}_000.png"
        names = "|".join(name for name in known if findings[name])
        rows.append(test_cxr.nih_row(name, names or "No Finding", k))
        test_cxr.write_image(root / "nih" / "images" / name, k)
    test_cxr.write_rows(root / "nih" / "Data_Entry_2017_v2020.csv", *rows)

    lists = {name: [test_cxr.CHEXPERT_HEADER] for name in ("train", "valid")}
    for k, findings in enumerate(chexpert):
        split = "valid" if k % 5 == 0 else "train"
        name = f"{split}/patient{k:05d}/study1/view1_frontal.jpg"
        own = {each.lower(): f"{findings[each]:.1f}" for each in known if each in CHEXPERT_GIVEN}
        lists[split].append(test_cxr.chexpert_row(name, **own))
        test_cxr.write_image(root / "chexpert" / name, k)
    for name, rows in lists.items():
        test_cxr.write_rows(root / "chexpert" / f"{name}.csv", *rows)

    columns = f"image_id,rad_id,{test_cxr.VINDR_COLUMNS}"
    lists = {"train": [columns], "test": [columns.replace("rad_id,", "")]}
    for k, findings in enumerate(vindr):
        split = "test" if k % 5 == 0 else "train"
        readers = ("R1",) if split == "train" else ()
        own = {each.lower(): findings[each] for each in known}
        lists[split].append(test_cxr.vindr_row(f"{k:04x}", *readers, **own))
        test_cxr.write_image(root / "vindr" / split / f"{k:04x}.png", k)
    for name, rows in lists.items():
        table = root / "vindr" / "annotations" / f"image_labels_{name}.csv"
        test_cxr.write_rows(table, *rows)


CHEXPERT_GIVEN = ("Cardiomegaly", "Effusion", "Pneumothorax")  # by `chexpert_row`


def write_brain_age(root: Path) -> None:
    """Volumes of the three sites that shipped explorations name."""
    rows = []
    for k in range(3 * 8):
        rows.append(f"sub-{k:02d}\t{20 + k}\tsite_{'abc'[k % 3]}\t{'FM'[k % 2]}")
        volume = test_brain_age.brain(k)
        test_brain_age.write_volume(test_brain_age.volume_path(root, f"sub-{k:02d}"), volume)
    test_brain_age.write_table(root, *rows)


# (folder, options of the data set that decide its files)
FORMATS: dict[str, Callable[..., None]] = {
    "wbc": write_wbc,
    "oxford_pets": write_oxford_pets,
    "cub200": write_cub200,
    "camus": write_camus,
    "pandental": write_pandental,
    "oasis": write_oasis,
    "msd_hippocampus": write_msd_hippocampus,
    "cc359": write_cc359,
    "digits": write_digits,
    "leukocytes": write_leukocytes,
    "cxr": write_cxr,
    "brain_age": write_brain_age,
}
