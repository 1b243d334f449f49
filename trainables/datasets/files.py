"""How the files of a data set are listed, checked, decoded safely and digested.

Shapes: C channels, spatial (H, W) or (D, H, W).
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import (
    MAX_PIXELS,
    Column,
    DatasetReport,
    ImageDataset,
    ReadImage,
    Size,
    require_intensities,
)
from trainables.datasets.cache import Allocate, Decoded, in_memory, kept

MAX_FILE_BYTES = 2**29

# Decoders that images need; Pillow's others (PostScript, for one) start programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF")
# catch_warnings changes the whole process, and images are decoded in threads.
_HEADER_LOCK = threading.Lock()
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")

Pair: TypeAlias = tuple[NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True)
class Sample:
    """One image of a data folder: its files, and the fields of `ImageDataset`.

    Without a mask, `mask_path` is `image_path`: decoders are given no bytes of it, and make a map
    of background.
    """

    id: str
    image_path: Path
    mask_path: Path
    domain: int = 0
    class_index: int = -1
    target: float = float("nan")
    findings: tuple[float, ...] = ()
    group: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of a data folder.

    Attributes:
        root: the folder.
        samples: in the order of the data set.
        problems: what is wrong with the layout, one line each.
        lists: further files that were read; they enter the digest.
        attributes: of the data set, one value per sample.
        unlisted: names of images that lie there and are left out, as no list names them.
    """

    root: Path
    samples: tuple[Sample, ...]
    problems: tuple[str, ...]
    lists: tuple[Path, ...] = ()
    attributes: Mapping[str, Column] = field(default_factory=dict)
    unlisted: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Stack:
    """The k images that the two files of one sample hold.

    Attributes:
        ids: (k,) of the images.
        images: (k, C, *size), intensities in [-1, 1].
        masks: (k, *size).
    """

    ids: tuple[str, ...]
    images: NDArray[np.float32]
    masks: NDArray[np.uint8]


# (sample, image bytes, mask bytes, size) -> image (C, *size) in [-1, 1], mask (*size)
Decode: TypeAlias = Callable[[Sample, bytes, bytes, Size], Pair]
DecodeStack: TypeAlias = Callable[[Sample, bytes, bytes, Size], Stack]


def load_files(
    name: str,
    listing: Listing,
    decode: Decode,
    *,
    size: Size,
    labels: tuple[str, ...],
    domain_names: tuple[str, ...],
) -> ImageDataset:
    """Read every file of a listing once, in a few threads; what is kept decoded is read instead.

    Args:
        name: of the data set.
        listing: its files.
        decode: a function of a module, or a `functools.partial` of one; see `cache.kept`.
        size: to decode to.
        labels: of the data set.
        domain_names: of the data set.

    Raises:
        InputError: the listing has problems or no images, or a file cannot be used.
        RunError: decoded images cannot be kept.
    """
    return load_stacks(
        name,
        listing,
        partial(_single, decode),
        num_each=1,
        size=size,
        labels=labels,
        domain_names=domain_names,
    )


def _single(
    decode: Decode, sample: Sample, image_bytes: bytes, mask_bytes: bytes, size: Size
) -> Stack:
    image, mask = decode(sample, image_bytes, mask_bytes, size)
    return Stack((sample.id,), image[None], mask[None])


def load_stacks(
    name: str,
    listing: Listing,
    decode: DecodeStack,
    *,
    num_each: int,
    size: Size,
    labels: tuple[str, ...],
    domain_names: tuple[str, ...],
) -> ImageDataset:
    """`load_files` where each sample holds `num_each` images; what is known of it holds for all.

    Raises:
        InputError: the listing has problems or no images, or a file cannot be used.
        RunError: decoded images cannot be kept.
    """
    require_no_problems(name, listing)
    paths = [*listing.lists, *(path for sample in listing.samples for path in _paths(sample))]
    place = kept(name, listing.root, paths, decode, size=size, num_each=num_each)
    work = partial(_decoded, name, listing, decode, num_each, size)
    decoded = work(in_memory) if place is None else place.decoded(work)
    samples = [sample for sample in listing.samples for _ in range(num_each)]
    return ImageDataset(
        name=name,
        images=decoded.images,
        masks=decoded.masks,
        labels=labels,
        ids=decoded.ids,
        domains=np.array([sample.domain for sample in samples], dtype=np.int64),
        domain_names=domain_names,
        classes=np.array([sample.class_index for sample in samples], dtype=np.int64),
        targets=np.array([sample.target for sample in samples], dtype=np.float64),
        findings=np.array([sample.findings for sample in samples], dtype=np.float64),
        groups=tuple(sample.group or sample.id for sample in samples),
        attributes={
            each: _repeated(column, num_each) for each, column in listing.attributes.items()
        },
        digest=decoded.digest,
    )


