"""MetaImage pictures of 8-bit grey: a header `.mhd`, and the pixels in a file beside it.

Source: MetaIO documentation, itk.org/Wiki/MetaIO/Documentation: lines `Tag = value`; `DimSize`
counts columns first, and pixels follow each other along a row; `ElementDataFile` is the last tag.

Read is what pictures need: `ObjectType = Image`, two axes or a third of length 1, `MET_UCHAR`,
pixels raw or packed by zlib. The file with the pixels is named without a folder: no header leads
out of its own.

Shapes: H rows, W columns, in the order in which they are stored.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import MAX_PIXELS
from trainables.datasets.files import read_text

_MAX_HEADER_CHARACTERS = 2**14
_LINE = re.compile(r"([A-Za-z][A-Za-z0-9_]*)\s*=\s*(.*)", re.ASCII)
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
# Of each tag that must hold one of few values: these, and what stands for an absent one.
_ALLOWED = {
    "ObjectType": (("Image",), None),
    "NDims": (("2", "3"), None),
    "ElementType": (("MET_UCHAR",), None),
    "CompressedData": (("True", "False"), "False"),
    "BinaryData": (("True",), "True"),
    "ElementNumberOfChannels": (("1",), "1"),
    "HeaderSize": (("0",), "0"),
}


@dataclass(frozen=True)
class Header:
    """What a header says of its picture.

    Attributes:
        path: of the header.
        shape: (H, W).
        is_packed: whether the pixels are packed by zlib.
        data_path: of the file that holds them.
    """

    path: Path
    shape: tuple[int, int]
    is_packed: bool
    data_path: Path


def read_header(path: Path) -> Header:
    """Read a header, and nothing of the file that it names.

    Raises:
        InputError: the file cannot be read, or says what is not read here; the message says what.
    """
    text = read_text(path)
    if len(text) > _MAX_HEADER_CHARACTERS:
        raise InputError(
            f"{path}: {len(text)} characters, expected a MetaImage header of a few lines; copy the"
            " original again"
        )
    tags = _tags(path, text)
    values = {}
    for name, (allowed, absent) in _ALLOWED.items():
        values[name] = tags.get(name, absent)
        if values[name] not in allowed:
            raise _unexpected(path, name, " or ".join(allowed), values[name])
    sizes = tags.get("DimSize", "")
    num_axes = int(tags["NDims"])
    if not re.fullmatch(rf"[1-9]\d{{0,5}}( +[1-9]\d{{0,5}}){{{num_axes - 1}}}", sizes, re.ASCII):
        raise _unexpected(path, "DimSize", f"{num_axes} lengths of axes", tags.get("DimSize"))
    width, height, *frames = map(int, sizes.split())
    if frames not in ([], [1]) or width * height > MAX_PIXELS:
        raise _unexpected(path, "DimSize", f"one picture of at most {MAX_PIXELS} pixels", sizes)
    name = tags.get("ElementDataFile", "")
    if next(reversed(tags)) != "ElementDataFile" or not _FILE_NAME.fullmatch(name):
        raise _unexpected(
            path,
            "ElementDataFile",
            "as the last tag the bare name of a file in the same folder",
            tags.get("ElementDataFile"),
        )
    return Header(path, (height, width), values["CompressedData"] == "True", path.parent / name)


def decode_pixels(header: Header, data: bytes) -> NDArray[np.uint8]:
    """The grey values (H, W) in the content of a header's data file.

    Raises:
        InputError: broken or truncated, or more or fewer pixels than the header tells.
    """
    num_pixels = header.shape[0] * header.shape[1]
    if header.is_packed:
        data = _unpacked(header, data, num_pixels)
    if len(data) != num_pixels:
        got = "more" if header.is_packed and len(data) > num_pixels else str(len(data))
        raise InputError(
            f"{header.data_path}: got {got} pixels, expected {num_pixels}, the {header.shape[1]} x"
            f" {header.shape[0]} of {header.path.name}; copy both again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(header.shape)


def _unpacked(header: Header, data: bytes, num_pixels: int) -> bytes:
    """The pixels, and one more at most: a small file can stand for gigabytes."""
    unpacker = zlib.decompressobj()
    try:
        pixels = unpacker.decompress(data, num_pixels + 1)
    except zlib.error:
        pixels = b""
    if not (unpacker.eof or len(pixels) > num_pixels):
        raise InputError(
            f"{header.data_path}: expected pixels packed by zlib, as {header.path.name} tells, got"
            " a broken or truncated file; copy both again"
        )
    return pixels


def _tags(path: Path, text: str) -> dict[str, str]:
    """The tags in their order."""
    tags: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in tags:
            raise InputError(
                f"{path}: line {number}: expected a MetaImage tag, each once, as 'Tag = value', got"
                f" {line[:80]!r}; copy the original again"
            )
        tags[match[1]] = match[2]
    return tags


def _unexpected(path: Path, name: str, expected: str, value: str | None) -> InputError:
    got = "none" if value is None else repr(value[:80])
    return InputError(f"{path}: {name}: expected {expected}, got {got}; copy the original again")
