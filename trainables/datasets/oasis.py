"""Brain MRI with labelled structures, slices or volumes, in the layout of neurite-OASIS.

Source: Marcus et al. (2007), "Open Access Series of Imaging Studies (OASIS)", J. Cogn. Neurosci.
19(9), doi:10.1162/jocn.2007.19.9.1498; Hoopes, Hoffmann, Greve, Fischl, Guttag, Dalca (2022),
"Learning the effect of registration hyperparameters with HyperMorph", MELBA 1;
files: github.com/adalca/medical-datasets (neurite-oasis).
Licence: the OASIS data use agreement (oasis-brains.org); its acknowledgement is due in
publications.

Official layout: one folder per scan, `OASIS_OAS1_XXXX_MRn`, affinely aligned, intensities in
[0, 1], with

- files `slice`: `slice_norm.nii.gz` and `slice_seg24.nii.gz` or `slice_seg4.nii.gz`,
  160 x 192 x 1 each;
- files `volume`: `aligned_norm.nii.gz` and `aligned_seg35.nii.gz` or `aligned_seg4.nii.gz`,
  160 x 192 x 224 voxels of 1 mm, axes L-I-A;
- files `volume_2mm`: the same at 80 x 96 x 112 voxels of 2 mm, named `aligned_norm_2mm.nii.gz`
  and so on. They are no part of the official release.

Beside the folders `seg24_labels.txt`, `seg35_labels.txt`, `seg4_labels.txt` (number, name), and
optionally `subjects.txt` (folders) and `participants.csv` (subject, sex, age, more columns).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets import oasis_labels
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
    attribute_columns,
    check_files,
    load_files,
    open_listing,
    read_bytes,
    read_rows,
    read_text,
)
from trainables.datasets.nifti import (
    Scan,
    read_nifti,
    require_grid,
    require_same_affine,
    require_same_shape,
    resample,
    resample_image,
    resampled_affine,
    unit_intensities,
    whole_labels,
)

DOMAIN_NAMES = ("oasis",)
CLASS_NAMES = ("F", "M")
AXES = "L-I-A"

_FOLDER = re.compile(r"OASIS_(OAS1_\d{4})_MR\d+")


@dataclass(frozen=True)
class _Files:
    """One kind of file of the release; `segmentations` are numbers of labels, the default first."""

    prefix: str
    suffix: str
    size: Size
    spacing_mm: float
    segmentations: tuple[int, ...]


FILES = {
    "slice": _Files("slice", "", (160, 192), 1, (24, 4)),
    "volume": _Files("aligned", "", (160, 192, 224), 1, (35, 4)),
    "volume_2mm": _Files("aligned", "_2mm", (80, 96, 112), 2, (35, 4)),
}


@dataclass(frozen=True)
class _Layout:
    """The files that a choice of options reads."""

    kind: _Files
    segmentation: int

    @property
    def image_name(self) -> str:
        return f"{self.kind.prefix}_norm{self.kind.suffix}.nii.gz"

    @property
    def mask_name(self) -> str:
        return f"{self.kind.prefix}_seg{self.segmentation}{self.kind.suffix}.nii.gz"

    @property
    def labels_name(self) -> str:
        return f"seg{self.segmentation}_labels.txt"

    @property
    def labels(self) -> tuple[str, ...]:
        return oasis_labels.LABELS[self.segmentation]


def _layout(files: Any = "slice", segmentation: Any = None) -> _Layout:
    if files not in FILES:
        raise InputError(
            f"dataset.options.files of oasis: expected {', '.join(FILES)}, got {files!r}"
        )
    kind = FILES[files]
    chosen = kind.segmentations[0] if segmentation is None else segmentation
    if not isinstance(chosen, int) or chosen not in kind.segmentations:
        raise InputError(
            f"dataset.options.segmentation of oasis: expected"
            f" {' or '.join(map(str, kind.segmentations))} labels for files {files}, got {chosen!r}"
        )
    return _Layout(kind, chosen)


def _layout_of(options: Mapping[str, Any]) -> _Layout:
    return _layout(**{name: options[name] for name in ("files", "segmentation") if name in options})


LABELS = _layout().labels
SIZE = _layout().kind.size


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] | None = None,
    files: str = "slice",
    segmentation: int | None = None,
) -> ImageDataset:
    """Load slices or volumes; a size other than theirs resamples them.

    Targets are ages in years, classes index `CLASS_NAMES`, groups are people, attributes the
    columns of `participants.csv`; names of labels come from `seg24_labels.txt` and its like where
    it stands.

    Args:
        root: folder of the release.
        size: spatial; default: that of the files.
        files: a key of `FILES`.
        segmentation: number of labels, 24 or 4 for slices, 35 or 4 for volumes; default: the first.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    layout = _layout(files, segmentation)
    chosen = layout.kind.size if size is None else size
    size = require_size("oasis", chosen, num_axes=(len(layout.kind.size),))
    listing = open_listing("oasis", root, partial(_listing, layout))
    labels_path = listing.root / layout.labels_name
    labels = _read_labels(layout, labels_path) if labels_path.is_file() else layout.labels
    return load_files(
        "oasis",
        listing,
        partial(_decode, layout, _first_shape(layout, listing.root)),
        size=size,
        labels=labels,
        domain_names=DOMAIN_NAMES,
    )


