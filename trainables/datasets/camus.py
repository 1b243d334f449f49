"""Hearts in ultrasound: left ventricle, its muscle and left atrium in two views and two instants.

Source: Leclerc et al. (2019), "Deep Learning for Segmentation using an Open Large-Scale Dataset in
2D Echocardiography", IEEE Trans. Med. Imaging 38(9), 2198-2210, doi:10.1109/TMI.2019.2900516;
files: www.creatis.insa-lyon.fr/Challenge/camus (after registration).

Official layouts, one folder `patientNNNN` per person, 500 in all:

- the release of today, `database_nifti/patient0001/patient0001_2CH_ED.nii.gz` and its labels
  `patient0001_2CH_ED_gt.nii.gz`, beside it `database_split/subgroup_training.txt`,
  `subgroup_validation.txt` and `subgroup_testing.txt`, one person a line;
- the challenge's of before, `training/patient0001/patient0001_2CH_ED.mhd` with its pixels in a
  `.raw`, and `patient0001_2CH_ED_gt.mhd`. Its folder `testing` has no labels and is not read.

Views are the apical ones of two and of four chambers (2CH, 4CH), instants the ends of diastole and
of systole (ED, ES); sequences are not read. Labels: 1 left ventricle (within its endocardium), 2
its muscle (from there to the epicardium), 3 left atrium. In both layouts `Info_2CH.cfg` and
`Info_4CH.cfg` may stand with lines `Sex: F`, `Age: 56`, `ImageQuality: Good`, `EF: 56` (`LVef` in
the older one).

Both formats count columns first (MetaImage: `DimSize`; NIfTI-1: `dim[1]`), so a line of a MetaImage
is a row of the picture, and what nibabel reads of a NIfTI is transposed. Neither is mirrored,
whatever an affine says: so do readers that show either with SimpleITK, the probe on top. Pixels are
taken as square, as they are stored, though they are finer downwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

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
    require_names,
    require_size,
)
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    attribute_columns,
    check_files,
    load_files,
    open_listing,
    read_text,
    resize_image,
    resize_pair,
)
from trainables.datasets.metaimage import decode_pixels, read_header
from trainables.datasets.nifti import Scan, read_nifti, whole_labels

LABELS = ("left-ventricle", "myocardium", "left-atrium")
VIEWS = ("2CH", "4CH")
INSTANTS = ("ED", "ES")
SIZE = (256, 256)

# Columns and rows of an official image; they differ from person to person.
_EXAMPLE = (549, 778)
_FOLDERS = ("database_nifti", "training", ".")
_NIFTI = (".nii.gz", ".nii")
_PERSON = re.compile(r"patient\d{4}", re.ASCII)
_SPLITS = ("training", "validation", "testing")
_INFO_LINE = re.compile(r"(\w+)\s*:\s*(.*)", re.ASCII)
# Fields of Info_2CH.cfg that tell of the person or the image, and the attributes they become.
_INFO = {
    "Sex": "sex",
    "Age": "age",
    "ImageQuality": "image_quality",
    "EF": "ejection_fraction",
    "LVef": "ejection_fraction",
}


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    views: str = ",".join(VIEWS),
    instants: str = ",".join(INSTANTS),
) -> ImageDataset:
    """Load images, padded to squares and resized; the domain is the view, the group the person.

    Attributes, where the files tell: `sex`, `age` (years), `image_quality`, `ejection_fraction`
    (percent), and `split`, the official one.

    Args:
        root: folder of the release, or the one with the folders of the patients.
        size: (H, W) to return.
        views: 2CH, 4CH or both, separated by commas; their order numbers the domains.
        instants: ED, ES or both.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("camus", size)
    chosen, times = _views(views), _instants(instants)
    listing = open_listing("camus", root, partial(_listing, chosen, times))
    return load_files("camus", listing, _decode, size=size, labels=LABELS, domain_names=chosen)


