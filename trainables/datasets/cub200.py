"""Birds of 200 species: a bird against the background.

Source: Wah, Branson, Welinder, Perona, Belongie (2011), "The Caltech-UCSD Birds-200-2011 Dataset",
CNS-TR-2011-001, California Institute of Technology; files: data.caltech.edu/records/65de6-vp158
(pictures and lists), data.caltech.edu/records/w9d68-gec53 (segmentations).
Licence: non-commercial research and education (vision.caltech.edu/datasets/cub_200_2011).

Official layout: `CUB_200_2011` with `images/CLASS/NAME.jpg` and the lists `images.txt` (number,
CLASS/NAME.jpg), `image_class_labels.txt` (number, class from 1), `classes.txt` (class, CLASS) and
`train_test_split.txt` (number, 1 in training or 0); 11,788 pictures, 5,994 of them in training. The
segmentations are an archive of their own, `segmentations/CLASS/NAME.png`, which may be unpacked
beside the lists or beside `CUB_200_2011`.

A segmentation holds how many of five annotators marked a pixel, in steps of 51 up to 255. A bird is
what most of them marked: from 128 on, which is three of five. Readers of others differ: that of
chainercv hands out the share of annotators, others take every marked pixel, or those marked by all.
Segmentations in colour or with transparency are read where their colours are grey.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import DatasetReport, DatasetSource, ImageDataset, Size, require_size
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    decode_image,
    load_files,
    missing_paths,
    open_listing,
    read_picture,
    read_text,
    resize_pair,
)

LABELS = ("bird",)
DOMAIN_NAMES = ("cub200",)
SIZE = (224, 224)
MAJORITY = 128

_FOLDER = "CUB_200_2011"
# Neither a class nor a name leads out of its folder.
_PART = r"[A-Za-z0-9_][\w.-]*"
# Each list: what follows the number of a line, and in words.
_LISTS = {
    "images.txt": (rf"({_PART}/{_PART})\.jpg", "CLASS/NAME.jpg"),
    "image_class_labels.txt": (r"([1-9][0-9]{0,5})", "a class from 1"),
    "train_test_split.txt": (r"([01])", "1 (training) or 0 (test)"),
    "classes.txt": (rf"({_PART})", "the name of a class"),
}
_SPLITS = {"1": "train", "0": "test"}


def load(root: str | os.PathLike[str] | None = None, *, size: Sequence[int] = SIZE) -> ImageDataset:
    """Load the listed pictures, padded to squares and resized.

    Classes count from 0; the attributes are `species`, the class by its name in `classes.txt`, and
    `split`, train or test of the official split. All pictures at 224 px take 7 GB of memory.

    Args:
        root: `CUB_200_2011`, or the folder above that also holds `segmentations`.
        size: (H, W) to return.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("cub200", size)
    listing = open_listing("cub200", root, _listing)
    return load_files(
        "cub200", listing, _decode, size=size, labels=LABELS, domain_names=DOMAIN_NAMES
    )


def check(root: Path) -> DatasetReport:
    """Read every listed file below `root` and report."""
    return check_files("cub200", root, _listing, _decode, size=SIZE, domain_names=DOMAIN_NAMES)


def _decode(sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size) -> Pair:
    image = decode_image(sample.image_path, image_bytes, "RGB")
    marked = _marked(sample.mask_path, mask_bytes)
    return resize_pair(sample.image_path, image, (marked >= MAJORITY).astype(np.uint8), size)


def _marked(path: Path, data: bytes) -> NDArray[np.uint8]:
    """The values (H, W) of a segmentation, whatever grey pixel type it is stored with."""
    colours = decode_image(path, data, "RGB")
    is_grey = (colours == colours[..., :1]).all(axis=-1)
    if not is_grey.all():
        raise InputError(
            f"{path}: {np.sum(~is_grey)} pixels are coloured; expected grey values, how many"
            " annotators marked a pixel; copy the original segmentation again"
        )
    return colours[..., 0]


