"""What a data set is, what is known of one without its files, and how its images are split.

Shapes: n images, C channels, spatial (H, W) or (D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError

MAX_PIXELS = 64_000_000

# Percentages of the images; whole numbers keep the allocation exact.
SPLIT_PERCENTAGES = {"train": 64, "val": 16, "test": 20}

Size: TypeAlias = tuple[int, ...]
# One value for each image: texts, "" unknown, or numbers, NaN unknown.
Column: TypeAlias = tuple[str, ...] | NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ImageDataset:
    """Images with their label maps and what is known of each.

    Attributes:
        name: of the source.
        images: (n, C, *spatial), intensities in [-1, 1]; in memory, or mapped from a file.
        masks: (n, *spatial); 0 background, k = `labels[k - 1]`; see `no_masks`.
        labels: names of the foreground labels; none where there are no label maps.
        ids: (n,) unique and stable.
        domains: (n,) index into `domain_names`.
        domain_names: scanner, stain, species: what images of a kind share.
        classes: (n,) class of the whole image, an index into the source's `class_names`, -1
            unknown.
        targets: (n,) regression target, NaN unknown.
        findings: (n, f) whether each of the source's `finding_names` is in the image: 1, 0, NaN
            unknown; several may be. f = 0 where there are none.
        groups: (n,) person of each image; no split cuts a group. Default: `ids`.
        attributes: further columns of a table of participants, such as sex and age, by name.
        digest: sha256 of what was read, or of the generated arrays.

    Raises:
        ValueError: shapes disagree, an id repeats, a value is outside its range or not finite.
    """

    name: str
    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    labels: tuple[str, ...]
    ids: tuple[str, ...]
    domains: NDArray[np.int64]
    domain_names: tuple[str, ...]
    classes: NDArray[np.int64]
    targets: NDArray[np.float64]
    findings: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    groups: tuple[str, ...] = ()
    attributes: Mapping[str, Column] = field(default_factory=dict)
    digest: str

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", self.ids)
        n = len(self.ids)
        if not self.findings.size:
            object.__setattr__(self, "findings", np.zeros((n, 0)))
        lengths = {
            "masks": len(self.masks),
            "images": len(self.images),
            "domains": len(self.domains),
            "classes": len(self.classes),
            "targets": len(self.targets),
            "findings": len(self.findings),
            "groups": len(self.groups),
            **{f"attributes[{name!r}]": len(each) for name, each in self.attributes.items()},
        }
        for place, length in lengths.items():
            if length != n or n == 0:
                raise ValueError(f"{place}: expected one row per id and at least one, got {length}")
        if self.images.shape[2:] != self.masks.shape[1:] or self.images.ndim not in (4, 5):
            raise ValueError(
                "expected images (n, C, *spatial) and masks (n, *spatial) with two or three"
                f" spatial axes, got {self.images.shape} and {self.masks.shape}"
            )
        if len(set(self.ids)) != n:
            raise ValueError("ids must differ")
        # those in a file were looked at when it was written, and may be larger than memory
        if not isinstance(self.images, np.memmap):
            require_intensities(self.images)
        if self.masks.max() > len(self.labels):
            raise ValueError(f"masks hold {self.masks.max()}, but {len(self.labels)} labels exist")
        if not (self.domains.min() >= 0 and self.domains.max() < len(self.domain_names)):
            raise ValueError("domains must be indices into domain_names")

    def __repr__(self) -> str:
        return (
            f"ImageDataset({self.name!r}, images={self.images.shape}, labels={len(self.labels)},"
            f" domains={len(self.domain_names)}, digest={self.digest[:12]!r})"
        )

    def __len__(self) -> int:
        return len(self.ids)


def require_intensities(images: NDArray[np.float32]) -> None:
    """Refuse images that are not as `ImageDataset` needs them.

    Raises:
        ValueError: a value is outside [-1, 1] or not finite.
    """
    # A NaN fails both comparisons; no temporary of the images' size is made.
    if not (images.min() >= -1 and images.max() <= 1):
        raise ValueError("images must be finite and in [-1, 1]")


def no_masks(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Label maps (n, *spatial) of images (n, C, *spatial) that have none: all background.

    They take no memory, and cannot be written to.
    """
    return np.broadcast_to(np.uint8(0), (len(images), *images.shape[2:]))


@dataclass(frozen=True, eq=False)
class ReadImage:
    """One image as a data set's `load` makes it of its file, without a label map.

    Attributes:
        pixels: (C, *spatial), intensities in [-1, 1].
        affine: (4, 4) from indices of `pixels` to millimetres, of volumes; None of pictures.
    """

    pixels: NDArray[np.float32]
    affine: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class DatasetReport:
    """What a look at a data folder found.

    Attributes:
        num_images: images that can be used.
        problems: one line each; empty when the folder loads.
        details: counts for the reader, JSON values only.
    """

    num_images: int
    problems: tuple[str, ...]
    details: dict[str, Any]