def check(root: Path) -> DatasetReport:
    """Read every image of both views and instants below `root` and report."""
    return check_files(
        "camus", root, partial(_listing, VIEWS, INSTANTS), _decode, size=SIZE, domain_names=VIEWS
    )


def read(
    path: Path,
    data: bytes,
    *,
    size: Size,
    max_pixels: int = MAX_PIXELS,
    views: str = ",".join(VIEWS),
    instants: str = ",".join(INSTANTS),
) -> ReadImage:
    """One more image, a NIfTI file, as `load` makes it; see `DatasetSource.read`."""
    _views(views)
    _instants(instants)
    if path.suffix in (".mhd", ".raw"):
        raise InputError(f"{path}: half of a MetaImage; expected one file, bring it as NIfTI")
    return ReadImage(resize_image(path, _grey(_upright(path, data, max_pixels)), size))


def _views(views: str) -> tuple[str, ...]:
    return require_names("camus", "views", views, known=VIEWS)


def _instants(instants: str) -> tuple[str, ...]:
    return require_names("camus", "instants", instants, known=INSTANTS)


def _decode(sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size) -> Pair:
    stem = sample.id.replace("/", "_")
    image = _scan(sample.image_path, stem, image_bytes)
    labels = _scan(sample.mask_path, f"{stem}_gt", mask_bytes)
    marks = whole_labels(labels, len(LABELS), hint="copy the original again")
    return resize_pair(sample.image_path, _grey(image), marks, size)


def _scan(path: Path, stem: str, data: bytes) -> Scan:
    """The upright image in a NIfTI file, or in the data file of the header named `stem`."""
    if path.name.endswith(_NIFTI):
        return _upright(path, data, MAX_PIXELS)
    pixels = decode_pixels(read_header(path.parent / f"{stem}.mhd"), data)
    return Scan(path, pixels.astype(np.float64), np.eye(4))


def _upright(path: Path, data: bytes, max_pixels: int) -> Scan:
    scan = read_nifti(path, data, example=_EXAMPLE, max_pixels=max_pixels)
    return replace(scan, values=scan.values.T)


def _grey(scan: Scan) -> NDArray[np.uint8]:
    values = scan.values
    if not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
        raise InputError(
            f"{scan.path}: intensities in [{values.min():g}, {values.max():g}], expected whole"
            " numbers from 0 to 255; copy the original again"
        )
    return values.astype(np.uint8)


def _listing(views: Sequence[str], instants: Sequence[str], root: Path) -> Listing:
    folder, people = _people(root)
    if not people:
        return Listing(
            root,
            (),
            (
                f"camus: {str(root)!r} holds no folder patientNNNN; dataset.root must be the"
                " release of www.creatis.insa-lyon.fr/Challenge/camus (after registration, for"
                " research), or its database_nifti or training",
            ),
        )
    problems = [
        f"camus: folder {str(path)!r}: expected patientNNNN; rename it"
        for path in people
        if not _PERSON.fullmatch(path.name)
    ]
    lists, splits = _read_splits(root, problems)
    problems += [
        f"camus: folder {str(folder / name)!r} is missing, but subgroup_{split}.txt lists it; copy"
        " the release again"
        for name, split in splits.items()
        if not (folder / name).is_dir()
    ]
    samples: list[Sample] = []
    fields: dict[str, dict[str, str]] = {}
    for person in (path for path in people if _PERSON.fullmatch(path.name)):
        for domain, view in enumerate(views):
            told = {"split": splits.get(person.name, "")}
            info = person / f"Info_{view}.cfg"
            if info.is_file():
                lists.append(info)
                told |= _read_info(info, problems)
            for instant in instants:
                files = _files(person, f"{view}_{instant}", lists, problems)
                if len(files) == 2:
                    name = f"{person.name}/{view}_{instant}"
                    image, mask = files
                    samples.append(Sample(name, image, mask, domain, group=person.name))
                    fields[name] = told
    columns = attribute_columns(fields, [sample.id for sample in samples])
    return Listing(root, tuple(samples), tuple(problems), tuple(lists), columns)


