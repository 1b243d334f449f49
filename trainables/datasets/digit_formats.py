"""The formats in which hand-written digits are published, read without trust in what they promise.

Shapes: n digits, (n, H, W) grey or (n, H, W, 3) colours, 0 to 255; labels (n,), 0 to 9.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError

# The largest official file, SVHN's for training, holds 225 MB; packed files may promise any size.
MAX_UNPACKED_BYTES = 2**28
MAX_DIGITS = 200_000

Digits: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]

_MNIST_SHAPE = (28, 28)
_USPS_SHAPE = (16, 16)
_OPTDIGITS_SHAPE = (8, 8)
_SVHN_SHAPE = (32, 32, 3)
_MAX_LINE_BYTES = 2**14
# What numpy.save writes of plain numbers; other headers are parsed with eval's relatives.
_NPY_HEADER = re.compile(
    r"\{'descr': '([|<>][uif][1248])', 'fortran_order': False, 'shape': \(([1-9]\d{0,8},"
    r"(?: [1-9]\d{0,8}(?:, [1-9]\d{0,8})*)?)\), \} *\n",
    re.ASCII,
)
_MAT_COMPRESSED = 15
# How MATLAB 5 stores numbers, whatever the type of the array; scipy crashes on damaged files.
_MAT_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_NPZ_ERRORS = (
    *(KeyError, OSError, EOFError, RuntimeError, TypeError, ValueError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def read_idx(images_path: Path, images: bytes, labels_path: Path, labels: bytes) -> Digits:
    """MNIST's two files, plain or gzip (.gz): 28 x 28 grey.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

    Raises:
        InputError: truncated, too long, of another format, or the two disagree.
    """
    pixels = _idx_values(images_path, images, _MNIST_SHAPE)
    return _digits(images_path, pixels, _idx_values(labels_path, labels, ()), labels_path)


def _idx_values(path: Path, data: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if path.suffix == ".gz":
        data = _unpacked(path, data)
    num_axes = 1 + len(shape)
    start = 4 + 4 * num_axes
    if len(data) < start:
        raise _broken(path, "IDX")
    magic, n, *found = struct.unpack_from(f">{1 + num_axes}I", data)
    if magic != 0x0800 + num_axes or tuple(found) != shape:
        what = f"images of {shape[0]} x {shape[1]} pixels" if shape else "labels"
        raise InputError(
            f"{path}: expected an IDX file of {what}, magic number {0x0800 + num_axes}, got"
            f" {magic} and {found}; copy the original again"
        )
    if len(data) - start != n * math.prod(shape):
        raise InputError(
            f"{path}: {len(data) - start} bytes follow a header that promises {n} of"
            f" {math.prod(shape)}; copy the original again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(n, *shape)


def read_npz(path: Path, data: bytes) -> Digits:
    """Optdigits as a numpy archive: `images` (n, 8, 8) from 0 to 16, `labels` (n,).

    Raises:
        InputError: truncated, of another format, or a value outside its range.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            images, labels = (_npy(path, archive, name) for name in ("images", "labels"))
    except _NPZ_ERRORS as error:
        raise _broken(path, "npz (images and labels)") from error
    if images.shape[1:] != _OPTDIGITS_SHAPE:
        raise InputError(
            f"{path}: images are {images.shape}, expected (n, 8, 8); copy the original again"
        )
    if not ((images >= 0) & (images <= 16)).all():
        raise InputError(f"{path}: pixels must be from 0 to 16; copy the original again")
    return _digits(path, np.rint(images * (255 / 16)), labels)


def _npy(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[np.float64]:
    info = archive.getinfo(f"{name}.npy")
    if info.file_size > MAX_UNPACKED_BYTES:
        raise _too_large(path)
    data = archive.read(info)
    (length,) = struct.unpack_from("<H", data, 8)
    match = _NPY_HEADER.fullmatch(data[10 : 10 + length].decode("latin-1"))
    if data[:8] != b"\x93NUMPY\x01\x00" or match is None:
        raise InputError(
            f"{path}: {name} is no plain array of numbers in numpy's format 1.0; save it with"
            " numpy.savez"
        )
    shape = [int(each) for each in match[2].split(",") if each.strip()]
    if math.prod(shape) * np.dtype(match[1]).itemsize != len(data) - 10 - length:
        raise _broken(path, "npz (images and labels)")
    values: NDArray[np.float64] = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float64)
    return values