def _listing(root: Path) -> Listing:
    folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
    beside, inside = root / "segmentations", folder / "segmentations"
    segmentations = inside if inside.is_dir() else beside
    lists = tuple(folder / name for name in _LISTS)
    advice = (
        f"{_FOLDER} of data.caltech.edu/records/65de6-vp158 and segmentations of"
        " data.caltech.edu/records/w9d68-gec53 (non-commercial research and education)"
    )
    folders = (folder / "images", segmentations)
    if missing := missing_paths("cub200", folders, lists, advice):
        return Listing(root, (), (missing,))
    try:
        names, classes, splits, species = (_read_list(path) for path in lists)
        _require_complete(folder, names, classes, splits, species)
    except InputError as error:
        return Listing(root, (), (str(error),))
    samples, problems = [], []
    for number, name in sorted(names.items()):
        image_path, mask_path = folder / "images" / f"{name}.jpg", segmentations / f"{name}.png"
        absent = [path for path in (image_path, mask_path) if not path.is_file()]
        problems += [
            f"cub200: {str(path)!r} is missing, but images.txt lists {name}; copy the official"
            " folders again"
            for path in absent
        ]
        if not absent:
            samples.append(
                (number, Sample(name, image_path, mask_path, 0, int(classes[number]) - 1))
            )
    present = [number for number, _ in samples]
    pictures = (path for path in (folder / "images").glob("*/[!.]*.jpg") if path.is_file())
    unlisted = {f"{path.parent.name}/{path.stem}" for path in pictures} - set(names.values())
    return Listing(
        root,
        tuple(sample for _, sample in samples),
        tuple(problems),
        lists,
        {
            "species": tuple(species[int(classes[number])] for number in present),
            "split": tuple(_SPLITS[splits[number]] for number in present),
        },
        tuple(sorted(unlisted)),
    )


def _read_list(path: Path) -> dict[int, str]:
    """What a list says of each number."""
    pattern, words = _LISTS[path.name]
    line_pattern = re.compile(rf"([1-9][0-9]{{0,5}})\s+{pattern}", re.ASCII)
    entries: dict[int, str] = {}
    for line_number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        match = line_pattern.fullmatch(line.strip())
        if match is None or int(match[1]) in entries:
            raise InputError(
                f"{path}: line {line_number}: expected a number, each once, and {words}, got"
                f" {line[:80]!r}; copy the official list again"
            )
        entries[int(match[1])] = match[2]
    return entries


def _require_complete(
    folder: Path,
    names: dict[int, str],
    classes: dict[int, str],
    splits: dict[int, str],
    species: dict[int, str],
) -> None:
    """Refuse lists that do not tell of the same pictures and of every class."""
    if not names or len(set(names.values())) < len(names):
        raise InputError(
            f"{folder / 'images.txt'}: expected every picture once, and at least one, got"
            f" {len(names)} lines for {len(set(names.values()))} pictures; copy it again"
        )
    for name, entries in (("image_class_labels.txt", classes), ("train_test_split.txt", splits)):
        differing = sorted(names.keys() ^ entries.keys())
        if differing:
            raise InputError(
                f"{folder / name}: expected the numbers of images.txt, but {len(differing)} are in"
                f" one of both only, such as {differing[0]}; copy the official lists again"
            )
    unknown = sorted({int(number) for number in classes.values()} - species.keys())
    if unknown:
        raise InputError(
            f"{folder / 'classes.txt'}: class {unknown[0]} of image_class_labels.txt is missing;"
            " copy the official lists again"
        )


SOURCE = DatasetSource(
    name="cub200",
    summary=(
        "Caltech-UCSD Birds-200-2011, birds of 200 species; non-commercial research and education,"
        " data.caltech.edu/records/65de6-vp158 and w9d68-gec53"
    ),
    needs_root=True,
    channels=3,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    read=read_picture,
    domain_names=DOMAIN_NAMES,
    licence=(
        "non-commercial research and education (vision.caltech.edu/datasets/cub_200_2011); the"
        " copyright of the images stays with their owners"
    ),
    citation=(
        "Wah, Branson, Welinder, Perona, Belongie (2011), The Caltech-UCSD Birds-200-2011 Dataset,"
        " CNS-TR-2011-001, California Institute of Technology"
    ),
)