@dataclass(frozen=True)
class DatasetSource:
    """What is known of a data set without its files.

    Attributes:
        name: key in `DATASETS`.
        summary: one line with licence and official source.
        needs_root: whether `load` needs a folder.
        channels: C of the default options.
        labels: foreground labels of the default options; none where there are no label maps.
        class_names: what `ImageDataset.classes` index; none where there are no classes.
        finding_names: of the columns of `ImageDataset.findings`.
        target_name: what `ImageDataset.targets` are, with their unit: `age (years)`; empty: none.
        domain_names: of the default options, where they are known without files.
        size: spatial size of the default options.
        load: `load(root, *, size, **options)`; raises InputError for missing or bad data.
        check: looks through a folder and reports; bad data never makes it raise.
        labels_of: the labels that these options of `load` give, where options change them.
        class_names_of: the same of `class_names`.
        size_of: the size that these options of `load` give by default, where options change it.
        read: `read(path, data, *, size, max_pixels, **options)` makes a `ReadImage` of the content
            of one more file, exactly as `load` does; raises InputError for bad data. None: images
            of this data set cannot be brought as files.
        spacing_mm: of the pixels of every image, per axis, where it is known and the same.
        licence: under which the images may be used; empty: not stated.
        citation: what its authors ask to be cited, and whom they ask to be acknowledged.
    """

    name: str
    summary: str
    needs_root: bool
    channels: int
    labels: tuple[str, ...]
    size: Size
    load: Callable[..., ImageDataset]
    check: Callable[[Path], DatasetReport]
    labels_of: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None
    class_names_of: Callable[[Mapping[str, Any]], tuple[str, ...]] | None = None
    size_of: Callable[[Mapping[str, Any]], Size] | None = None
    read: Callable[..., ReadImage] | None = None
    spacing_mm: tuple[float, ...] | None = None
    class_names: tuple[str, ...] = ()
    finding_names: tuple[str, ...] = ()
    target_name: str = ""
    domain_names: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""


def split_indices(dataset: ImageDataset, *, seed: int) -> dict[str, NDArray[np.int64]]:
    """Sorted indices of "train", "val" and "test": 64, 16 and 20 % of the images.

    Groups, in random order within each domain, go one by one to the split that lags its share
    most. So shares hold to within one image, and within two in every domain, where groups are
    single images. A group counts for the domain of its first image.

    Raises:
        InputError: a split would be empty.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(dataset.groups):
        members.setdefault(group, []).append(index)
    groups = list(members.values())
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    chosen: dict[str, list[int]] = {name: [] for name in SPLIT_PERCENTAGES}
    placed = 0
    for group_index in sorted(shuffled, key=lambda g: int(dataset.domains[groups[g][0]])):
        placed += len(groups[group_index])
        lags = {s: share * placed - 100 * len(chosen[s]) for s, share in SPLIT_PERCENTAGES.items()}
        chosen[max(lags, key=lags.__getitem__)] += groups[group_index]
    for name, indices in chosen.items():
        if not indices:
            raise InputError(
                f"dataset {dataset.name!r}: split {name!r} would be empty, {len(dataset)} images in"
                f" {len(groups)} groups are too few; give at least four groups of images"
            )
    return {name: np.array(sorted(indices), dtype=np.int64) for name, indices in chosen.items()}


def require_size(name: str, size: Sequence[int], *, num_axes: tuple[int, ...] = (2,)) -> Size:
    """The spatial size as a tuple of whole numbers.

    Raises:
        InputError: wrong number of axes, an axis below 4 or too many pixels.
    """
    is_whole = all(isinstance(length, (int, np.integer)) and length >= 4 for length in size)
    if len(size) not in num_axes or not is_whole:
        axes = " or ".join(map(str, num_axes))
        raise InputError(
            f"dataset {name!r}: size must be {axes} whole numbers of at least 4, got {list(size)}"
        )
    if math.prod(size) > MAX_PIXELS:
        raise InputError(f"dataset {name!r}: size {list(size)} is above {MAX_PIXELS} pixels")
    return tuple(int(length) for length in size)


def require_names(
    name: str, option: str, value: Any, *, known: Sequence[str], at_least: int = 1
) -> tuple[str, ...]:
    """The names that an option of a data set lists, separated by commas.

    Args:
        name: of the data set.
        option: its name.
        value: as it was given.
        known: the names that there are.
        at_least: how many it must list, one or two.

    Raises:
        InputError: no text, too few names, one twice, or one that is not known.
    """
    names = [each.strip() for each in value.split(",")] if isinstance(value, str) else []
    if len(names) < at_least or len(set(names)) < len(names) or not set(names) <= set(known):
        number = {1: "one", 2: "two"}[at_least]
        raise InputError(
            f"dataset.options.{option} of {name}: expected {number} or more of {','.join(known)},"
            f" separated by commas, got {value!r}"
        )
    return tuple(names)
