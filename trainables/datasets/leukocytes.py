"""White blood cells from three places, one cell in each picture, for the class of cell.

Sources: `wbc1` and `wbc2` are the two stains of `wbc.py`; `bccd` has the images of
github.com/Shenggan/BCCD_Dataset (MIT) and their classes of github.com/dhruvp/wbc-classification.

Layout below the root; what is missing of the three is left out:
- `wbc/Dataset 1` and `wbc/Class Labels of Dataset 1.csv`, the same of 2: see `wbc.py`; its masks
  are not read
- `bccd/BCCD/JPEGImages/BloodImage_00001.jpg`, `bccd/BCCD/Annotations/BloodImage_00001.xml` (boxes,
  Pascal VOC) and `bccd/labels.csv` (number of the image, names of its cells)

Of BCCD, images are taken that have one name in `labels.csv` and a box of a white blood cell. The
largest such box becomes a square about its middle, half as long again as its longer side; where
that leaves the image, the image's edge is repeated. So a cell fills two thirds of its picture, as
in the other two. Names in `labels.csv` without image and boxes are left out: it lists more images
than were published.

A class needs `min_per_class` images in every domain that is there. Basophils are rarer in all
three, so they are left out of all domains, and the four of `DEFAULT_CLASSES` remain; `explorer
datasets check` counts them all.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import (
    MAX_PIXELS,
    DatasetReport,
    DatasetSource,
    ImageDataset,
    Size,
    require_names,
    require_size,
)
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    decode_image,
    load_files,
    open_listing,
    read_bytes,
    read_picture,
    read_rows,
    resize_image,
)
from trainables.datasets.wbc import CLASS_NAMES, read_classes

DOMAIN_NAMES = ("wbc1", "wbc2", "bccd")
DEFAULT_CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil")
MIN_PER_CLASS = 8
SIZE = (64, 64)
# On each side of a box, as a share of its longer side.
MARGIN = 0.25

# The official annotations have up to 7 kB.
_MAX_XML_BYTES = 2**18
_STEM = re.compile(r"BloodImage_([0-9]{5})", re.ASCII)
_SIDES = ("xmin", "ymin", "xmax", "ymax")

_Box: TypeAlias = tuple[int, int, int, int]


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    classes: str = ",".join(DEFAULT_CLASSES),
    min_per_class: int = MIN_PER_CLASS,
) -> ImageDataset:
    """Load the cells of the domains that are there, padded to squares and resized, in colour.

    There are no label maps.

    Args:
        root: folder with the layout above.
        size: (H, W) to return.
        classes: names of the classes to load, separated by commas; their order numbers them.
        min_per_class: images that each of them must have in every domain.

    Raises:
        InputError: folder or file missing or broken, or a class has too few images.
    """
    size = require_size("leukocytes", size)
    names = _class_names(classes)
    _require_min_per_class(min_per_class)
    listing = open_listing("leukocytes", root, partial(_listing, names, min_per_class))
    present = sorted({sample.domain for sample in listing.samples})
    samples = tuple(
        replace(sample, domain=present.index(sample.domain)) for sample in listing.samples
    )
    return load_files(
        "leukocytes",
        replace(listing, samples=samples),
        _decode,
        size=size,
        labels=(),
        domain_names=tuple(DOMAIN_NAMES[domain] for domain in present),
    )


def check(root: Path) -> DatasetReport:
    """Read every file below `root` and report; images are those of the default classes.

    `cells` counts all classes, as they are listed; `left_out` are those with too few.
    """
    report = check_files(
        "leukocytes",
        root,
        partial(_listing, DEFAULT_CLASSES, MIN_PER_CLASS),
        _decode,
        size=SIZE,
        domain_names=DOMAIN_NAMES,
    )
    if not report.details:
        return report
    counts = _counts(open_listing("leukocytes", root, _cells).samples)
    details = {
        "domains": report.details["domains"],
        "cells": {
            DOMAIN_NAMES[domain]: {
                name: count[index] for index, name in enumerate(CLASS_NAMES) if count[index]
            }
            for domain, count in counts.items()
        },
        "left_out": _too_few(counts, CLASS_NAMES, MIN_PER_CLASS),
    }
    return replace(report, details=details)


def _class_names(classes: Any) -> tuple[str, ...]:
    return require_names("leukocytes", "classes", classes, known=CLASS_NAMES, at_least=2)


def _class_names_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    return _class_names(options.get("classes", ",".join(DEFAULT_CLASSES)))


def _require_min_per_class(min_per_class: Any) -> None:
    is_whole = isinstance(min_per_class, (int, np.integer)) and not isinstance(min_per_class, bool)
    if not is_whole or min_per_class < 0:
        raise InputError(
            "dataset.options.min_per_class of leukocytes: expected a whole number of at least 0,"
            f" got {min_per_class!r}"
        )


def _decode(sample: Sample, image_bytes: bytes, xml: bytes, size: Size) -> Pair:
    image = decode_image(sample.image_path, image_bytes, "RGB")
    if sample.mask_path != sample.image_path:
        image = _cut(sample, image, _boxes(sample.mask_path, xml))
    return resize_image(sample.image_path, image, size), np.zeros(size, dtype=np.uint8)


def _cut(sample: Sample, image: NDArray[np.uint8], boxes: Iterable[_Box]) -> NDArray[np.uint8]:
    """The square about the largest box, the image's edge repeated around it."""
    height, width = image.shape[:2]
    left, top, right, bottom = max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    side = round((1 + 2 * MARGIN) * max(right - left, bottom - top))
    if right > width or bottom > height or side * side > MAX_PIXELS:
        raise InputError(
            f"{sample.mask_path}: box {(left, top, right, bottom)} in an image of {width} x"
            f" {height} pixels; expected it inside, copy both again"
        )
    rows, columns = (
        np.clip((low + high - side) // 2 + np.arange(side), 0, length - 1)
        for low, high, length in ((top, bottom, height), (left, right, width))
    )
    return image[rows][:, columns]


def _listing(names: Sequence[str], min_per_class: int, root: Path) -> Listing:
    """The cells of some classes, numbered by `names`."""
    cells = _cells(root)
    problems = cells.problems
    rare = _too_few(_counts(cells.samples), names, min_per_class)
    if rare and not problems:
        kept = ",".join(name for name in names if name not in rare)
        hint = f"set dataset.options.classes={kept}, or " if "," in kept else ""
        problems = (
            f"leukocytes: classes left out: {'; '.join(f'{n} ({why})' for n, why in rare.items())},"
            f" expected at least {min_per_class} images in every domain; {hint}lower"
            " dataset.options.min_per_class",
        )
    numbers = [CLASS_NAMES.index(name) for name in names]
    samples = tuple(
        replace(cell, class_index=numbers.index(cell.class_index))
        for cell in cells.samples
        if cell.class_index in numbers
    )
    if not samples and not problems:
        problems = (f"leukocytes: {str(root)!r} holds no {' or '.join(names)}; copy it again",)
    return Listing(root, samples, problems, cells.lists)


def _counts(cells: Sequence[Sample]) -> dict[int, Counter[int]]:
    """How many cells each domain that is there has of each class."""
    counts: dict[int, Counter[int]] = {}
    for cell in cells:
        counts.setdefault(cell.domain, Counter())[cell.class_index] += 1
    return counts


def _too_few(
    counts: Mapping[int, Counter[int]], names: Sequence[str], min_per_class: int
) -> dict[str, str]:
    """Classes that any domain has too few of, and how many."""
    found = {
        name: [
            f"{count[CLASS_NAMES.index(name)]} in {DOMAIN_NAMES[domain]}"
            for domain, count in counts.items()
            if count[CLASS_NAMES.index(name)] < min_per_class
        ]
        for name in names
    }
    return {name: ", ".join(lines) for name, lines in found.items() if lines}


def _cells(root: Path) -> Listing:
    """The cells of all classes, numbered by `CLASS_NAMES`."""
    wbc, bccd = root / "wbc", root / "bccd"
    listings = [
        *(_wbc_cells(wbc, number) for number in (1, 2) if (wbc / f"Dataset {number}").is_dir()),
        *([_bccd_cells(bccd)] if bccd.is_dir() else []),
    ]
    problems = [line for listing in listings for line in listing.problems]
    if not listings:
        problems.append(
            f"leukocytes: {str(root)!r} holds neither 'wbc/Dataset 1', 'wbc/Dataset 2' nor 'bccd';"
            " dataset.root must be the folder of these folders"
        )
    return Listing(
        root,
        tuple(cell for listing in listings for cell in listing.samples),
        tuple(problems),
        tuple(path for listing in listings for path in listing.lists),
    )


def _wbc_cells(wbc: Path, number: int) -> Listing:
    folder, class_list = wbc / f"Dataset {number}", wbc / f"Class Labels of Dataset {number}.csv"
    try:
        classes = read_classes(class_list)
    except InputError as error:
        return Listing(wbc, (), (str(error),))
    cells, problems = [], []
    for stem, class_index in sorted(classes.items()):
        path = folder / f"{stem}.bmp"
        if path.is_file():
            cells.append(
                Sample(
                    id=f"wbc{number}/{stem}",
                    image_path=path,
                    mask_path=path,
                    domain=number - 1,
                    class_index=class_index,
                )
            )
        else:
            problems.append(_missing(path, class_list))
    if not classes:
        problems.append(f"leukocytes: {class_list} names no image; copy the original again")
    return Listing(wbc, tuple(cells), tuple(problems), (class_list,))


def _bccd_cells(bccd: Path) -> Listing:
    images, annotations = bccd / "BCCD" / "JPEGImages", bccd / "BCCD" / "Annotations"
    labels = bccd / "labels.csv"
    try:
        classes = _read_labels(labels)
    except InputError as error:
        return Listing(bccd, (), (str(error),))
    stems = [
        {path.stem for path in folder.glob(f"BloodImage_[0-9]*{suffix}")}
        for folder, suffix in ((images, ".jpg"), (annotations, ".xml"))
    ]
    cells, problems = [], []
    for stem in sorted(set.union(*stems)):
        path, xml = images / f"{stem}.jpg", annotations / f"{stem}.xml"
        for each, other in ((path, xml), (xml, path)):
            if not each.is_file():
                problems.append(_missing(each, other))
        match = _STEM.fullmatch(stem)
        class_index = classes.get(int(match[1]), -1) if match else -1
        if class_index < 0 or not (path.is_file() and xml.is_file()):
            continue
        try:
            has_cell = bool(_boxes(xml, read_bytes(xml)))
        except InputError as error:
            problems.append(str(error))
            continue
        if has_cell:
            cells.append(
                # The boxes stand in the place of the mask: decoded beside the image, and digested.
                Sample(
                    id=f"bccd/{stem}",
                    image_path=path,
                    mask_path=xml,
                    domain=2,
                    class_index=class_index,
                )
            )
    if not cells and not problems:
        problems.append(
            f"leukocytes: {str(bccd)!r} holds no cell with a class; expected BCCD/JPEGImages,"
            " BCCD/Annotations and labels.csv, copy them again"
        )
    return Listing(bccd, tuple(cells), tuple(problems), (labels,))


def _missing(path: Path, other: Path) -> str:
    return f"leukocytes: {str(path)!r} is missing, but {other} tells of it; copy the folder again"


def _read_labels(path: Path) -> dict[int, int]:
    """Map each image number to the class of its cell, -1 where it has several or none."""
    known = [name.upper() for name in CLASS_NAMES]
    classes: dict[int, int] = {}
    for line, row in enumerate(read_rows(path)[1:], start=2):
        if not any(row):
            continue
        _, number, names, *more = (*row, "", "", "")[: max(3, len(row))]
        cells = [name.strip() for name in names.split(",") if name.strip()]
        is_row = re.fullmatch("[0-9]{1,5}", number) and set(cells) <= set(known) and not more
        if not is_row or int(number) in classes:
            raise InputError(
                f"{path}: line {line}: expected a number, met once, and names of cells"
                f" ({', '.join(known)}), got {','.join(row)[:60]!r}; copy the original again"
            )
        classes[int(number)] = known.index(cells[0]) if len(cells) == 1 else -1
    return classes


def _boxes(path: Path, data: bytes) -> list[_Box]:
    """The boxes of white blood cells; those of others are not looked at.

    A document type, which may declare entities, is refused before anything is parsed. It could
    hide in another encoding, so text is decoded first.
    """
    broken = InputError(
        f"{path}: expected a complete Pascal VOC annotation with boxes (xmin < xmax, ymin < ymax);"
        " copy the original again"
    )
    if len(data) > _MAX_XML_BYTES:
        raise InputError(f"{path}: {len(data)} bytes, expected at most {_MAX_XML_BYTES}")
    try:
        text = data.decode("utf-8-sig")
        if "<!DOCTYPE" in text:
            raise InputError(f"{path}: holds a document type; copy the original annotation again")
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise broken from error
    boxes = []
    for each in tree.iter("object"):
        if each.findtext("name") == "WBC":
            sides = [(each.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
            if not all(re.fullmatch("[0-9]{1,5}", side) for side in sides):
                raise broken
            left, top, right, bottom = map(int, sides)
            if left >= right or top >= bottom:
                raise broken
            boxes.append((left, top, right, bottom))
    if tree.tag != "annotation":
        raise broken
    return boxes


SOURCE = DatasetSource(
    name="leukocytes",
    summary=(
        "classes of white blood cells, three domains (WBC in two stains, BCCD); GPL-3.0,"
        " github.com/zxaoyou/segmentation_WBC, and MIT, github.com/Shenggan/BCCD_Dataset"
    ),
    needs_root=True,
    channels=3,
    labels=(),
    size=SIZE,
    load=load,
    check=check,
    read=read_picture,
    class_names=DEFAULT_CLASSES,
    class_names_of=_class_names_of,
    licence=(
        "WBC: GPL-3.0, the licence file of github.com/zxaoyou/segmentation_WBC. BCCD: MIT; its"
        " classes, github.com/dhruvp/wbc-classification, state none"
    ),
    citation=(
        "Zheng, Wang, Wang, Liu (2018), Fast and robust segmentation of white blood cell images by"
        " self-supervised learning, Micron 107, 55-71, doi:10.1016/j.micron.2018.01.010."
        " Acknowledge Jiangxi Tecom Science Corporation (Dataset 1) and the CellaVision blog"
        " (Dataset 2). BCCD Dataset, github.com/Shenggan/BCCD_Dataset, images from cosmicad and"
        " akshaylamba"
    ),
)
