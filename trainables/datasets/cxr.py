"""Chest X-rays of three hospitals, one domain each, and five findings (HyDA).

Source: Serebro, Riklin Raviv (2025), "HyDA: Hypernetworks for Test Time Domain Adaptation in
Medical Imaging Analysis", section 4.1, arXiv:2503.04979; code: github.com/doronser/hyda.

Official layouts, of which those that stand are loaded, each whole:

- `nih`, ChestX-ray14: `Data_Entry_2017_v2020.csv` or `Data_Entry_2017.csv`, and the images
  `00000001_000.png` in `images` or `images_001/images` to `images_012/images`;
- `chexpert`, CheXpert-v1.0-small or CheXpert-v1.0: `train.csv`, `valid.csv`, and the images in
  `train` and `valid` as the tables name them; lateral views are left out;
- `vindr`, VinDr-CXR: `annotations/image_labels_train.csv`, `annotations/image_labels_test.csv`,
  and the images in `train` and `test`, named by their id. The release holds DICOM files, which are
  not read: convert each to an 8-bit PNG or JPEG of the same name, bright bones on dark air.

Findings of different names are one: `Effusion` is `Pleural Effusion` of CheXpert and `Pleural
effusion` of VinDr-CXR; the other four have the same name everywhere. NIH lists the findings that an
image has, so one that is not listed is 0. In the other two a blank is 0, the finding was not
mentioned; CheXpert's -1, an uncertain one, is NaN, unknown. Several readers of VinDr-CXR decide by
their majority, and half of them leave a finding unknown. The fifth finding is Pneumothorax, as in
HyDA's text.

Pictures are grey, cut to their central square as HyDA's code does, and resized. Patients are
groups; VinDr-CXR does not tell them, there each image is one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import (
    MAX_PIXELS,
    DatasetReport,
    DatasetSource,
    ImageDataset,
    ReadImage,
    Size,
    require_size,
)
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    decode_grey,
    load_files,
    open_listing,
    read_rows,
    resize_image,
)
from trainables.datasets.nifti import fitted

DOMAIN_NAMES = ("nih", "chexpert", "vindr")
FINDING_NAMES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Effusion", "Pneumothorax")
SIZE = (224, 224)

_NIH_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_NIH_FINDINGS = {
    *FINDING_NAMES,
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
}
_NIH_IMAGE = re.compile(r"\d{8}_\d{3}\.png", re.ASCII)
_CHEXPERT_COLUMNS = (*FINDING_NAMES[:3], "Pleural Effusion", FINDING_NAMES[4])
_CHEXPERT_PATH = re.compile(
    r"CheXpert-v1\.0[\w.-]*/((?:train|valid)/(patient\d+)/study\d+/view\d+_(frontal|lateral)\.jpg)",
    re.ASCII,
)
_VINDR_COLUMNS = (*FINDING_NAMES[:3], "Pleural effusion", FINDING_NAMES[4])
_VINDR_ID = re.compile(r"\w+", re.ASCII)
_PICTURES, _DICOMS = (".png", ".jpg", ".jpeg"), (".dicom", ".dcm")

_YES_OR_NO = {"": 0.0, "0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
_CERTAINTY = {**_YES_OR_NO, "-1": float("nan"), "-1.0": float("nan")}


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    max_per_domain: int = 0,
) -> ImageDataset:
    """Load the domains that stand below `root`; `findings` follow `FINDING_NAMES`.

    Args:
        root: folder with `nih`, `chexpert` or `vindr`, or several.
        size: (H, W) to return.
        max_per_domain: images of each domain, 0 for all. They are those of patients in an order
            that is random and always the same; the last patient's may not be complete. All images
            in 224 x 224 take some 25 GB for each 100,000.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("cxr", size)
    _require_max_per_domain(max_per_domain)
    listing = open_listing("cxr", root, _listing)
    drawn = tuple(
        sample
        for domain in range(len(DOMAIN_NAMES))
        for sample in _drawn([s for s in listing.samples if s.domain == domain], max_per_domain)
    )
    return load_files(
        "cxr",
        Listing(listing.root, drawn, listing.problems, listing.lists),
        _decode,
        size=size,
        labels=(),
        domain_names=DOMAIN_NAMES,
    )


