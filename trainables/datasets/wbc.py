"""White blood cells in two stains: nucleus and cytoplasm, five classes of cell.

Source: Zheng, Wang, Wang, Liu (2018), Micron 107, 55-71, doi:10.1016/j.micron.2018.01.010;
files: github.com/zxaoyou/segmentation_WBC.

Official layout: folders `Dataset 1` and `Dataset 2` with `NNN.bmp` and its mask `NNN.png`, and
`Class Labels of Dataset 1.csv` (and 2) with image number and class 1 to 5.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from search_spaces.errors import InputError
from trainables.datasets.base import DatasetReport, DatasetSource, ImageDataset, Size, require_size
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    decode_image,
    load_files,
    open_listing,
    read_picture,
    read_rows,
    relabel,
    resize_pair,
)

LABELS = ("nucleus", "cytoplasm")
DOMAIN_NAMES = ("dataset1", "dataset2")
CLASS_NAMES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
SIZE = (64, 64)

# A few masks of Dataset 2 hold stray values up to 50 in their background.
_TABLE = np.full(256, -1, dtype=np.int64)
_TABLE[:64], _TABLE[255], _TABLE[128] = 0, 1, 2


def load(root: str | os.PathLike[str] | None = None, *, size: Sequence[int] = SIZE) -> ImageDataset:
    """Load both stains, padded to squares and resized; classes follow `CLASS_NAMES`.

    An image that no class list names has class -1.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("wbc", size)
    listing = open_listing("wbc", root, _listing)
    return load_files("wbc", listing, _decode, size=size, labels=LABELS, domain_names=DOMAIN_NAMES)


def check(root: Path) -> DatasetReport:
    """Read every file below `root` and report."""
    return check_files("wbc", root, _listing, _decode, size=SIZE, domain_names=DOMAIN_NAMES)


def _decode(sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size) -> Pair:
    image = decode_image(sample.image_path, image_bytes, "RGB")
    mask = relabel(
        sample.mask_path,
        decode_image(sample.mask_path, mask_bytes, "L"),
        _TABLE,
        expected="below 64 for background, 128 for cytoplasm, 255 for nucleus",
    )
    return resize_pair(sample.image_path, image, mask, size)


def _listing(root: Path) -> Listing:
    samples: list[Sample] = []
    problems: list[str] = []
    lists: list[Path] = []
    for domain, domain_name in enumerate(DOMAIN_NAMES):
        folder = root / f"Dataset {domain + 1}"
        if not folder.is_dir():
            problems.append(
                f"wbc: folder {str(folder)!r} is missing; dataset.root must hold 'Dataset 1' and"
                " 'Dataset 2' of github.com/zxaoyou/segmentation_WBC"
            )
            continue
        classes: dict[str, int] = {}
        class_list = root / f"Class Labels of Dataset {domain + 1}.csv"
        if class_list.is_file():
            lists.append(class_list)
            try:
                classes = read_classes(class_list)
            except InputError as error:
                problems.append(str(error))
        images, masks = (
            {path.stem for path in folder.glob(f"[!.]*{suffix}")} for suffix in (".bmp", ".png")
        )
        problems += _unpaired(folder, images, masks, set(classes))
        samples += [
            Sample(
                id=f"{domain_name}/{stem}",
                image_path=folder / f"{stem}.bmp",
                mask_path=folder / f"{stem}.png",
                domain=domain,
                class_index=classes.get(stem, -1),
            )
            for stem in sorted(images & masks)
        ]
    return Listing(root, tuple(samples), tuple(problems), tuple(lists))


def _unpaired(folder: Path, images: set[str], masks: set[str], listed: set[str]) -> list[str]:
    if not images | masks | listed:
        return [f"wbc: {str(folder)!r} holds no NNN.bmp; copy the official folder again"]
    lacks = {
        f"{stem}.{suffix}"
        for present, suffix in ((images, "bmp"), (masks, "png"))
        for stem in (images | masks | listed) - present
    }
    return [
        f"wbc: {str(folder / name)!r} is missing, but its image, its mask or the class list is"
        " there; copy the official folder again"
        for name in sorted(lacks)
    ]


def read_classes(path: Path) -> dict[str, int]:
    """Map each image number of a class list, written with three digits, to its class from 0.

    Raises:
        InputError: the file cannot be read, or a line is none of a class list.
    """
    classes: dict[str, int] = {}
    for line, row in enumerate(read_rows(path)[1:], start=2):
        if not any(row):
            continue
        if not re.fullmatch(r"[0-9]{1,6}, *[1-5]", ",".join(row)):
            raise InputError(
                f"{path}: line {line}: expected an image number and a class from 1 to 5,"
                f" got {','.join(row)!r}"
            )
        classes[f"{int(row[0]):03d}"] = int(row[1]) - 1
    return classes


SOURCE = DatasetSource(
    name="wbc",
    summary=(
        "white blood cells, nucleus and cytoplasm, two stains; GPL-3.0,"
        " github.com/zxaoyou/segmentation_WBC"
    ),
    needs_root=True,
    channels=3,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    read=read_picture,
    licence="GPL-3.0, the licence file of github.com/zxaoyou/segmentation_WBC",
    citation=(
        "Zheng, Wang, Wang, Liu (2018), Fast and robust segmentation of white blood cell images by"
        " self-supervised learning, Micron 107, 55-71, doi:10.1016/j.micron.2018.01.010."
        " Acknowledge Jiangxi Tecom Science Corporation (Dataset 1) and the CellaVision blog"
        " (Dataset 2)"
    ),
)
