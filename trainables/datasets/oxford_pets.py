"""Cats and dogs with trimaps: a pet, its border included, against the background.

Source: Parkhi, Vedaldi, Zisserman, Jawahar (2012), "Cats and dogs", CVPR, 3498-3505,
doi:10.1109/CVPR.2012.6248092; files: www.robots.ox.ac.uk/~vgg/data/pets.

Official layout: `images/NAME.jpg`, `annotations/trimaps/NAME.png` (1 pet, 2 background, 3 border),
and the lists `annotations/trainval.txt` and `test.txt`: name, class from 1, species (1 cat, 2 dog),
breed. Pictures that neither list names are left out, as the authors do.
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
    missing_paths,
    open_listing,
    read_picture,
    read_text,
    relabel,
    resize_pair,
)

LABELS = ("pet",)
DOMAIN_NAMES = ("cat", "dog")
SIZE = (224, 224)
LISTS = ("trainval.txt", "test.txt")

# The border counts as pet: it is a band of a few pixels whose middle is the outline.
_TABLE = np.full(256, -1, dtype=np.int64)
_TABLE[1], _TABLE[2], _TABLE[3] = 1, 0, 1

# A name holds no slash, so that no line leads out of the folder.
_LINE = re.compile(r"([\w.-]+)\s+([1-9][0-9]{0,5})\s+([12])\s+[0-9]+")


def load(root: str | os.PathLike[str] | None = None, *, size: Sequence[int] = SIZE) -> ImageDataset:
    """Load the listed pictures, padded to squares and resized; the domain is the species.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("oxford_pets", size)
    listing = open_listing("oxford_pets", root, _listing)
    return load_files(
        "oxford_pets", listing, _decode, size=size, labels=LABELS, domain_names=DOMAIN_NAMES
    )


def check(root: Path) -> DatasetReport:
    """Read every listed file below `root` and report."""
    return check_files("oxford_pets", root, _listing, _decode, size=SIZE, domain_names=DOMAIN_NAMES)


def _decode(sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size) -> Pair:
    image = decode_image(sample.image_path, image_bytes, "RGB")
    mask = relabel(
        sample.mask_path,
        decode_image(sample.mask_path, mask_bytes, "L"),
        _TABLE,
        expected="1 for pet, 2 for background, 3 for border",
    )
    return resize_pair(sample.image_path, image, mask, size)


def _listing(root: Path) -> Listing:
    lists = tuple(root / "annotations" / name for name in LISTS)
    images, trimaps = root / "images", root / "annotations" / "trimaps"
    advice = "'images' and 'annotations' of www.robots.ox.ac.uk/~vgg/data/pets"
    if missing := missing_paths("oxford_pets", (images, trimaps), lists, advice):
        return Listing(root, (), (missing,))
    try:
        listed = [sample for path in lists for sample in _read_list(root, path)]
    except InputError as error:
        return Listing(root, (), (str(error),))
    samples = {sample.id: sample for sample in listed}
    problems = [
        f"oxford_pets: {str(path)!r} is missing, but the lists name {sample.id}; copy the official"
        " folder again"
        for sample in samples.values()
        for path in (sample.image_path, sample.mask_path)
        if not path.is_file()
    ]
    if len(samples) < len(listed) or not samples:
        problems.append(
            f"oxford_pets: {' and '.join(LISTS)} must name every picture once, and at least one,"
            f" got {len(listed)} lines for {len(samples)} pictures; copy the official lists again"
        )
    present = [s for s in samples.values() if s.image_path.is_file() and s.mask_path.is_file()]
    standing = {path.stem for path in images.glob("[!.]*.jpg") if path.is_file()}
    return Listing(
        root,
        tuple(sorted(present, key=lambda s: s.id)),
        tuple(problems),
        lists,
        unlisted=tuple(sorted(standing - samples.keys())),
    )


def _read_list(root: Path, path: Path) -> list[Sample]:
    samples = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"{path}: line {number}: expected name, class, species (1 cat, 2 dog) and breed,"
                f" got {line!r}"
            )
        name, class_number, species = match.groups()
        samples.append(
            Sample(
                id=name,
                image_path=root / "images" / f"{name}.jpg",
                mask_path=root / "annotations" / "trimaps" / f"{name}.png",
                domain=int(species) - 1,
                class_index=int(class_number) - 1,
            )
        )
    return samples


SOURCE = DatasetSource(
    name="oxford_pets",
    summary="Oxford-IIIT Pet, cats and dogs; CC BY-SA 4.0, www.robots.ox.ac.uk/~vgg/data/pets",
    needs_root=True,
    channels=3,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    read=read_picture,
    licence="CC BY-SA 4.0; the copyright of the images stays with their owners",
    citation=(
        "Parkhi, Vedaldi, Zisserman, Jawahar (2012), Cats and dogs, CVPR, 3498-3505,"
        " doi:10.1109/CVPR.2012.6248092"
    ),
)