def check(root: Path) -> DatasetReport:
    """Read every file below `root` and report."""
    return check_files("cxr", root, _listing, _decode, size=SIZE, domain_names=DOMAIN_NAMES)


def read(
    path: Path,
    data: bytes,
    *,
    size: Size,
    max_pixels: int = MAX_PIXELS,
    max_per_domain: int = 0,
) -> ReadImage:
    """One more picture, as `load` makes it of its own; see `DatasetSource.read`."""
    _require_max_per_domain(max_per_domain)
    return ReadImage(_picture(path, data, size, max_pixels))


def _require_max_per_domain(number: Any) -> None:
    is_whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    if not is_whole or number < 0:
        raise InputError(
            "dataset.options.max_per_domain of cxr: expected a whole number, 0 for all images, got"
            f" {number!r}"
        )


def _drawn(samples: Sequence[Sample], number: int) -> Sequence[Sample]:
    """So many of a domain's samples, in their order, by patients in a random one."""
    if not number:
        return samples
    patients = sorted({sample.group for sample in samples})
    places = np.random.default_rng(0).permutation(len(patients)).tolist()
    place = dict(zip(patients, places, strict=True))
    first = sorted(samples, key=lambda sample: place[sample.group])[:number]
    chosen = {sample.id for sample in first}
    return [sample for sample in samples if sample.id in chosen]


def _decode(sample: Sample, image_bytes: bytes, _: bytes, size: Size) -> Pair:
    image = _picture(sample.image_path, image_bytes, size, MAX_PIXELS)
    return image, np.zeros(size, dtype=np.uint8)


def _picture(path: Path, data: bytes, size: Size, max_pixels: int) -> NDArray[np.float32]:
    """The image (1, *size): grey, its central part of the shape of `size`, resized."""
    # Some files of the releases have colours or transparency, all of them grey.
    grey = decode_grey(path, data, max_pixels=max_pixels)
    height, width = grey.shape
    cut = (
        max(1, min(height, round(width * size[0] / size[1]))),
        max(1, min(width, round(height * size[1] / size[0]))),
    )
    return resize_image(path, fitted(grey, cut, 0), size)


def _listing(root: Path) -> Listing:
    samples: list[Sample] = []
    problems: list[str] = []
    lists: list[Path] = []
    parts = {"nih": _nih, "chexpert": _chexpert, "vindr": _vindr}
    standing = [name for name in DOMAIN_NAMES if (root / name).is_dir()]
    for name in standing:
        tables, found, wrong = parts[name](root / name)
        lists += tables
        samples += found
        problems += wrong
        if not found and not wrong:
            problems.append(
                f"cxr: the tables in {str(root / name)!r} name no image; copy them again"
            )
    if not standing:
        problems.append(
            f"cxr: {str(root)!r} holds no folder {', '.join(DOMAIN_NAMES)}; dataset.root must hold"
            " at least one of them, each with its official layout"
        )
    return Listing(root, tuple(samples), tuple(problems), tuple(lists))


