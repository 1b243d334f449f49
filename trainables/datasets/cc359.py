"""Heads in T1 MR volumes of six scanners, brain against the rest, as slices (Calgary-Campinas-359).

Source: Souza et al. (2018), "An open, multi-vendor, multi-field-strength brain MR dataset and
analysis of publicly available skull stripping methods agreement", NeuroImage 170, 482-494,
doi:10.1016/j.neuroimage.2017.08.021; files: sites.google.com/view/calgary-campinas-dataset.
Processing: Zakazov et al. (2021), "Anatomy of Domain Shift Impact on U-Net Layers in MRI
Segmentation", arXiv:2107.04914, section 4.1.
Licence: CC BY-ND 4.0.

Official layout, as the release's archives unpack: `Original` with 359 volumes named by subject,
vendor, field (1.5 T or 3 T), age and sex, such as `CC0001_philips_15_55_M.nii.gz`, and
`Silver-standard-machine-learning` with `CC0001_philips_15_55_M_ss.nii.gz` and so on. Each may hold
a further folder, `Original` or `Silver-standard`, or be one (`Silver-standard`), and both may stand
in `Reconstructed`. Masks of other origin (`Silver-standard-STAPLE`, `Manual`) are not read.

What is assumed of the files: a mask has the voxels of its volume in the same order, whatever its
own affine says; its brain has one value, mostly 1, among zeros. Points of 1 mm lie about the middle
of a volume, as many along each axis as it is long in whole millimetres; volumes are turned to the
nearest axes R-A-S, never by an angle.
"""

from __future__ import annotations

import math
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
    Sample,
    Stack,
    check_files,
    load_stacks,
    open_listing,
)
from trainables.datasets.nifti import (
    Scan,
    fitted,
    intensity_range,
    product,
    read_nifti,
    require_same_shape,
    scaled_intensities,
)

LABELS = ("brain",)
DOMAIN_NAMES = ("philips_15", "philips_3", "siemens_15", "siemens_3", "ge_15", "ge_3")
SIZE = (256, 256)
NUM_SLICES = 24
# Intensities up to the first of these are -1, from the second on 1.
PERCENTILES = (1.0, 99.0)
# Voxels of other sizes are no MRI of a head, but a damaged header.
SPACINGS_MM = (0.1, 10.0)

_EXAMPLE = (171, 256, 256)
_VOLUME = re.compile(r"(CC\d{4})_((?:philips|siemens|ge)_(?:15|3))_(\d{1,3})_([FM])", re.ASCII)
_SUFFIX, _MASK_SUFFIX = ".nii.gz", "_ss.nii.gz"
_VOLUMES = ("Original/Original", "Original")
_MASKS = (
    "Silver-standard-machine-learning/Silver-standard",
    "Silver-standard-machine-learning",
    "Silver-standard/Silver-standard",
    "Silver-standard",
)
# Header and affine are in single precision.
_TOLERANCE = 1e-3
_DECIMALS = 4