def read_mat(path: Path, data: bytes) -> Digits:
    """SVHN's cropped digits, a MATLAB 5 file: `X` (32, 32, 3, n) and `y` (n, 1), 10 for a zero.

    Format: MathWorks, "MAT-File Format", level 5.

    Source: Netzer et al. (2011), "Reading Digits in Natural Images with Unsupervised Feature
    Learning", NIPS workshop.

    Raises:
        InputError: truncated, of another format, or a value outside its range.
    """
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(data[124:128], "")
    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        for element in _mat_elements(path, order, data):
            arrays.update(_mat_array(order, element))
    except (struct.error, ValueError) as error:
        raise _broken(path, "MATLAB 5") from error
    images, labels = (arrays.get(name, np.empty(0)) for name in ("X", "y"))
    if images.dtype != np.uint8 or images.shape[:-1] != _SVHN_SHAPE or labels.shape[1:] != (1,):
        raise InputError(
            f"{path}: expected X (32, 32, 3, n) of bytes and y (n, 1), got X {images.shape} of"
            f" {images.dtype} and y {labels.shape}; copy the cropped digits of SVHN again"
        )
    digits = labels[:, 0].astype(np.float64)
    if not ((digits >= 1) & (digits <= 10)).all():
        raise InputError(f"{path}: expected labels from 1 to 10; copy the original again")
    return _digits(path, np.moveaxis(images, 3, 0), digits % 10)


def _mat_elements(path: Path, order: str, data: bytes) -> Iterator[bytes]:
    """The arrays of a MATLAB 5 file as they are without compression, up to a limit in all."""
    if not order:
        raise _broken(path, "MATLAB 5")
    place, left = 128, MAX_UNPACKED_BYTES
    while place < len(data):
        kind, length = struct.unpack_from(f"{order}II", data, place)
        stop = place + 8 + length
        if stop > len(data):
            raise _broken(path, "MATLAB 5")
        element = data[place:stop]
        if kind == _MAT_COMPRESSED:
            element = _inflated(path, element[8:], left)
        left -= len(element)
        if left < 0:
            raise _too_large(path)
        yield element
        place = stop


def _mat_array(order: str, element: bytes) -> dict[str, NDArray[np.generic]]:
    """The name and values of an element that is an array of numbers; none of another kind."""
    place, parts = 8, []
    for _ in range(4):  # flags, shape, name, values
        kind, part, place = _mat_part(order, element, place)
        parts.append((kind, part))
    (_, flags), (_, lengths), (_, name), (kind, values) = parts
    if len(flags) != 8 or kind not in _MAT_NUMBERS or name not in (b"X", b"y"):
        return {}
    shape = np.frombuffer(lengths, f"{order}i4").tolist()
    numbers = np.frombuffer(values, f"{order}{_MAT_NUMBERS[kind]}")
    if min(shape) < 0 or math.prod(shape) != len(numbers):
        raise ValueError(f"{len(numbers)} values of an array {shape}")
    return {name.decode(): numbers.reshape(shape, order="F")}


def _mat_part(order: str, element: bytes, place: int) -> tuple[int, bytes, int]:
    """Kind and bytes of a part, and where the next one begins."""
    kind, length = struct.unpack_from(f"{order}II", element, place)
    start, stop = place + 8, place + 8 + length + -length % 8
    if kind >> 16:  # up to four bytes stand in the place of the length
        kind, length, start, stop = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    if start + length > min(stop, len(element)):
        raise ValueError(f"part of {length} bytes")
    return kind, element[start : start + length], stop