def _nih(folder: Path) -> tuple[list[Path], list[Sample], list[str]]:
    tables = [path for path in (folder / name for name in _NIH_TABLES) if path.is_file()][:1]
    if not tables:
        return [], [], [_no_table(folder / _NIH_TABLES[0])]
    problems: list[str] = []
    samples: dict[str, Sample] = {}
    places = (folder / "images", *sorted(folder.glob("images_[0-9][0-9][0-9]/images")))
    images = {path.name: path for place in places for path in place.glob("*.png")}
    columns = ("Image Index", "Finding Labels", "Patient ID")
    for place, (name, findings, patient) in _rows(tables[0], columns, problems):
        named = set(findings.split("|"))
        if not _NIH_IMAGE.fullmatch(name) or not re.fullmatch("[0-9]+", patient):
            problems.append(
                f"{place}: expected an image such as 00000001_000.png and the number of a patient,"
                f" got {name!r} and {patient!r}"
            )
        elif unknown := named - _NIH_FINDINGS:
            problems.append(f"{place}: unknown finding {min(unknown)!r}; copy the original again")
        elif name in samples:
            problems.append(f"{place}: {name} has a row already; take one out")
        elif name not in images:
            problems.append(f"{place}: {name} is in no folder of images; copy it again")
        else:
            samples[name] = Sample(
                id=f"nih/{name.removesuffix('.png')}",
                image_path=images[name],
                mask_path=images[name],
                domain=DOMAIN_NAMES.index("nih"),
                findings=tuple(float(each in named) for each in FINDING_NAMES),
                group=f"nih/{int(patient)}",
            )
    return tables, list(samples.values()), problems


def _chexpert(folder: Path) -> tuple[list[Path], list[Sample], list[str]]:
    tables, problems = _tables([folder / "train.csv", folder / "valid.csv"])
    samples: dict[str, Sample] = {}
    columns = ("Path", "Frontal/Lateral", *_CHEXPERT_COLUMNS)
    for table in tables:
        for place, (name, view, *cells) in _rows(table, columns, problems):
            match = _CHEXPERT_PATH.fullmatch(name)
            if match is None or match[3] != view.lower():
                problems.append(
                    f"{place}: expected a path such as CheXpert-v1.0-small/train/patient00001/"
                    f"study1/view1_frontal.jpg and its view, got {name!r} and {view!r}"
                )
            elif not set(cells) <= set(_CERTAINTY):
                problems.append(f"{place}: expected 1.0, 0.0, -1.0 or a blank, got {cells}")
            elif match[3] == "lateral":
                continue
            elif match[1] in samples:
                problems.append(f"{place}: {match[1]} has a row already; take one out")
            elif not (path := folder / match[1]).is_file():
                problems.append(f"{place}: {str(path)!r} is missing; copy it again")
            else:
                samples[match[1]] = Sample(
                    id=f"chexpert/{match[1].removesuffix('.jpg')}",
                    image_path=path,
                    mask_path=path,
                    domain=DOMAIN_NAMES.index("chexpert"),
                    findings=tuple(_CERTAINTY[cell] for cell in cells),
                    group=f"chexpert/{match[2]}",
                )
    return tables, list(samples.values()), problems


def _vindr(folder: Path) -> tuple[list[Path], list[Sample], list[str]]:
    splits = ("train", "test")
    paths = [folder / "annotations" / f"image_labels_{split}.csv" for split in splits]
    tables, problems = _tables(paths)
    samples: list[Sample] = []
    for split, table in zip(splits, paths, strict=True):
        if table not in tables:
            continue
        files = sorted((folder / split).glob("*"))
        images = {path.stem: path for path in files if path.suffix.lower() in _PICTURES}
        dicoms = {path.stem: path for path in files if path.suffix.lower() in _DICOMS}
        unread: list[Path] = []
        for name, (place, votes) in _votes(table, split, problems).items():
            if name in images:
                samples.append(
                    Sample(
                        id=f"vindr/{split}/{name}",
                        image_path=images[name],
                        mask_path=images[name],
                        domain=DOMAIN_NAMES.index("vindr"),
                        findings=_majority(votes),
                        group=f"vindr/{name}",
                    )
                )
            elif name in dicoms:
                unread.append(dicoms[name])
            else:
                problems.append(
                    f"{place}: {name}.png or .jpg is missing in {str(folder / split)!r}; copy it"
                    " again"
                )
        if unread:
            problems.append(
                f"cxr: {str(unread[0])!r} and {len(unread) - 1} more are DICOM files, which are not"
                " read; convert each to an 8-bit PNG or JPEG of the same name beside it"
            )
    return tables, samples, problems