def _people(root: Path) -> tuple[Path, list[Path]]:
    """The folders of the patients, and the one they stand in."""
    for folder in (root / name for name in _FOLDERS):
        people = sorted(path for path in folder.glob("patient[0-9]*") if path.is_dir())
        if people:
            return folder, people
    return root, []


def _files(person: Path, name: str, lists: list[Path], problems: list[str]) -> list[Path]:
    """The files with the pixels of an image and of its labels, as far as they stand.

    Headers of a MetaImage are added to the lists, what is missing to the problems.
    """
    found: list[Path] = []
    for stem in (f"{person.name}_{name}", f"{person.name}_{name}_gt"):
        whole = [person / f"{stem}{suffix}" for suffix in _NIFTI]
        header = person / f"{stem}.mhd"
        path = next((each for each in whole if each.is_file()), None)
        if path is None and header.is_file():
            lists.append(header)
            try:
                path = read_header(header).data_path
            except InputError as error:
                problems.append(str(error))
                continue
        if path is None:
            problems.append(
                f"camus: {str(whole[0])!r} is missing, nor is there {header.name}; copy the release"
                " again"
            )
        elif not path.is_file():
            problems.append(
                f"camus: {str(path)!r} is missing, but {header.name} names it; copy the release"
                " again"
            )
        elif path in found:
            problems.append(
                f"{header}: ElementDataFile: expected a file of its own, got {path.name} of the"
                " image; copy the original again"
            )
        else:
            found.append(path)
    return found


def _read_splits(root: Path, problems: list[str]) -> tuple[list[Path], dict[str, str]]:
    """The official lists that stand, and the split of each person in them."""
    lists: list[Path] = []
    splits: dict[str, str] = {}
    for split in _SPLITS:
        path = root / "database_split" / f"subgroup_{split}.txt"
        if not path.is_file():
            continue
        lists.append(path)
        try:
            names = read_text(path).split()
        except InputError as error:
            problems.append(str(error))
            continue
        foreign = [name for name in names if not _PERSON.fullmatch(name) or name in splits]
        if foreign:
            problems.append(
                f"{path}: expected one patientNNNN a line, each in one list and once, got"
                f" {foreign[0][:80]!r}; copy the original again"
            )
        splits |= {name: split for name in names if _PERSON.fullmatch(name)}
    return lists, splits


def _read_info(path: Path, problems: list[str]) -> dict[str, str]:
    """The attributes that an Info_2CH.cfg or Info_4CH.cfg tells of."""
    try:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    except InputError as error:
        problems.append(str(error))
        return {}
    told: dict[str, str] = {}
    for line in lines:
        match = _INFO_LINE.fullmatch(line)
        if match is None:
            problems.append(
                f"{path}: expected lines such as 'Age: 56', got {line[:80]!r}; copy it again"
            )
        elif match[1] in _INFO:
            told[_INFO[match[1]]] = match[2]
    return told


SOURCE = DatasetSource(
    name="camus",
    summary=(
        "CAMUS, hearts in ultrasound, left ventricle, muscle and atrium in two views; terms of the"
        " release (research, after registration), www.creatis.insa-lyon.fr/Challenge/camus"
    ),
    needs_root=True,
    channels=1,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    read=read,
    domain_names=VIEWS,
    licence=(
        "the terms under which www.creatis.insa-lyon.fr/Challenge/camus hands it out after"
        " registration; its citation is mandatory"
    ),
    citation=(
        "Leclerc et al. (2019), Deep Learning for Segmentation using an Open Large-Scale Dataset in"
        " 2D Echocardiography, IEEE Trans. Med. Imaging 38(9), 2198-2210,"
        " doi:10.1109/TMI.2019.2900516"
    ),
)
