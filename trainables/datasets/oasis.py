"""Brain MRI slices with 24 structures, in the layout of the neurite-OASIS release.

Source: Marcus et al. (2007), "Open Access Series of Imaging Studies (OASIS)", J. Cogn. Neurosci.
19(9), doi:10.1162/jocn.2007.19.9.1498; Hoopes, Hoffmann, Greve, Fischl, Guttag, Dalca (2022),
"Learning the effect of registration hyperparameters with HyperMorph", MELBA 1;
files: github.com/adalca/medical-datasets (neurite-oasis).

Official layout: one folder per scan, `OASIS_OAS1_XXXX_MRn`, with `slice_norm.nii.gz` (intensities
in [0, 1]) and `slice_seg24.nii.gz`, 160 x 192 x 1 each; `seg24_labels.txt` (number, name), and
optionally `subjects.txt` (folders) and `participants.csv` (subject, sex, age).
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import (
    MAX_PIXELS,
    DatasetReport,
    DatasetSource,
    ImageDataset,
    Size,
    require_size,
)
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    load_files,
    open_listing,
    read_rows,
    read_text,
)

LABELS = (
    "Left-Cerebral-White-Matter",
    "Left-Cerebral-Cortex",
    "Left-Lateral-Ventricle",
    "Left-Inf-Lat-Ventricle",
    "Left-Thalamus",
    "Left-Caudate",
    "Left-Putamen",
    "Left-Pallidum",
    "3rd-Ventricle",
    "Brain-Stem",
    "Left-Hippocampus",
    "Left-Ventral-DC",
    "Left-Choroid-Plexus",
    "Right-Cerebral-White-Matter",
    "Right-Cerebral-Cortex",
    "Right-Lateral-Ventricle",
    "Right-Inf-Lat-Ventricle",
    "Right-Thalamus",
    "Right-Caudate",
    "Right-Putamen",
    "Right-Pallidum",
    "Right-Hippocampus",
    "Right-Ventral-DC",
    "Right-Choroid-Plexus",
)
DOMAIN_NAMES = ("oasis",)
CLASS_NAMES = ("F", "M")
SIZE = (160, 192)

_FOLDER = re.compile(r"OASIS_(OAS1_\d{4})_MR\d+")


def load(root: str | os.PathLike[str] | None = None, *, size: Sequence[int] = SIZE) -> ImageDataset:
    """Load the slices; a size other than theirs resamples them.

    Targets are ages in years, classes index `CLASS_NAMES`, groups are people; names of labels
    come from `seg24_labels.txt` where it stands.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("oasis", size)
    listing = open_listing("oasis", root, _listing)
    labels_path = listing.root / "seg24_labels.txt"
    labels = _read_labels(labels_path) if labels_path.is_file() else LABELS
    return load_files(
        "oasis", listing, _decode, size=size, labels=labels, domain_names=DOMAIN_NAMES
    )


def check(root: Path) -> DatasetReport:
    """Read every slice below `root` and report."""
    return check_files("oasis", root, _listing, _decode, size=SIZE, domain_names=DOMAIN_NAMES)


def _decode(sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size) -> Pair:
    image = _read_slice(sample.image_path, image_bytes)
    mask = _read_slice(sample.mask_path, mask_bytes)
    if image.shape != mask.shape:
        raise InputError(
            f"{sample.mask_path}: labels are {mask.shape}, the image is {image.shape};"
            " expected the same, copy both again"
        )
    # A scaled image may end a rounding error above 1.
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise InputError(
            f"{sample.image_path}: intensities in [{image.min():g}, {image.max():g}], expected"
            " [0, 1]; use the normalised slice_norm of the release"
        )
    foreign = mask[~np.isin(mask, np.arange(len(LABELS) + 1))]
    if foreign.size:
        raise InputError(
            f"{sample.mask_path}: label {foreign[0]:g} in {np.sum(foreign == foreign[0])} pixels;"
            f" expected whole numbers from 0 to {len(LABELS)}; use slice_seg24 of the release"
        )
    pixels = torch.from_numpy(np.clip(image, 0, 1) * 2 - 1).to(torch.float32)[None, None]
    labels = torch.from_numpy(mask.astype(np.uint8))[None, None]
    if image.shape != size:
        pixels = torch.nn.functional.interpolate(
            pixels, size, mode="bilinear", align_corners=False, antialias=True
        ).clamp(-1, 1)
        labels = torch.nn.functional.interpolate(labels, size, mode="nearest-exact")
    return pixels[0].numpy(), labels[0, 0].numpy()