def check(root: Path) -> DatasetReport:
    """Read every file below `root` and report; images are those of the first kind that stands."""
    try:
        standing = _standing(root.expanduser())
    except OSError:
        standing = {}
    reports = {
        name: check_files(
            "oasis",
            root,
            partial(_listing, layout),
            partial(_decode, layout, _first_shape(layout, root.expanduser())),
            size=layout.kind.size,
            domain_names=DOMAIN_NAMES,
        )
        for name, layout in (standing or {"slice, 24 labels": _layout()}).items()
    }
    first = next(iter(reports.values()))
    lines = dict.fromkeys(line for report in reports.values() for line in report.problems)
    counts = {name: report.num_images for name, report in reports.items()}
    details = {**first.details, "files": counts} if standing else first.details
    return DatasetReport(first.num_images, tuple(lines), details)


def _standing(root: Path) -> dict[str, _Layout]:
    """The layouts of which at least one label map stands below a folder, by words for them."""
    every = {
        f"{files}, {number} labels": _layout(files, number)
        for files, kind in FILES.items()
        for number in kind.segmentations
    }
    return {
        words: layout
        for words, layout in every.items()
        if any(root.glob(f"OASIS_OAS1_*_MR*/{layout.mask_name}"))
    }


def _first_shape(layout: _Layout, root: Path) -> tuple[int, ...] | None:
    """That of the first scan's image, which the others must have; None where it cannot be read."""
    try:
        paths = sorted(root.glob(f"OASIS_OAS1_*_MR*/{layout.image_name}"))
    except OSError:
        return None  # nor can be listed, which is told then
    for path in paths:
        try:
            return read_nifti(path, read_bytes(path), example=_example(layout)).values.shape
        except InputError:
            continue  # is told when its turn comes
    return None


def _example(layout: _Layout) -> Size:
    size = layout.kind.size
    return size if len(size) == 3 else (*size, 1)


def _decode(
    layout: _Layout,
    shape: tuple[int, ...] | None,
    sample: Sample,
    image_bytes: bytes,
    mask_bytes: bytes,
    size: Size,
) -> Pair:
    kind, example = layout.kind, _example(layout)
    image = read_nifti(sample.image_path, image_bytes, example=example)
    mask = read_nifti(sample.mask_path, mask_bytes, example=example)
    require_same_shape(image, mask)
    if shape is not None and image.values.shape != shape:
        raise InputError(
            f"{sample.image_path}: shape {image.values.shape}, but that of the first scan is "
            f"{shape}; scans must share one grid"
        )
    _require_grid(layout, image)
    if len(kind.size) == 3:
        require_same_affine(image, mask)
    pixels = _intensities(layout, image)
    labels = whole_labels(
        mask,
        layout.segmentation,
        hint=f"use {layout.mask_name.removesuffix('.nii.gz')} of the release",
    )
    return resample(pixels, labels, size)


def read(
    path: Path,
    data: bytes,
    *,
    size: Size,
    max_pixels: int = MAX_PIXELS,
    files: str = "slice",
    segmentation: int | None = None,
) -> ReadImage:
    """One more normalised slice or volume, as `load` makes it; see `DatasetSource.read`."""
    layout = _layout(files, segmentation)
    kind, example = layout.kind, _example(layout)
    image = read_nifti(path, data, example=example, max_pixels=max_pixels)
    _require_grid(layout, image)
    affine = resampled_affine(image, size) if len(kind.size) == 3 else None
    return ReadImage(resample_image(_intensities(layout, image), size), affine)


def _require_grid(layout: _Layout, image: Scan) -> None:
    kind = layout.kind
    if len(kind.size) == 3:
        require_grid(image, axes=AXES, spacing_mm=kind.spacing_mm, shape=kind.size)


def _intensities(layout: _Layout, image: Scan) -> NDArray[np.float32]:
    name = layout.image_name.removesuffix(".nii.gz")
    return unit_intensities(image, hint=f"use the normalised {name} of the release")