def _decoded(
    name: str,
    listing: Listing,
    decode: DecodeStack,
    num_each: int,
    size: Size,
    allocate: Allocate,
) -> Decoded:
    """Decode every file of a listing."""

    def read(sample: Sample) -> tuple[Stack, list[tuple[Path, str]]]:
        contents = [(path, read_bytes(path)) for path in _paths(sample)]
        hashes = [(path, _sha256(data)) for path, data in contents]
        return decode(sample, *_image_and_mask(contents), size), hashes

    hashes = [(path, _sha256(read_bytes(path))) for path in listing.lists]
    num_images = num_each * len(listing.samples)
    images = np.empty((0, 0, *size), dtype=np.float32)
    masks = np.empty((0, *size), dtype=np.uint8)
    ids: list[str] = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for stack, stack_hashes in pool.map(read, listing.samples):
            if not ids:
                shape = (num_images, *stack.images.shape[1:])
                images = allocate("images", shape, np.float32)
                masks = allocate("masks", (num_images, *size), np.uint8)
            require_intensities(stack.images)
            rows = slice(len(ids), len(ids) + num_each)
            images[rows], masks[rows] = stack.images, stack.masks
            ids += stack.ids
            hashes += stack_hashes
    title = name if num_each == 1 else f"{name} {num_each}"
    return Decoded(tuple(ids), images, masks, digest_files(title, size, listing.root, hashes))


def require_no_problems(name: str, listing: Listing) -> None:
    """Refuse a folder whose layout is not as it should be.

    Raises:
        InputError: the first problem, and how many there are.
    """
    if listing.problems:
        more = len(listing.problems) - 1
        hint = f" (and {more} more: explorer datasets check {name} --root DIR)" if more else ""
        raise InputError(listing.problems[0] + hint)


def _paths(sample: Sample) -> list[Path]:
    return list(dict.fromkeys((sample.image_path, sample.mask_path)))


def _image_and_mask(contents: Sequence[tuple[Path, bytes]]) -> tuple[bytes, bytes]:
    return contents[0][1], contents[1][1] if len(contents) > 1 else b""


def _repeated(column: Column, num_each: int) -> Column:
    if isinstance(column, np.ndarray):
        return np.repeat(column, num_each)
    return tuple(text for text in column for _ in range(num_each))


def check_files(
    name: str,
    root: Path,
    list_files: Callable[[Path], Listing],
    decode: Decode | DecodeStack,
    *,
    size: Size,
    domain_names: tuple[str, ...],
    num_each: int = 1,
) -> DatasetReport:
    """Decode every file below a folder and report what cannot be used.

    Args:
        name: of the data set.
        root: the folder.
        list_files: lists its files.
        decode: raises InputError where it cannot.
        size: to decode to.
        domain_names: of the data set.
        num_each: images that a sample holds.
    """
    try:
        listing = open_listing(name, root, list_files)
    except InputError as error:
        return DatasetReport(0, (str(error),), {})

    def problem(sample: Sample) -> str | None:
        try:
            contents = [(path, read_bytes(path)) for path in _paths(sample)]
            decode(sample, *_image_and_mask(contents), size)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = list(pool.map(problem, listing.samples))
    usable = [sample for sample, line in zip(listing.samples, found, strict=True) if line is None]
    domains = Counter(domain_names[sample.domain] for sample in usable)
    classes = Counter(sample.class_index for sample in usable)
    details: dict[str, Any] = {
        "domains": {each: num_each * domains[each] for each in domains},
        "classes": {str(index): num_each * classes[index] for index in sorted(classes)},
        "groups": len({sample.group or sample.id for sample in usable}),
    }
    if listing.unlisted:
        details["unlisted"] = list(listing.unlisted)
    lines = (*listing.problems, *(line for line in found if line is not None))
    return DatasetReport(num_each * len(usable), lines, details)


