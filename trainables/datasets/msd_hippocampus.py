"""Hippocampus in small 3D MRI crops, anterior and posterior part (Decathlon, Task 04).

Source: Antonelli et al. (2022), "The Medical Segmentation Decathlon", Nat. Commun. 13, 4128,
doi:10.1038/s41467-022-30695-9; Simpson et al. (2019), arXiv:1902.09063; data of Vanderbilt
University Medical Center; files: medicaldecathlon.com (Task04_Hippocampus).
Licence: CC BY-SA 4.0.

Official layout: folder `Task04_Hippocampus` with `dataset.json`, `imagesTr/hippocampus_XXX.nii.gz`
and `labelsTr/` with the same names; about 35 x 51 x 35 voxels of 1 mm, axes R-A-S, intensities on
a scale of each volume's own. The test images have no labels and are not read.

The release does not tell which volumes are of one person, so each is a group of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
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
    load_files,
    open_listing,
    read_text,
)
from trainables.datasets.nifti import (
    Scan,
    fitted,
    intensity_range,
    overlap,
    read_nifti,
    require_grid,
    require_same_affine,
    require_same_shape,
    scaled_intensities,
    whole_labels,
)

LABELS = ("anterior", "posterior")
DOMAIN_NAMES = ("msd_hippocampus",)
# Whole in four halvings, and no official volume loses a voxel.
SIZE = (48, 64, 48)
AXES = "R-A-S"
# Intensities up to the first of these are -1, from the second on 1.
PERCENTILES = (1.0, 99.0)

_TASK = "Task04_Hippocampus"
_IMAGE = re.compile(r"(?:\./)?(imagesTr/([A-Za-z0-9][\w.-]*)\.nii\.gz)", re.ASCII)


def load(root: str | os.PathLike[str] | None = None, *, size: Sequence[int] = SIZE) -> ImageDataset:
    """Load the labelled volumes, each scaled by its own intensities, padded or cropped centrally.

    Voxels keep their size. Padding is -1, the darkest intensity, and background.

    Args:
        root: the task's folder or the one above.
        size: (D, H, W) to return.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("msd_hippocampus", size, num_axes=(3,))
    listing = open_listing("msd_hippocampus", root, _listing)
    return load_files(
        "msd_hippocampus", listing, _decode, size=size, labels=LABELS, domain_names=DOMAIN_NAMES
    )


def check(root: Path) -> DatasetReport:
    """Read every labelled volume below `root` and report."""
    return check_files(
        "msd_hippocampus", root, _listing, _decode, size=SIZE, domain_names=DOMAIN_NAMES
    )


def _decode(sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size) -> Pair:
    image = read_nifti(sample.image_path, image_bytes, example=(35, 51, 35))
    mask = read_nifti(sample.mask_path, mask_bytes, example=(35, 51, 35))
    require_same_shape(image, mask)
    require_grid(image, axes=AXES, spacing_mm=1)
    require_same_affine(image, mask)
    labels = whole_labels(mask, len(LABELS), hint=f"use labelsTr of {_TASK}")
    pixels = _normalised(image)
    return fitted(pixels, size, -1)[None], fitted(labels, size, 0)


def read(path: Path, data: bytes, *, size: Size, max_pixels: int = MAX_PIXELS) -> ReadImage:
    """One more volume, as `load` makes it; see `DatasetSource.read`."""
    image = read_nifti(path, data, example=(35, 51, 35), max_pixels=max_pixels)
    require_grid(image, axes=AXES, spacing_mm=1)
    to_image = np.eye(4)
    to_image[:3, 3] = [
        source.start - target.start
        for source, target in zip(*overlap(image.values.shape, size), strict=True)
    ]
    return ReadImage(fitted(_normalised(image), size, -1)[None], image.affine @ to_image)


def _normalised(image: Scan) -> NDArray[np.float32]:
    return scaled_intensities(image.values, *intensity_range(image, PERCENTILES))


def _listing(root: Path) -> Listing:
    folder = root / _TASK if (root / _TASK / "dataset.json").is_file() else root
    table = folder / "dataset.json"
    if not table.is_file():
        return Listing(
            folder,
            (),
            (
                f"msd_hippocampus: {str(root)!r} holds no dataset.json; dataset.root must be the"
                f" folder {_TASK} of the Decathlon, or the one above",
            ),
        )
    try:
        names = _read_table(table)
    except InputError as error:
        return Listing(folder, (), (str(error),))
    samples, problems = [], []
    for name, image_path in names.items():
        paths = [folder / image_path, folder / image_path.replace("imagesTr", "labelsTr", 1)]
        absent = [path for path in paths if not path.is_file()]
        problems += [
            f"msd_hippocampus: {str(path)!r} is missing, but dataset.json lists it; copy the"
            " task again"
            for path in absent
        ]
        if not absent:
            samples.append(Sample(id=name, image_path=paths[0], mask_path=paths[1]))
    return Listing(folder, tuple(samples), tuple(problems), (table,))


def _read_table(path: Path) -> dict[str, str]:
    """The labelled volumes of dataset.json: name and image below the task's folder, sorted."""
    try:
        document: Any = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, got a broken file; copy it again") from error
    document = document if isinstance(document, dict) else {}
    labels = document.get("labels")
    expected = {"0": "background"} | {str(k): name for k, name in enumerate(LABELS, start=1)}
    found = {k: str(name).lower() for k, name in labels.items()} if isinstance(labels, dict) else {}
    if found != expected:
        raise InputError(
            f"{path}: labels: expected {json.dumps(expected)}, got {json.dumps(labels)[:80]};"
            f" dataset.root must be {_TASK}"
        )
    entries = document.get("training")
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: training: expected a list of volumes; copy the task again")
    names: dict[str, str] = {}
    for number, entry in enumerate(entries, start=1):
        image, label = (
            (str(entry.get(key)) for key in ("image", "label"))
            if isinstance(entry, dict)
            else ("", "")
        )
        match = _IMAGE.fullmatch(image)
        if not match or image.replace("imagesTr", "labelsTr", 1) != label or match[2] in names:
            raise InputError(
                f"{path}: training, entry {number}: expected an image ./imagesTr/NAME.nii.gz and"
                f" its label ./labelsTr/NAME.nii.gz, each once, got {image[:80]!r} and"
                f" {label[:80]!r}"
            )
        names[match[2]] = match[1]
    return dict(sorted(names.items()))


SOURCE = DatasetSource(
    name="msd_hippocampus",
    summary=(
        "hippocampus in 3D MRI, anterior and posterior (Decathlon Task04_Hippocampus); CC BY-SA"
        " 4.0, medicaldecathlon.com"
    ),
    needs_root=True,
    channels=1,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    read=read,
    licence="CC BY-SA 4.0",
    citation=(
        "Antonelli et al. (2022), The Medical Segmentation Decathlon, Nat. Commun. 13, 4128,"
        " doi:10.1038/s41467-022-30695-9; Simpson et al. (2019), arXiv:1902.09063"
    ),
)