def _listing(layout: _Layout, root: Path) -> Listing:
    folders = sorted(path for path in root.glob("OASIS_OAS1_*_MR*") if path.is_dir())
    lists = tuple(
        root / name
        for name in (layout.labels_name, "subjects.txt", "participants.csv")
        if (root / name).is_file()
    )
    if not folders:
        return Listing(
            root,
            (),
            (
                f"oasis: {str(root)!r} holds no folder OASIS_OAS1_XXXX_MRn; dataset.root must be"
                " the neurite-OASIS release, one folder per scan",
            ),
        )
    problems: list[str] = []
    people: dict[str, dict[str, str]] = {}
    listed: set[str] = set()
    try:
        for path in lists:
            if path.name == "subjects.txt":
                listed = set(read_text(path).split())
            elif path.name == "participants.csv":
                people = _read_participants(path)
            else:
                _read_labels(layout, path)
    except InputError as error:
        problems.append(str(error))
    problems += [
        f"oasis: folder {str(root / name)!r} is missing, but subjects.txt lists it; copy the"
        " release again"
        for name in sorted(listed - {folder.name for folder in folders})
    ]
    samples, more = _samples(layout, folders, people)
    ids = [sample.id for sample in samples]
    return Listing(root, samples, (*problems, *more), lists, attribute_columns(people, ids))


def _samples(
    layout: _Layout, folders: list[Path], people: Mapping[str, Mapping[str, str]]
) -> tuple[tuple[Sample, ...], list[str]]:
    """The scans that have both files, and what is wrong with the others."""
    for name in (layout.image_name, layout.mask_name):
        if not any((folder / name).is_file() for folder in folders):
            root = folders[0].parent
            held = "; ".join(_standing(root)) or "none"
            return (), [
                f"oasis: no folder of {str(root)!r} holds {name}; files there: {held}; choose with"
                " dataset.options.files and segmentation, or copy the release again"
            ]
    samples: list[Sample] = []
    problems: list[str] = []
    for folder in folders:
        match = _FOLDER.fullmatch(folder.name)
        paths = [folder / name for name in (layout.image_name, layout.mask_name)]
        absent = [path for path in paths if not path.is_file()]
        if match is None:
            problems.append(
                f"oasis: folder {str(folder)!r}: expected OASIS_OAS1_XXXX_MRn; rename it"
            )
        elif absent:
            # Scans that lack files are not left out in silence: their release is half copied.
            problems += [
                f"oasis: {str(path)!r} is missing; copy the release again" for path in absent
            ]
        else:
            person = people.get(folder.name, {})
            sex, age = person.get("sex"), person.get("age")
            samples.append(
                Sample(
                    id=folder.name,
                    image_path=paths[0],
                    mask_path=paths[1],
                    class_index=CLASS_NAMES.index(sex) if sex else -1,
                    target=float(age) if age else float("nan"),
                    group=match.group(1),
                )
            )
    return tuple(samples), problems


def _read_participants(path: Path) -> dict[str, dict[str, str]]:
    """Map each scan to the other fields of its row; an empty field is unknown."""
    header, *rows = read_rows(path) or [[]]
    names = [name.strip() for name in header]
    people: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        given = dict(zip(names, map(str.strip, row), strict=False))
        fields = {name: given.get(name, "") for name in ("subject", "sex", "age", *names) if name}
        subject, sex, age = fields.pop("subject"), fields["sex"], fields["age"]
        if not subject or sex not in ("", *CLASS_NAMES) or not re.fullmatch("[0-9]{0,3}", age):
            raise InputError(
                f"{path}: line {line}: expected the columns subject, sex (F, M or empty) and age"
                f" (years or empty), got {subject!r}, {sex!r}, {age!r}"
            )
        people[subject] = fields
    return people


def _read_labels(layout: _Layout, path: Path) -> tuple[str, ...]:
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    names = {row[0]: row[1] for row in rows if len(row) >= 2 and row[0] != "0"}
    numbers = [str(number) for number in range(1, layout.segmentation + 1)]
    if sorted(names) != sorted(numbers) or len(set(names.values())) != len(numbers):
        raise InputError(
            f"{path}: expected one line 'number name' for each label from 1 to"
            f" {layout.segmentation}, got numbers {', '.join(names) or 'none'}"
        )
    return tuple(names[number] for number in numbers)


SOURCE = DatasetSource(
    name="oasis",
    summary=(
        "brain MRI, slices with 24 structures or volumes with 35 (neurite-OASIS layout); OASIS data"
        " use agreement, github.com/adalca/medical-datasets"
    ),
    needs_root=True,
    channels=1,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    labels_of=lambda options: _layout_of(options).labels,
    size_of=lambda options: _layout_of(options).kind.size,
    read=read,
    licence=(
        "OASIS data use agreement (oasis-brains.org); labelled images of another origin in the same"
        " layout have licences of their own"
    ),
    citation=(
        "Marcus et al. (2007), Open Access Series of Imaging Studies (OASIS), J. Cogn. Neurosci."
        " 19(9), doi:10.1162/jocn.2007.19.9.1498; Hoopes et al. (2022), Learning the effect of"
        " registration hyperparameters with HyperMorph, MELBA 1. The acknowledgement that the"
        " OASIS data use agreement words is due in publications"
    ),
)