def _votes(
    table: Path, split: str, problems: list[str]
) -> dict[str, tuple[str, list[tuple[float, ...]]]]:
    """The first row's place, and what each reader found, of every image of a table."""
    votes: dict[str, tuple[str, list[tuple[float, ...]]]] = {}
    seen: set[tuple[str, str]] = set()
    readers = ("rad_id",) if split == "train" else ()
    columns = ("image_id", *readers, *_VINDR_COLUMNS)
    for place, (name, *cells) in _rows(table, columns, problems):
        reader = cells.pop(0) if readers else ""
        if not _VINDR_ID.fullmatch(name) or not set(cells) <= set(_YES_OR_NO):
            problems.append(
                f"{place}: expected the id of an image and 1 or 0 for each finding, got {name!r}"
                f" and {cells}"
            )
        elif (name, reader) in seen:
            by = f" of reader {reader}" if readers else ""
            problems.append(f"{place}: {name} has a row{by} already; take one out")
        else:
            seen.add((name, reader))
            found = tuple(_YES_OR_NO[cell] for cell in cells)
            votes.setdefault(name, (place, []))[1].append(found)
    return votes


def _majority(votes: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    shares = np.mean(votes, axis=0)
    return tuple(np.where(shares == 0.5, np.nan, np.round(shares)).tolist())


def _tables(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Those that stand, and what to do about the others."""
    standing = [path for path in paths if path.is_file()]
    return standing, [_no_table(path) for path in paths if path not in standing]


def _no_table(path: Path) -> str:
    return f"cxr: {str(path)!r} is missing; copy the official release again"


def _rows(
    path: Path, columns: Sequence[str], problems: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Place and chosen cells of each row of a table; what is wrong is added to `problems`."""
    try:
        header, *rows = read_rows(path) or [[]]
    except InputError as error:
        problems.append(str(error))
        return
    # Every line of NIH's first table ends with a comma.
    names = [name.strip() for name in (header[:-1] if header[-1:] == [""] else header)]
    if absent := [column for column in columns if column not in names]:
        problems.append(f"{path}: no column {', '.join(absent)}; copy the original table again")
        return
    indices = [names.index(column) for column in columns]
    for line, row in enumerate(rows, start=2):
        cells = row[:-1] if len(row) == len(names) + 1 and not row[-1] else row
        if len(cells) == len(names):
            yield f"{path}: line {line}", [cells[index].strip() for index in indices]
        elif any(row):
            problems.append(
                f"{path}: line {line}: expected {len(names)} columns, got {len(cells)}; copy the"
                " original table again"
            )


SOURCE = DatasetSource(
    name="cxr",
    summary=(
        "chest X-rays with five findings, three hospitals (NIH ChestX-ray14, CheXpert, VinDr-CXR);"
        " licences of their own, nihcc.app.box.com/v/ChestXray-NIHCC,"
        " stanfordmlgroup.github.io/competitions/chexpert, physionet.org/content/vindr-cxr"
    ),
    needs_root=True,
    channels=1,
    labels=(),
    size=SIZE,
    load=load,
    check=check,
    read=read,
    finding_names=FINDING_NAMES,
    domain_names=DOMAIN_NAMES,
    licence=(
        "NIH ChestX-ray14: free to use with a link to its source, citation and acknowledgement;"
        " CheXpert: Stanford University Dataset Research Use Agreement; VinDr-CXR: PhysioNet"
        " Credentialed Health Data License 1.5.0"
    ),
    citation=(
        "Wang et al. (2017), ChestX-ray8, CVPR, doi:10.1109/CVPR.2017.369; Irvin et al. (2019),"
        " CheXpert, AAAI 33, 590-597, doi:10.1609/aaai.v33i01.3301590; Nguyen et al. (2022),"
        " VinDr-CXR, Scientific Data 9, 429, doi:10.1038/s41597-022-01498-w. Acknowledge the NIH"
        " Clinical Center as the provider of ChestX-ray14"
    ),
)