def _read_slice(path: Path, data: bytes) -> NDArray[np.float64]:
    """Decode a gzipped NIfTI file of one slice, (H, W); the header is checked before the data."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    nibabel_errors = (ImageFileError, HeaderDataError, WrapStructError)

    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            image: Any = nibabel.Nifti1Image.from_stream(stream)
            shape = tuple(image.shape)
            if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)):
                raise InputError(f"{path}: shape {shape}, expected one slice such as (160, 192, 1)")
            if image.get_data_dtype().kind not in "uif":
                raise InputError(f"{path}: expected numbers, got {image.get_data_dtype()} values")
            if math.prod(shape) > MAX_PIXELS:
                raise InputError(f"{path}: shape {shape} is above {MAX_PIXELS} pixels; shrink it")
            values: NDArray[np.float64] = image.get_fdata().reshape(shape[:2])
            return values
    except (OSError, EOFError, ValueError, struct.error, zlib.error, *nibabel_errors) as error:
        raise InputError(
            f"{path}: expected a complete gzipped NIfTI file, got a broken or truncated one;"
            " copy the original again"
        ) from error


def _listing(root: Path) -> Listing:
    folders = sorted(path for path in root.glob("OASIS_OAS1_*_MR*") if path.is_dir())
    lists = tuple(
        root / name
        for name in ("seg24_labels.txt", "subjects.txt", "participants.csv")
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
    people: dict[str, tuple[int, float]] = {}
    listed: set[str] = set()
    try:
        for path in lists:
            if path.name == "subjects.txt":
                listed = set(read_text(path).split())
            elif path.name == "participants.csv":
                people = _read_participants(path)
            else:
                _read_labels(path)
    except InputError as error:
        problems.append(str(error))
    problems += [
        f"oasis: folder {str(root / name)!r} is missing, but subjects.txt lists it; copy the"
        " release again"
        for name in sorted(listed - {folder.name for folder in folders})
    ]
    samples = []
    for folder in folders:
        match = _FOLDER.fullmatch(folder.name)
        paths = [folder / name for name in ("slice_norm.nii.gz", "slice_seg24.nii.gz")]
        absent = [path for path in paths if not path.is_file()]
        if match is None:
            problems.append(
                f"oasis: folder {str(folder)!r}: expected OASIS_OAS1_XXXX_MRn; rename it"
            )
        elif absent:
            problems += [
                f"oasis: {str(path)!r} is missing; copy the release again" for path in absent
            ]
        else:
            class_index, age = people.get(folder.name, (-1, float("nan")))
            samples.append(
                Sample(
                    id=folder.name,
                    image_path=paths[0],
                    mask_path=paths[1],
                    class_index=class_index,
                    target=age,
                    group=match.group(1),
                )
            )
    return Listing(root, tuple(samples), tuple(problems), lists)


def _read_participants(path: Path) -> dict[str, tuple[int, float]]:
    """Map each scan to its class and age; an empty field is unknown."""
    header, *rows = read_rows(path) or [[]]
    people: dict[str, tuple[int, float]] = {}
    for line, row in enumerate(rows, start=2):
        fields = dict(zip(header, row, strict=False))
        subject, sex, age = (fields.get(name, "").strip() for name in ("subject", "sex", "age"))
        if not subject or sex not in ("", *CLASS_NAMES) or not re.fullmatch("[0-9]{0,3}", age):
            raise InputError(
                f"{path}: line {line}: expected the columns subject, sex (F, M or empty) and age"
                f" (years or empty), got {subject!r}, {sex!r}, {age!r}"
            )
        class_index = CLASS_NAMES.index(sex) if sex else -1
        people[subject] = (class_index, float(age) if age else float("nan"))
    return people


def _read_labels(path: Path) -> tuple[str, ...]:
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    names = {row[0]: row[1] for row in rows if len(row) >= 2 and row[0] != "0"}
    numbers = [str(number) for number in range(1, len(LABELS) + 1)]
    if sorted(names) != sorted(numbers) or len(set(names.values())) != len(numbers):
        raise InputError(
            f"{path}: expected one line 'number name' for each label from 1 to {len(LABELS)},"
            f" got numbers {', '.join(names) or 'none'}"
        )
    return tuple(names[number] for number in numbers)


SOURCE = DatasetSource(
    name="oasis",
    summary=(
        "brain MRI slices, 24 structures (neurite-OASIS layout); OASIS data use agreement,"
        " github.com/adalca/medical-datasets"
    ),
    needs_root=True,
    channels=1,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
)
