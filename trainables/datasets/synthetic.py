"""The embedded default: an invented body section, deformed and rendered afresh for every image.

One template holds K structures in groups of four: an organ, its core, a twin of the organ with the
same intensity elsewhere, and a thin ring; and a decoy that looks like the twin but is background.
So fine detail and wide context both matter. Every image deforms that template, which makes labels
correspond between images; domains differ in the intensity of each tissue, as scanners do, or in how
a scanner is calibrated.

Only elementwise arithmetic, square roots and sums of a few terms are used, so that the same options
give the same bits on every machine, whatever its number of threads.

Shapes: K labels, C channels, d spatial axes; coordinates run from -1 to 1 along each axis.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
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
    ReadImage,
    Size,
    require_size,
)
from trainables.datasets.files import decode_image, resize_image
from trainables.datasets.nifti import read_unit_volume

SIZE = (64, 64)
NUM_LABELS = 4
NUM_DOMAINS = 4
NUM_CLASSES = 3
CONTRAST, CALIBRATION = "contrast", "calibration"
CLASS_NAMES = {
    CONTRAST: ("below", "right", "left"),  # of structure 1, where a lobe grows
    CALIBRATION: ("low", "medium", "high"),  # uptake of structure 1
}

# Shares of the half image, chosen so that a small network neither fails nor saturates.
_BODY_RADIUS = 0.82
_RING_HALF_WIDTH = 0.17
_SIZE_SPREAD = 0.16
_AFFINE = 0.12
_DISPLACEMENT = 0.16

# Of `calibration`: uptake of structure 1, its intensity without any, and in the first and the last
# domain the intensity of one unit and that of what lies outside the body.
_UPTAKE, _UPTAKE_SPREAD, _NO_UPTAKE = 0.8, 0.6, -0.6
_GAINS = (1.0, 0.5)
_REFERENCES = (-0.95, -0.65)

_MAX_VALUES = 2**31

_OUTSIDE, _TISSUE, _ORGAN = 0, 1, 2

Floats: TypeAlias = NDArray[np.float32]


def labels_of(num_labels: int) -> tuple[str, ...]:
    """Names of the foreground labels."""
    return tuple(f"structure_{number}" for number in range(1, num_labels + 1))


def load(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Sequence[int] = SIZE,
    num_images: int = 400,
    num_labels: int = NUM_LABELS,
    num_domains: int = NUM_DOMAINS,
    seed: int = 0,
    channels: int = 1,
    shift: str = CONTRAST,
) -> ImageDataset:
    """Generate images; the first m of `num_images` do not depend on how many there are.

    Domains take turns. Where they differ by `contrast`, classes tell on which of three sides of
    structure 1 a lobe grows, and targets are its size, uniform with mean 0 and variance 1: what an
    image shows means the same everywhere. Where they differ by `calibration`, structure 1 takes
    something up, and its intensity is that times a gain which falls from domain to domain, as the
    intensity outside the body rises; targets are the uptake, with mean 0 and variance 1, and
    classes its thirds: the same intensity means another uptake in every domain.

    Args:
        root: not used.
        size: two or three spatial axes.
        num_images: how many.
        num_labels: K, from 1 to 64.
        num_domains: kinds of contrast, or calibrations.
        seed: draws the template, the contrasts and every image.
        channels: C; each has its own contrasts.
        shift: how domains differ, `contrast` or `calibration`.

    Raises:
        InputError: an option is outside its range.
    """
    size = require_size("synthetic", size, num_axes=(2, 3))
    limits = {
        "num_images": (num_images, 1, 1_000_000),
        "num_labels": (num_labels, 1, 64),
        "num_domains": (num_domains, 1, 1000),
        "seed": (seed, 0, 2**63),
        "channels": (channels, 1, 64),
    }
    for name, (value, low, high) in limits.items():
        if not isinstance(value, int) or not low <= value <= high:
            raise InputError(
                f"dataset 'synthetic': {name} must be a whole number in [{low}, {high}],"
                f" got {value!r}"
            )
    if num_images * channels * math.prod(size) > _MAX_VALUES:
        raise InputError(
            f"dataset 'synthetic': num_images x channels x size is above {_MAX_VALUES} values"
        )
    class_names_of({"shift": shift})
    template = _template(np.random.default_rng([seed, 0]), size, num_labels)
    num_contrasts = num_domains if shift == CONTRAST else 1
    means = _tissue_means(np.random.default_rng([seed, 1]), template, num_contrasts, channels)
    images = np.empty((num_images, channels, *size), dtype=np.float32)
    masks = np.empty((num_images, *size), dtype=np.uint8)
    classes = np.empty(num_images, dtype=np.int64)
    targets = np.empty(num_images, dtype=np.float64)
    domains = np.arange(num_images, dtype=np.int64) % num_domains
    for index in range(num_images):
        rng = np.random.default_rng([seed, 2, index])
        classes[index] = rng.integers(NUM_CLASSES)
        targets[index] = math.sqrt(3) * rng.uniform(-1, 1)
        size_change = targets[index] if shift == CONTRAST else 0.0
        masks[index], tissues = _anatomy(rng, template, classes[index], size_change)
        if shift == CONTRAST:
            own = means[domains[index]]
        else:
            own = _calibrated(means[0], domains[index] / max(1, num_domains - 1), targets[index])
            classes[index] = min(int((targets[index] / math.sqrt(3) + 1) / 2 * 3), 2)
        images[index] = _render(rng, tissues, own)
    made = (size, num_labels, num_domains, num_images, *([] if shift == CONTRAST else [shift]))
    digest = hashlib.sha256(repr(made).encode())
    for array in (images, masks, classes, targets):
        digest.update(array.tobytes())
    return ImageDataset(
        name="synthetic",
        images=images,
        masks=masks,
        labels=labels_of(num_labels),
        ids=tuple(f"synthetic/{index:05d}" for index in range(num_images)),
        domains=domains,
        domain_names=tuple(f"domain_{index}" for index in range(num_domains)),
        classes=classes,
        targets=targets,
        digest=digest.hexdigest(),
    )


def read(
    path: Path,
    data: bytes,
    *,
    size: Size,
    max_pixels: int = MAX_PIXELS,
    channels: int = 1,
    **_: Any,
) -> ReadImage:
    """A picture, grey or in colour as `channels` says, or a volume with intensities in [0, 1].

    There are no files to read as `load` would: a picture or a volume of the image that `load`
    generates, scaled to [0, 1], gives that image again.

    Raises:
        InputError: no such file, or a number of channels that no file has.
    """
    if len(size) == 3 and channels == 1:
        return read_unit_volume(path, data, size=size, max_pixels=max_pixels)
    if len(size) == 3 or channels not in (1, 3):
        raise InputError(
            f"dataset 'synthetic': no file holds {channels} channels of {len(size)} axes"
        )
    image = decode_image(path, data, "L" if channels == 1 else "RGB", max_pixels=max_pixels)
    return ReadImage(resize_image(path, image, size))


def check(root: Path) -> DatasetReport:
    """Generate the default images; there is no folder to look at."""
    dataset = load(root)
    return DatasetReport(
        len(dataset), (), {"domains": len(dataset.domain_names), "digest": dataset.digest}
    )


@dataclass(frozen=True)
class _Template:
    """Level functions (positive inside) sampled on the image's grid.

    Columns of `levels`, (pixels, 5 + K): body, decoy, three lobes, then one per label.
    """

    size: Size
    levels: Floats
    tissue_of: tuple[int, ...]


def _template(rng: np.random.Generator, size: Size, num_labels: int) -> _Template:
    axes = [(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    kinds = [label % 4 for label in range(num_labels)]
    centres, radii = _places(rng, len(size), 1 + sum(kind != 1 for kind in kinds))

    def blob(centre: NDArray[np.float64], radius: float, roughness: float = 0.45) -> Floats:
        offsets = grid - centre.astype(np.float32).reshape(-1, *[1] * len(size))
        distance = np.sqrt(np.sum(offsets * offsets, axis=0)) / np.float32(radius)
        level: Floats = 1 - distance + _smooth(rng, 1, size, cells=6)[0] * np.float32(roughness)
        return level

    labels: list[Floats] = []
    tissues: list[int] = []
    place = 1
    for label, kind in enumerate(kinds):
        first_tissue = _ORGAN + 3 * (label // 4)
        if kind == 1:
            centre = centres[place - 1] + 0.15 * radii[place - 1]
            labels.append(blob(centre, 0.5 * radii[place - 1]))
        else:
            labels.append(blob(centres[place], radii[place]))
            place += 1
        tissues.append(first_tissue + (0, 1, 0, 2)[kind])
    sides = _sides(len(size))
    lobes = [blob(centres[1] + 0.85 * radii[1] * side, 0.5 * radii[1], 0.2) for side in sides]
    body = blob(np.zeros(len(size)), _BODY_RADIUS, 0.15)
    levels = np.stack([body, blob(centres[0], radii[0]), *lobes, *labels], axis=-1)
    return _Template(size, levels.reshape(-1, levels.shape[-1]), tuple(tissues))


def _places(
    rng: np.random.Generator, num_axes: int, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (count, d) well apart inside the body, and radii that keep blobs apart."""
    centres: list[NDArray[np.float64]] = []
    while len(centres) < count:
        candidates = rng.uniform(-0.55, 0.55, (256, num_axes))
        candidates = candidates[_norm(candidates) < 0.55]
        gaps = [_norm(candidates - centre) for centre in centres]
        nearest = np.min(gaps, axis=0) if gaps else _norm(candidates)
        centres.append(candidates[np.argmax(nearest)])
    places = np.array(centres)
    gaps_between = _norm(places[:, None] - places[None]) + 4 * np.eye(count)
    return places, np.clip(0.42 * gaps_between.min(axis=1), 0.1, 0.3)