@dataclass(frozen=True, eq=False)
class _Grid:
    """The points of 1 mm of a volume.

    Attributes:
        orientation: (3, 2) of nibabel, from the volume's axes to R-A-S.
        places: of the points along each axis R, A and S, counted in voxels.
    """

    orientation: NDArray[np.float64]
    places: tuple[NDArray[np.float64], ...]

    def turned(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same voxels, axes R-A-S."""
        import nibabel

        turned: NDArray[Any] = nibabel.apply_orientation(values, self.orientation)  # type: ignore[no-untyped-call] # has no types
        return turned


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    num_slices: int = NUM_SLICES,
) -> ImageDataset:
    """Load axial slices of every volume, (R, A) at 1 mm, padded or cropped centrally.

    Each volume is clipped to two of its percentiles and interpolated linearly, the mask too, which
    is brain from a half on. The slices are spread evenly over those that hold brain. Padding is -1,
    the darkest intensity, and background. Targets and the attribute `age` are years, the attribute
    `sex` is F or M, groups are volumes, one of each person.

    Args:
        root: folder of the release.
        size: (H, W) to return.
        num_slices: of each volume.

    Raises:
        InputError: folder or file missing, broken, or not of the official layout.
    """
    size = require_size("cc359", size)
    _require_num_slices(num_slices)
    return load_stacks(
        "cc359",
        open_listing("cc359", root, _listing),
        partial(_decode, num_slices),
        num_each=num_slices,
        size=size,
        labels=LABELS,
        domain_names=DOMAIN_NAMES,
    )


def check(root: Path) -> DatasetReport:
    """Read every volume below `root` and report; images are slices, as many as by default."""
    return check_files(
        "cc359",
        root,
        _listing,
        partial(_decode, NUM_SLICES),
        size=SIZE,
        domain_names=DOMAIN_NAMES,
        num_each=NUM_SLICES,
    )


def _require_num_slices(num_slices: Any) -> None:
    is_whole = isinstance(num_slices, (int, np.integer)) and not isinstance(num_slices, bool)
    if not is_whole or num_slices < 1:
        raise InputError(
            "dataset.options.num_slices of cc359: expected a whole number of at least 1, got"
            f" {num_slices!r}"
        )


def _decode(
    num_slices: int, sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size
) -> Stack:
    image = read_nifti(sample.image_path, image_bytes, example=_EXAMPLE)
    grid = _grid(image)
    brain = _brain(image, grid, sample.mask_path, mask_bytes)
    indices = _spread(sample.mask_path, brain, num_slices)
    limits = intensity_range(image, PERCENTILES)
    return Stack(
        ids=tuple(f"{sample.id}/{index}" for index in indices),
        images=np.stack([_picture(image, grid, limits, index, size)[None] for index in indices]),
        masks=np.stack([fitted(brain[:, :, index], size, 0) for index in indices]),
    )


def read(
    path: Path,
    data: bytes,
    *,
    size: Size,
    max_pixels: int = MAX_PIXELS,
    num_slices: int = NUM_SLICES,
) -> ReadImage:
    """The middle slice of one more volume, as `load` makes it of its own; see `DatasetSource.read`.

    Without a mask it is not known which slices hold brain; that of the middle stands for them.
    """
    _require_num_slices(num_slices)
    image = read_nifti(path, data, example=_EXAMPLE, max_pixels=max_pixels)
    grid = _grid(image)
    middle = len(grid.places[2]) // 2
    limits = intensity_range(image, PERCENTILES)
    return ReadImage(_picture(image, grid, limits, middle, size)[None])


def _grid(image: Scan) -> _Grid:
    """The points of 1 mm in a volume whose header tells how large its voxels are."""
    import nibabel

    low, high = SPACINGS_MM
    stored, spacing = np.array(image.stored_spacing_mm), image.spacing_mm
    is_usual = ((stored >= low) & (stored <= high)).all()
    if not (is_usual and np.allclose(stored, spacing, rtol=0, atol=_TOLERANCE)):
        raise InputError(
            f"{image.path}: voxels of {product(stored)} mm by the sizes in the header,"
            f" {product(spacing)} mm by its affine; expected the same, from {low:g} to {high:g} mm;"
            " copy the original again"
        )
    orientation = nibabel.io_orientation(image.affine)  # type: ignore[no-untyped-call] # has no types
    if np.isnan(orientation).any():
        raise InputError(
            f"{image.path}: axes {image.axes} lead nowhere; expected three directions in space,"
            " copy the original again"
        )
    places: list[NDArray[np.float64]] = [np.empty(0)] * 3
    for axis, length in enumerate(image.values.shape):
        places[int(orientation[axis, 0])] = _places(length, round(spacing[axis], _DECIMALS))
    lengths = [len(each) for each in places]
    if math.prod(lengths) > MAX_PIXELS:
        raise InputError(
            f"{image.path}: {product(lengths)} mm are above {MAX_PIXELS} voxels of 1 mm; expected a"
            " head, copy the original again"
        )
    return _Grid(orientation, tuple(places))


def _places(length: int, spacing_mm: float) -> NDArray[np.float64]:
    """Points of 1 mm about the middle of an axis, counted in its voxels."""
    num_points = max(1, round(length * spacing_mm))
    places = (np.arange(num_points) - (num_points - 1) / 2) / spacing_mm + (length - 1) / 2
    return np.clip(places, 0, length - 1)


def _brain(image: Scan, grid: _Grid, path: Path, data: bytes) -> NDArray[np.uint8]:
    """The mask (R, A, S) on points of 1 mm."""
    mask = read_nifti(path, data, example=_EXAMPLE)
    require_same_shape(image, mask)
    values, top = mask.values, mask.values.max()
    is_known = (values == 0) | ((values == top) & np.isfinite(values))
    if not is_known.all():
        foreign = values[~is_known][0]
        raise InputError(
            f"{path}: mask value {foreign:g} beside {top:g}; expected 0 and one other value; copy"
            " the original mask again"
        )
    is_brain = grid.turned(values != 0).astype(np.float32)
    return (_interpolated(is_brain, grid.places) >= 0.5).astype(np.uint8)


def _spread(path: Path, brain: NDArray[np.uint8], num_slices: int) -> NDArray[np.int64]:
    """The slices to take, spread evenly over those that hold brain."""
    held = np.flatnonzero(brain.any(axis=(0, 1)))
    if held.size == 0:
        raise InputError(f"{path}: the mask holds no brain; copy the original mask again")
    if held.size < num_slices:
        raise InputError(
            f"{path}: {held.size} slices hold brain, expected at least {num_slices}; lower"
            " dataset.options.num_slices, or copy the original mask again"
        )
    chosen: NDArray[np.int64] = held[(2 * np.arange(num_slices) + 1) * held.size // num_slices // 2]
    return chosen


def _picture(
    image: Scan, grid: _Grid, limits: tuple[float, float], index: int, size: Size
) -> NDArray[np.float32]:
    """One slice (*size); only the voxels about it are scaled, which saves memory."""
    place = grid.places[2][index]
    first = int(place)
    slab = scaled_intensities(grid.turned(image.values)[:, :, first : first + 2], *limits)
    pixels = _interpolated(slab, (*grid.places[:2], np.array([place - first])))[:, :, 0]
    # A weighted mean may end a rounding error outside.
    return fitted(np.clip(pixels, -1, 1), size, -1)


def _interpolated(
    volume: NDArray[np.float32], places: Sequence[NDArray[np.float64]]
) -> NDArray[np.float32]:
    """A volume at the places along each of its axes, linear between voxels."""
    for axis in reversed(range(3)):
        length, along = volume.shape[axis], places[axis]
        if np.array_equal(along, np.arange(length)):
            continue
        before = along.astype(np.int64)
        after = np.minimum(before + 1, length - 1)
        shape = [-1 if each == axis else 1 for each in range(3)]
        share = (along - before).astype(np.float32).reshape(shape)
        volume = volume.take(before, axis) * (1 - share) + volume.take(after, axis) * share
    return volume


def _listing(root: Path) -> Listing:
    base = root / "Reconstructed" if (root / "Reconstructed").is_dir() else root
    folders = {"Original": _VOLUMES, "Silver-standard-machine-learning": _MASKS}
    found = {name: _files(base, below) for name, below in folders.items()}
    problems = [
        f"cc359: {str(base)!r} holds no folder {name} with NIfTI files; dataset.root must be the"
        f" folder with {' and '.join(folders)} of the Calgary-Campinas data set, unpacked"
        for name, paths in found.items()
        if not paths
    ]
    if problems:
        return Listing(base, (), tuple(problems))
    volumes = {path.name.removesuffix(_SUFFIX): path for path in found["Original"]}
    masks = {
        path.name.removesuffix(_MASK_SUFFIX): path
        for path in found["Silver-standard-machine-learning"]
    }
    people = {
        stem: match
        for stem in volumes
        if (match := _VOLUME.fullmatch(stem)) is not None and stem in masks
    }
    samples = tuple(
        Sample(
            id=stem,
            image_path=volumes[stem],
            mask_path=masks[stem],
            domain=DOMAIN_NAMES.index(match[2]),
            target=float(match[3]),
            group=stem,
        )
        for stem, match in people.items()
    )
    return Listing(
        base,
        samples,
        (*_misnamed(volumes, masks), *_repeated(volumes, people)),
        attributes={
            "age": np.array([sample.target for sample in samples]),
            "sex": tuple(match[4] for match in people.values()),
        },
    )


def _misnamed(volumes: Mapping[str, Path], masks: Mapping[str, Path]) -> list[str]:
    """What is wrong with names, or lacks the other file of its pair."""
    problems = []
    for stem, path in volumes.items():
        if _VOLUME.fullmatch(stem) is None:
            problems.append(
                f"cc359: {str(path)!r}: expected a name such as CC0001_philips_15_55_M{_SUFFIX}:"
                " subject, vendor, field, age, sex; rename it or take it out"
            )
        elif stem not in masks:
            folder = next(iter(masks.values())).parent
            problems.append(
                f"cc359: {str(path)!r} has no mask {stem}{_MASK_SUFFIX} in {str(folder)!r}; copy"
                " the release again"
            )
    folder = next(iter(volumes.values())).parent
    return problems + [
        f"cc359: {str(path)!r} has no volume {stem}{_SUFFIX} in {str(folder)!r}; copy the release"
        " again"
        for stem, path in masks.items()
        if stem not in volumes
    ]


def _repeated(volumes: Mapping[str, Path], people: Mapping[str, re.Match[str]]) -> list[str]:
    """Volumes of a subject that has another one: groups are volumes, and no split cuts a person."""
    first: dict[str, str] = {}
    return [
        f"cc359: {str(volumes[stem])!r} is of the same subject as {first[match[1]]}; expected one"
        " volume of each person, take one out"
        for stem, match in people.items()
        if first.setdefault(match[1], stem) != stem
    ]


def _files(base: Path, below: Sequence[str]) -> list[Path]:
    """The NIfTI files, sorted, of the first of several folders that holds any."""
    for name in below:
        # Archives of some systems bring hidden files of the same name.
        paths = sorted(path for path in (base / name).glob("[!.]*.nii*") if path.is_file())
        if paths:
            return paths
    return []


SOURCE = DatasetSource(
    name="cc359",
    summary=(
        "brain in slices of head MRI, three vendors at two field strengths (Calgary-Campinas-359);"
        " CC BY-ND 4.0, sites.google.com/view/calgary-campinas-dataset"
    ),
    needs_root=True,
    channels=1,
    labels=LABELS,
    size=SIZE,
    load=load,
    check=check,
    read=read,
    spacing_mm=(1.0, 1.0),
    licence="CC BY-ND 4.0",
    citation=(
        "Souza et al. (2018), An open, multi-vendor, multi-field-strength brain MR dataset and"
        " analysis of publicly available skull stripping methods agreement, NeuroImage 170,"
        " 482-494, doi:10.1016/j.neuroimage.2017.08.021"
    ),
)