def open_listing(
    name: str, root: str | os.PathLike[str] | None, list_files: Callable[[Path], Listing]
) -> Listing:
    """List the files of a data set that needs a folder.

    Raises:
        InputError: no folder was given, or it cannot be read.
    """
    if root is None:
        raise InputError(
            f"dataset {name!r} needs dataset.root: the folder with its official layout"
        )
    folder = Path(root).expanduser()
    try:
        if not folder.is_dir():
            raise InputError(f"{name}: dataset.root {str(folder)!r} is no folder; correct the path")
        return list_files(folder)
    except OSError as error:
        raise InputError(f"{name}: {error.filename}: cannot be read ({error.strerror})") from error


def missing_paths(name: str, folders: Iterable[Path], files: Iterable[Path], advice: str) -> str:
    """One line on the folders and files that are not there; empty where all are.

    Args:
        name: of the data set.
        folders: that must be there.
        files: that must be there.
        advice: what `dataset.root` must hold, and where that is from.
    """
    absent = [repr(str(path)) for path in folders if not path.is_dir()]
    absent += [repr(str(path)) for path in files if not path.is_file()]
    if not absent:
        return ""
    verb = "is" if len(absent) == 1 else "are"
    return f"{name}: {', '.join(absent)} {verb} missing; dataset.root must hold {advice}"


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        InputError: the file is missing, unreadable or larger than any image of these data.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_FILE_BYTES:
            raise InputError(f"{path}: {num_bytes} bytes, expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def read_text(path: Path) -> str:
    """The content of a small text file, with or without a byte-order mark.

    Raises:
        InputError: the file cannot be read or is no UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text; copy the original again") from error


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a comma-separated file, its header among them.

    Raises:
        InputError: the file cannot be read or is no table.
    """
    try:
        return list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise InputError(f"{path}: expected a comma-separated table, {error}") from error


def attribute_columns(
    rows: Mapping[str, Mapping[str, str]], ids: Sequence[str]
) -> dict[str, Column]:
    """The fields that tell of these images, one column each: numbers where all given ones are.

    Args:
        rows: fields by id and name; an empty or absent one is unknown.
        ids: of the images, in their order.
    """
    columns: dict[str, Column] = {}
    for name in dict.fromkeys(name for fields in rows.values() for name in fields):
        texts = tuple(rows.get(each, {}).get(name, "") for each in ids)
        given = [text for text in texts if text]
        if given and all(map(_NUMBER.fullmatch, given)):
            columns[name] = np.array([float(text) if text else np.nan for text in texts])
        elif given:
            columns[name] = texts
    return columns


def decode_image(
    path: Path, data: bytes, mode: Literal["RGB", "L"], *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an 8-bit image: (H, W, 3) colours, or (H, W) values of a mask as they are stored.

    The size is checked in the header, before anything is decoded. An orientation tag is not
    applied: masks are drawn on the pixels as stored.

    Raises:
        InputError: gigantic, truncated, of another format, or of another pixel type.
    """
    from PIL import Image

    too_large = InputError(
        f"{path}: more than {max_pixels} pixels; expected an image of the official data, shrink it"
    )
    try:
        with _HEADER_LOCK, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > max_pixels:
            raise too_large
        if (mode == "L" and image.mode != "L") or image.mode[0] in "IF":
            expected = "8-bit grey" if mode == "L" else "8-bit colour"
            raise InputError(
                f"{path}: expected an {expected} image, got pixel type {image.mode!r};"
                " copy the original again"
            )
        return np.asarray(image.convert(mode))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        formats = ", ".join(_FORMATS)
        raise InputError(
            f"{path}: expected a complete {formats} image, got a broken or truncated file;"
            " copy the original again"
        ) from error


def decode_grey(path: Path, data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The grey values (H, W) of a picture; one with colours or transparency gives its luminance.

    Raises:
        InputError: as `decode_image` does.
    """
    from PIL import Image

    colours = decode_image(path, data, "RGB", max_pixels=max_pixels)
    return np.asarray(Image.fromarray(colours).convert("L"))


def resize_pair(path: Path, image: NDArray[np.uint8], mask: NDArray[np.uint8], size: Size) -> Pair:
    """Pad centrally to the shape of `size` (a square for a square), then resize.

    The image repeats its edge and is resized with an antialiased linear filter; the mask gets
    background and keeps its values (nearest neighbour).

    Args:
        path: named in messages.
        image: (H, W, C) colours, or (H, W) grey values.
        mask: (H, W) labels.
        size: (height, width) to return.

    Returns:
        Image (C, *size) in [-1, 1], mask (*size).

    Raises:
        InputError: image and mask differ in size, or the image is too thin to be padded.
    """
    from PIL import Image

    if image.shape[:2] != mask.shape:
        raise InputError(
            f"{path}: image is {image.shape[1]} x {image.shape[0]} pixels, its mask"
            f" {mask.shape[1]} x {mask.shape[0]}; expected the same, copy both again"
        )
    labels = Image.fromarray(np.pad(mask, _margins(path, mask.shape, size)))
    return (
        resize_image(path, image, size),
        np.asarray(labels.resize((size[1], size[0]), Image.Resampling.NEAREST)),
    )


def resize_image(path: Path, image: NDArray[np.uint8], size: Size) -> NDArray[np.float32]:
    """The image of `resize_pair` alone.

    Args:
        path: named in messages.
        image: (H, W, C) colours, or (H, W) grey values.
        size: (height, width) to return.

    Returns:
        (C, *size) in [-1, 1].

    Raises:
        InputError: it is too thin to be padded.
    """
    from PIL import Image

    margins = [*_margins(path, image.shape[:2], size), (0, 0)][: image.ndim]
    wide = Image.fromarray(np.pad(image, margins, mode="edge"))
    resized = wide.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return pixels[None] if image.ndim == 2 else np.moveaxis(pixels, -1, 0)


def read_picture(
    path: Path, data: bytes, *, size: Size, max_pixels: int = MAX_PIXELS, **_: Any
) -> ReadImage:
    """`DatasetSource.read` of data sets whose images are pictures in colour.

    Raises:
        InputError: as `decode_image` and `resize_image` do.
    """
    image = decode_image(path, data, "RGB", max_pixels=max_pixels)
    return ReadImage(resize_image(path, image, size))


def _margins(path: Path, shape: Sequence[int], size: Size) -> list[tuple[int, int]]:
    """How much is padded before and after each axis to the shape of `size`."""
    height, width = shape
    padded = (
        max(height, round(width * size[0] / size[1])),
        max(width, round(height * size[1] / size[0])),
    )
    if padded[0] * padded[1] > MAX_PIXELS:
        raise InputError(
            f"{path}: {width} x {height} pixels are too thin to be padded to a picture"
        )
    return [((p - n) // 2, p - n - (p - n) // 2) for p, n in zip(padded, shape, strict=True)]


def relabel(
    path: Path, mask: NDArray[np.uint8], table: NDArray[np.int64], *, expected: str
) -> NDArray[np.uint8]:
    """Turn stored mask values into labels.

    Args:
        path: named in messages.
        mask: values as stored.
        table: (256,) label of each value, -1 for one that must not occur.
        expected: the allowed values in words.

    Raises:
        InputError: a value that must not occur.
    """
    labels = table[mask]
    foreign = mask[labels < 0]
    if foreign.size:
        raise InputError(
            f"{path}: mask value {foreign[0]} in {np.sum(foreign == foreign[0])} pixels;"
            f" expected {expected}; copy the original mask again"
        )
    return labels.astype(np.uint8)


def digest_files(name: str, size: Size, root: Path, hashes: Iterable[tuple[Path, str]]) -> str:
    """sha256 over data set, size, and the name below `root` and sha256 of every file, sorted."""
    lines = sorted(f"{path.relative_to(root).as_posix()} {digest}" for path, digest in hashes)
    return _sha256("\n".join((name, "x".join(map(str, size)), *lines)).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
