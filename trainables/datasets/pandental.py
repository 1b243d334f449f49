"""Panoramic X-rays of jaws: the mandible and the teeth.

Source: Abdi, Kasaei, Mehdizadeh (2015), "Automatic segmentation of mandible in panoramic x-ray",
J. Med. Imaging 2(4), 044003, doi:10.1117/1.JMI.2.4.044003; files: X-rays and mandibles
data.mendeley.com/datasets/hxt48yk462 (116 pictures); teeth of the same pictures: Helli, Hamamci
(2022), "Tooth Instance Segmentation on Panoramic Dental Radiographs Using U-Nets and Morphological
Processing", Duzce Univ. J. Sci. Technol. 10(1), 39-50,
github.com/SerdarHelli/Segmentation-of-Teeth-in-Panoramic-X-ray-Image-Using-U-Net.
Licence: as the page of the X-rays says; others list CC BY-NC 3.0 for its release 2 and CC BY 4.0
for release 1. The teeth come without one.

Layout: a folder of pictures, `images` or, as the release has it, `Images`, and one of masks for
each structure, with the names of the pictures (`1.png` of `1.png`; the ending may differ):

- `mandible`, or the release's `Segmentation1`. Its `Segmentation2`, by another annotator, is not
  read;
- `teeth`, or `orig_masks`, `Orig_Masks` or `Original_Masks`, as the archive of the teeth unpacks.

`DentalPanoramicXrays`, the folder of the release, or the one above may be the root. Option
`structures` does without one of the folders.

The release has no teeth, so both sources make up what the papers call PanDental. Its 215 X-rays
are most likely 116 pictures with teeth and 99 with a mandible, each a task of its own: so do the
public scripts of its authors (github.com/eri820503/MegaMedical), which leave out 17 mandibles
without saying why. Here a picture is one image with both labels, and none is left out. Roots of
teeth lie within the mandible; where both are marked, a pixel is tooth.

Masks are stored with several pixel types, some in colour. A structure is what differs from the
upper left corner by more than half of what differs most, so that neither its value nor that of the
background matters.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
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
    require_names,
    require_size,
)
from trainables.datasets.files import (
    Listing,
    Pair,
    Sample,
    check_files,
    decode_grey,
    decode_image,
    load_files,
    open_listing,
    read_bytes,
    resize_image,
    resize_pair,
)

LABELS = ("mandible", "teeth")
DOMAIN_NAMES = ("pandental",)
SIZE = (256, 256)
# Of a mask's pixels, those whose value is neither that of the background nor that of the structure.
MAX_BETWEEN = 0.05

_RELEASE = "DentalPanoramicXrays"
_IMAGES = ("images", "Images")
_MASKS = {
    "mandible": ("mandible", "Segmentation1"),
    "teeth": ("teeth", "orig_masks", "Orig_Masks", "Original_Masks"),
}
_PLACES = {
    "mandible": "Segmentation1 of data.mendeley.com/datasets/hxt48yk462",
    "teeth": (
        "the masks of"
        " github.com/SerdarHelli/Segmentation-of-Teeth-in-Panoramic-X-ray-Image-Using-U-Net"
    ),
}
_ENDINGS = tuple(
    ending
    for name in ("png", "bmp", "jpg", "jpeg", "tif", "tiff")
    for ending in (f".{name}", f".{name.upper()}")
)


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    structures: str = ",".join(LABELS),
) -> ImageDataset:
    """Load grey pictures, padded to squares and resized.

    Args:
        root: folder with the layout above.
        size: (H, W) to return.
        structures: mandible, teeth or both, separated by commas; their order numbers the labels.

    Raises:
        InputError: folder or file missing, broken, or not of this layout.
    """
    size = require_size("pandental", size)
    chosen = _structures(structures)
    return load_files(
        "pandental",
        open_listing("pandental", root, partial(_listing, chosen)),
        partial(_decode, chosen),
        size=size,
        labels=chosen,
        domain_names=DOMAIN_NAMES,
    )


def check(root: Path) -> DatasetReport:
    """Read every picture below `root` with the structures whose masks stand, and report."""
    folder = root.expanduser()
    try:
        standing = tuple(name for name in LABELS if _masks(_base(folder), name).is_dir()) or LABELS
    except OSError:
        standing = LABELS  # nor can be listed, which is told then
    report = check_files(
        "pandental",
        root,
        partial(_listing, standing),
        partial(_decode, standing),
        size=SIZE,
        domain_names=DOMAIN_NAMES,
    )
    missing = tuple(_no_masks(_base(folder), name) for name in LABELS if name not in standing)
    details = {**report.details, "structures": list(standing)} if report.details else {}
    return replace(report, problems=(*missing, *report.problems), details=details)


def read(
    path: Path,
    data: bytes,
    *,
    size: Size,
    max_pixels: int = MAX_PIXELS,
    structures: str = ",".join(LABELS),
) -> ReadImage:
    """One more picture, as `load` makes it of its own; see `DatasetSource.read`."""
    _structures(structures)
    return ReadImage(resize_image(path, decode_grey(path, data, max_pixels=max_pixels), size))


def _structures(structures: Any) -> tuple[str, ...]:
    return require_names("pandental", "structures", structures, known=LABELS)


def _labels_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    return _structures(options.get("structures", ",".join(LABELS)))


def _decode(
    structures: Sequence[str], sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size
) -> Pair:
    image = decode_grey(sample.image_path, image_bytes)
    labels = np.zeros(image.shape, dtype=np.uint8)
    # Teeth come last, whatever their number.
    for name in (each for each in LABELS if each in structures):
        path = _mask(sample.image_path.parent.parent, name, sample.id)
        data = mask_bytes if path == sample.mask_path else read_bytes(path)
        is_marked = _marked(path, data)
        if is_marked.shape != image.shape:
            raise InputError(
                f"{path}: mask is {is_marked.shape[1]} x {is_marked.shape[0]} pixels, its picture"
                f" {image.shape[1]} x {image.shape[0]}; expected the same, copy both again"
            )
        # Not every patient has teeth.
        if name == "mandible" and not is_marked.any():
            raise InputError(
                f"{path}: no pixel is marked; expected a mandible, copy the mask again"
            )
        labels[is_marked] = structures.index(name) + 1
    return resize_pair(sample.image_path, image, labels, size)


def _marked(path: Path, data: bytes) -> NDArray[np.bool_]:
    """Where a mask (H, W) of two values holds the one that is not in its upper left corner."""
    colours = decode_image(path, data, "RGB").astype(np.int16)
    differences = np.abs(colours - colours[0, 0]).max(axis=-1)
    top = int(differences.max())
    between = np.mean((4 * differences > top) & (4 * differences < 3 * top))
    if between > MAX_BETWEEN:
        raise InputError(
            f"{path}: {between:.0%} of the pixels are neither background nor structure; expected a"
            " mask of two values, copy it again"
        )
    is_marked: NDArray[np.bool_] = 2 * differences > top
    return is_marked


def _listing(structures: Sequence[str], root: Path) -> Listing:
    base = _base(root)
    images = _first(base, _IMAGES)
    if not images.is_dir():
        return Listing(
            root,
            (),
            (
                f"pandental: folder {str(images)!r} is missing; dataset.root must hold 'images',"
                " 'mandible' and 'teeth', or Images and Segmentation1 of"
                " data.mendeley.com/datasets/hxt48yk462 (listed as CC BY-NC 3.0)",
            ),
        )
    missing = [_no_masks(base, name) for name in structures if not _masks(base, name).is_dir()]
    if missing:
        return Listing(root, (), tuple(missing))
    folders = (images, *(_masks(base, name) for name in structures))
    problems: list[str] = []
    found = [_pictures(folder, problems) for folder in folders]
    stems = set().union(*found)
    for stem in sorted(stems):
        name = next(paths[stem].name for paths in found if stem in paths)
        problems += [
            f"pandental: {str(folder / name)!r} is missing, but its picture or a mask is there;"
            " copy the folder again"
            for folder, paths in zip(folders, found, strict=True)
            if stem not in paths
        ]
    if not stems:
        problems.append(f"pandental: {str(images)!r} holds no pictures; copy the folder again")
    # 2 comes before 10.
    complete = sorted(set.intersection(*map(set, found)), key=lambda stem: (len(stem), stem))
    pictures, first, *others = found
    return Listing(
        root,
        tuple(Sample(stem, pictures[stem], first[stem]) for stem in complete),
        tuple(problems),
        tuple(paths[stem] for paths in others for stem in complete),
    )


def _pictures(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The pictures of a folder by their names without ending; two of one name are a problem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix in _ENDINGS:
            other = found.setdefault(path.stem, path)
            if other != path:
                problems.append(
                    f"pandental: {str(path)!r} and {other.name}: expected one file of each name;"
                    " remove one"
                )
    return found


def _base(root: Path) -> Path:
    """The folder that holds those of the pictures and masks."""
    inner = root / _RELEASE
    return inner if inner.is_dir() else root


def _masks(base: Path, structure: str) -> Path:
    return _first(base, _MASKS[structure])


def _mask(base: Path, structure: str, stem: str) -> Path:
    return _first(_masks(base, structure), [f"{stem}{ending}" for ending in _ENDINGS])


def _first(folder: Path, names: Sequence[str]) -> Path:
    """The first of these that is there; the very first where none is."""
    return next((folder / name for name in names if (folder / name).exists()), folder / names[0])


def _no_masks(base: Path, structure: str) -> str:
    (rest,) = (name for name in LABELS if name != structure)
    return (
        f"pandental: folder {str(base / structure)!r} is missing, nor is there"
        f" {' or '.join(_MASKS[structure][1:])}; copy {_PLACES[structure]}, or do without with"
        f" dataset.options.structures={rest}"
    )


SOURCE = DatasetSource(
    name="pandental",
    summary=(
        "panoramic X-rays of jaws, mandible and teeth; listed as CC BY-NC 3.0,"
        " data.mendeley.com/datasets/hxt48yk462"
    ),
    needs_root=True,
    channels=1,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    labels_of=_labels_of,
    read=read,
    domain_names=DOMAIN_NAMES,
    licence=(
        "X-rays and mandibles: as data.mendeley.com/datasets/hxt48yk462 says, listed as"
        " CC BY-NC 3.0 (release 2) and CC BY 4.0 (release 1); teeth: none stated"
    ),
    citation=(
        "Abdi, Kasaei, Mehdizadeh (2015), Automatic segmentation of mandible in panoramic x-ray,"
        " J. Med. Imaging 2(4), 044003, doi:10.1117/1.JMI.2.4.044003; teeth: Helli, Hamamci (2022),"
        " Tooth Instance Segmentation on Panoramic Dental Radiographs Using U-Nets and"
        " Morphological Processing, Duzce Univ. J. Sci. Technol. 10(1), 39-50"
    ),
)