def _inflated(path: Path, data: bytes, limit: int) -> bytes:
    """At most one byte more than the limit."""
    inflater = zlib.decompressobj()
    try:
        piece = inflater.decompress(data, limit + 1)
    except zlib.error as error:
        raise _broken(path, "MATLAB 5") from error
    if len(piece) <= limit and not inflater.eof:
        raise _broken(path, "MATLAB 5")
    return piece


def read_libsvm(path: Path, data: bytes) -> Digits:
    """USPS in LIBSVM's text format, packed with bzip2: 16 x 16 values from -1 to 1, labels from 1.

    Source: Hull (1994), "A database for handwritten text recognition research", IEEE TPAMI 16,
    550-554, doi:10.1109/34.291440; files: www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets.

    Raises:
        InputError: truncated, of another format, or a value outside its range.
    """
    images, labels = [], []
    stream = io.BytesIO(_unpacked(path, data))
    for number, line in enumerate(stream, start=1):
        if number > MAX_DIGITS or len(line) > _MAX_LINE_BYTES:
            raise _too_large(path)
        if not line.strip():
            continue
        label, image = _libsvm_line(path, number, line)
        labels.append(label - 1)
        images.append(np.rint((image + 1) * 127.5).astype(np.uint8))
    pixels = np.array(images, np.uint8).reshape(-1, *_USPS_SHAPE)
    return _digits(path, pixels, np.array(labels, np.float64))


def _libsvm_line(path: Path, number: int, line: bytes) -> tuple[float, NDArray[np.float64]]:
    num_pixels = math.prod(_USPS_SHAPE)
    try:
        text = line.decode("ascii")
        label, *pairs = np.array(text.replace(":", " ").split(), dtype=np.float64)
    except ValueError:
        label, pairs = np.nan, []
    indices, values = np.array(pairs[0::2]), np.array(pairs[1::2])
    is_line = (
        1 <= label <= 10
        and text.count(":") == len(indices) == len(values)
        and np.isin(indices, np.arange(1, num_pixels + 1)).all()
        and (np.diff(indices) > 0).all()
        and ((values >= -1) & (values <= 1)).all()
    )
    if not is_line:
        raise InputError(
            f"{path}: line {number}: expected a label from 1 to 10 and pairs 1:VALUE to"
            f" {num_pixels}:VALUE from -1 to 1, got {line[:40]!r}; copy the original again"
        )
    image = np.zeros(num_pixels)
    image[indices.astype(np.int64) - 1] = values
    return float(label), image


def _unpacked(path: Path, data: bytes) -> bytes:
    """The content of a gzip or bzip2 file, by its suffix."""
    kind, opened = (
        ("gzip", gzip.GzipFile(fileobj=io.BytesIO(data)))
        if path.suffix == ".gz"
        else ("bzip2", bz2.BZ2File(io.BytesIO(data)))
    )
    try:
        with opened as stream:
            content = stream.read(MAX_UNPACKED_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, kind) from error
    if len(content) > MAX_UNPACKED_BYTES:
        raise _too_large(path)
    return content


def _digits(
    path: Path,
    images: NDArray[np.generic],
    labels: NDArray[np.generic],
    labels_path: Path | None = None,
) -> Digits:
    if not np.isin(labels, np.arange(10)).all():
        raise InputError(
            f"{labels_path or path}: labels must be the digits 0 to 9, each a whole number; copy"
            " the original again"
        )
    if labels.shape != (len(images),) or not 1 <= len(images) <= MAX_DIGITS:
        raise InputError(
            f"{path}: {len(images)} images and {labels.size} labels, expected the same, at least"
            f" one and at most {MAX_DIGITS}; copy the original again"
        )
    return images.astype(np.uint8, copy=False), labels.astype(np.int64)


def _broken(path: Path, kind: str) -> InputError:
    return InputError(
        f"{path}: expected a complete {kind} file, got a broken or truncated one; copy the original"
        " again"
    )


def _too_large(path: Path) -> InputError:
    return InputError(
        f"{path}: unpacked it is larger than any official file ({MAX_UNPACKED_BYTES} bytes,"
        f" {MAX_DIGITS} digits); copy the original again"
    )