def _sides(num_axes: int) -> NDArray[np.float64]:
    """Three unit vectors at right or straight angles in the first plane."""
    sides = np.zeros((NUM_CLASSES, num_axes))
    sides[0, 0], sides[1, 1], sides[2, 1] = 1, 1, -1
    return sides


def _tissue_means(
    rng: np.random.Generator, template: _Template, num_domains: int, channels: int
) -> Floats:
    """Intensities (domains, C, tissues): the same levels, in another order in every domain."""
    num_tissues = max(template.tissue_of) + 1
    spread = np.linspace(-0.45, 0.8, max(num_tissues - 1, 3))
    num_levels = len(spread)
    # A tissue takes another intensity in each of `num_levels` domains: a Latin square.
    squares = np.argsort(rng.random((-(-num_domains // num_levels), channels, num_levels)), axis=-1)
    domains = range(num_domains)
    order = np.stack([np.roll(squares[j // num_levels], j % num_levels, axis=-1) for j in domains])
    means = spread[order] + rng.uniform(-0.05, 0.05, order.shape)
    outside = rng.uniform(-0.95, -0.8, (num_domains, channels, 1))
    return np.concatenate([outside, means], axis=-1).astype(np.float32)


def _calibrated(means: Floats, place: float, target: float) -> Floats:
    """Intensities (C, tissues) at a place in [0, 1] between the first domain and the last."""
    gain, reference = (low + place * (high - low) for low, high in (_GAINS, _REFERENCES))
    uptake = _UPTAKE + _UPTAKE_SPREAD * target / math.sqrt(3)
    own = means.copy()
    own[:, _OUTSIDE], own[:, _ORGAN] = reference, _NO_UPTAKE + gain * uptake
    return own


def _anatomy(
    rng: np.random.Generator, template: _Template, class_index: int, target: float
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Deform the template: labels and tissues, both of the image's size."""
    size = template.size
    coordinates = _warped_grid(rng, size)
    values = _sample(template, coordinates)
    for length, coordinate in zip(size, coordinates, strict=True):
        values[:, (coordinate < -0.5) | (coordinate > length - 0.5)] = -1
    body, decoy, lobe, organ = values[0], values[1], values[2 + class_index], values[5]
    tissues = np.where(body > 0, _TISSUE, _OUTSIDE).astype(np.int64)
    tissues[decoy > 0] = _ORGAN
    mask = np.zeros(size, dtype=np.uint8)
    organ = np.maximum(organ + np.float32(_SIZE_SPREAD * target), lobe)
    for label, tissue in enumerate(template.tissue_of):
        level = organ if label == 0 else values[5 + label]
        if label % 4 == 3:
            level = _RING_HALF_WIDTH - np.abs(level)
        inside = level > 0
        mask[inside] = label + 1
        tissues[inside] = tissue
    return mask, tissues


def _warped_grid(rng: np.random.Generator, size: Size) -> list[Floats]:
    """Coordinates in pixels, one array per axis, moved by a small affine and a smooth field."""
    num_axes = len(size)
    matrix = np.eye(num_axes) + rng.uniform(-_AFFINE, _AFFINE, (num_axes, num_axes))
    shift = rng.uniform(-_AFFINE, _AFFINE, num_axes)
    field = _smooth(rng, num_axes, size, cells=4)
    axes = np.meshgrid(
        *[(2 * np.arange(n, dtype=np.float32) + 1) / n - 1 for n in size],
        indexing="ij",
        sparse=True,
    )
    coordinates = []
    for axis, length in enumerate(size):
        moved = field[axis] * np.float32(_DISPLACEMENT) + np.float32(shift[axis])
        for other in range(num_axes):
            moved = moved + axes[other].astype(np.float32) * np.float32(matrix[axis, other])
        coordinates.append(((moved + 1) * length - 1) / np.float32(2))
    return coordinates


def _sample(template: _Template, coordinates: Sequence[Floats]) -> Floats:
    """Multilinear interpolation of all levels: (5 + K, *size); the border is repeated."""
    corners: list[tuple[NDArray[np.int64], Floats]] = [
        (np.zeros(template.size, dtype=np.int64), np.ones(template.size, dtype=np.float32))
    ]
    for length, coordinate in zip(template.size, coordinates, strict=True):
        position = np.clip(coordinate, 0, np.float32(length - 1))
        lower = np.minimum(position.astype(np.int64), length - 2)
        share = position - lower.astype(np.float32)
        corners = [
            (index * length + lower + step, weight * part)
            for index, weight in corners
            for step, part in ((0, 1 - share), (1, share))
        ]
    terms = [template.levels[index] * weight[..., None] for index, weight in corners]
    values: Floats = reduce(np.add, terms)
    return np.moveaxis(values, -1, 0)


def _render(rng: np.random.Generator, tissues: NDArray[np.int64], means: Floats) -> Floats:
    """Intensities (C, *size): tissue means, texture, blur, bias field and noise."""
    size, channels = tissues.shape, len(means)
    jitter = rng.uniform(-0.05, 0.05, means.shape).astype(np.float32)
    image = (means + jitter)[:, tissues]
    image = image + _smooth(rng, channels, size, cells=10) * np.float32(0.08)
    for axis in range(1, image.ndim):
        image = _blur(image, axis)
    bias = 1 + _smooth(rng, 1, size, cells=2) * np.float32(0.3)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noisy: Floats = (image + 1) * bias - 1 + noise * np.float32(rng.uniform(0.04, 0.1))
    return np.clip(noisy, -1, 1)


def _blur(image: Floats, axis: int) -> Floats:
    """Weights 1/4, 1/2, 1/4 along one axis; the border is repeated."""
    length = image.shape[axis]
    indices = np.arange(length)
    before = image.take(np.maximum(indices - 1, 0), axis=axis)
    after = image.take(np.minimum(indices + 1, length - 1), axis=axis)
    blurred: Floats = (before + after) * np.float32(0.25) + image * np.float32(0.5)
    return blurred


def _smooth(rng: np.random.Generator, count: int, size: Size, *, cells: int) -> Floats:
    """Random fields (count, *size) in [-1, 1]: cubic B-splines on `cells` intervals per axis."""
    field = rng.uniform(-1, 1, (count, *[cells + 3] * len(size))).astype(np.float32)
    for axis, length in enumerate(size, start=1):
        position = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(
            cells / length
        )
        cell = np.minimum(position.astype(np.int64), cells - 1)
        t = position - cell.astype(np.float32)
        weights = (
            (1 - t) * (1 - t) * (1 - t),
            t * t * (3 * t - 6) + 4,
            t * (t * (3 - 3 * t) + 3) + 1,
            t * t * t,
        )
        shape = [-1 if index == axis else 1 for index in range(field.ndim)]
        terms = [
            field.take(cell + tap, axis=axis) * (weight / np.float32(6)).reshape(shape)
            for tap, weight in enumerate(weights)
        ]
        field = reduce(np.add, terms)
    return field


def _norm(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length: NDArray[np.float64] = np.sqrt(np.sum(vectors * vectors, axis=-1))
    return length


def _labels_of_options(options: Mapping[str, Any]) -> tuple[str, ...]:
    num_labels = options.get("num_labels", NUM_LABELS)
    if not isinstance(num_labels, int) or num_labels < 1:
        raise InputError(
            f"dataset.options.num_labels must be a whole number of at least 1, got {num_labels!r}"
        )
    return labels_of(num_labels)


def class_names_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that these options of `load` give.

    Raises:
        InputError: an unknown shift.
    """
    shift = options.get("shift", CONTRAST)
    if not isinstance(shift, str) or shift not in CLASS_NAMES:
        raise InputError(
            f"dataset 'synthetic': shift must be one of {', '.join(CLASS_NAMES)}, got {shift!r}"
        )
    return CLASS_NAMES[shift]


SOURCE = DatasetSource(
    name="synthetic",
    summary="invented body sections, generated on the fly; no files, no licence needed",
    needs_root=False,
    channels=1,
    labels=labels_of(NUM_LABELS),
    size=SIZE,
    load=load,
    check=check,
    labels_of=_labels_of_options,
    read=read,
    class_names=CLASS_NAMES[CONTRAST],
    class_names_of=class_names_of,
    target_name="target",
    domain_names=tuple(f"domain_{index}" for index in range(NUM_DOMAINS)),
    licence="none needed: generated",
)
