"""NIfTI files, gzipped or not: decoded with care, their grids and labels checked, resampled.

Shapes: spatial (H, W) or (D, H, W). Axes are named by where they lead: L-I-A goes to the left, down
and to the front. Affines map voxel indices to millimetres, right, front and up being positive.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import MAX_PIXELS, ReadImage, Size
from trainables.datasets.files import Pair

_GZIP = b"\x1f\x8b"
# of a file before its values: header and extensions
_MAX_HEADER_BYTES = 2**20
# Two programs rarely write the same affine to the last bit.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Scan:
    """A decoded file: `values` (*spatial) as its header scales them, `affine` (4, 4).

    `stored_spacing_mm` are the sizes of voxels as they stand in the header, zeros among them: the
    affine may have others, or ones that stand in for those.
    """

    path: Path
    values: NDArray[np.float64]
    affine: NDArray[np.float64]
    stored_spacing_mm: tuple[float, ...] = ()

    @property
    def axes(self) -> str:
        """Such as L-I-A; "?" for an axis that leads nowhere, empty for an affine not finite."""
        import nibabel

        if not np.isfinite(self.affine).all():
            return ""
        codes = nibabel.aff2axcodes(self.affine)  # type: ignore[no-untyped-call] # has no types
        return "-".join(code or "?" for code in codes)

    @property
    def grid(self) -> str:
        """Axes, size of voxels and place of the first one, in words."""
        if not self.axes:
            return "an affine that is not finite"
        origin = ", ".join(f"{place:g}" for place in self.affine[:3, 3])
        return f"axes {self.axes}, voxels of {product(self.spacing_mm)} mm from ({origin})"

    @property
    def spacing_mm(self) -> NDArray[np.float64]:
        """(3,) distance of neighbouring voxels along each axis."""
        spacing: NDArray[np.float64] = np.linalg.norm(self.affine[:3, :3], axis=0)
        return spacing


def read_nifti(path: Path, data: bytes, *, example: Size, max_pixels: int = MAX_PIXELS) -> Scan:
    """Decode a NIfTI file, gzipped or not; the header is checked before the data.

    Args:
        path: named in messages.
        data: content of the file.
        example: shape of an official file; a last axis of length 1 is not returned.
        max_pixels: the largest number of voxels; little more than theirs is ever unpacked.

    Raises:
        InputError: no such file, truncated, gigantic, without numbers, or of another number of
            axes.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    nibabel_errors = (ImageFileError, HeaderDataError, WrapStructError)
    num_axes = sum(length > 1 for length in example)
    kind = "slice" if num_axes == 2 else "volume"
    try:
        with io.BytesIO(_unpacked(data, 8 * max_pixels + _MAX_HEADER_BYTES)) as stream:
            header: Any = nibabel.Nifti1Header.from_fileobj(stream, check=False)  # type: ignore[no-untyped-call] # has no types
            stream.seek(0)
            # An affine that is not finite is for the caller to judge.
            with np.errstate(invalid="ignore"):
                image: Any = nibabel.Nifti1Image.from_stream(stream)
            shape = tuple(image.shape)
            is_short = len(shape) < num_axes or min(shape) < 1
            if is_short or shape[num_axes:] not in ((), (1,)):
                raise InputError(f"{path}: shape {shape}, expected one {kind} such as {example}")
            if image.get_data_dtype().kind not in "uif":
                raise InputError(f"{path}: expected numbers, got {image.get_data_dtype()} values")
            if math.prod(shape) > max_pixels:
                raise InputError(f"{path}: shape {shape} is above {max_pixels} pixels; shrink it")
            values = image.get_fdata().reshape(shape[:num_axes])
            stored = tuple(map(float, header["pixdim"][1 : num_axes + 1]))
            return Scan(path, values, image.affine, stored)
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        struct.error,
        zlib.error,
        *nibabel_errors,
    ) as error:
        raise InputError(
            f"{path}: expected a complete NIfTI file, gzipped or not, got a broken or truncated"
            " one; copy the original again"
        ) from error


def _unpacked(data: bytes, max_bytes: int) -> bytes:
    """The content of a file, no more of it than may be: a small one can stand for gigabytes."""
    if not data.startswith(_GZIP):
        return data
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        return stream.read(max_bytes)


def require_grid(scan: Scan, *, axes: str, spacing_mm: float, shape: Size | None = None) -> None:
    """Refuse a volume whose axes, size of voxels or shape are not those of the official data.

    Raises:
        InputError: it is so; the message says what was found.
    """
    if shape is not None and scan.values.shape != shape:
        raise InputError(
            f"{scan.path}: shape {scan.values.shape}, expected {shape}; use the original, on the"
            " grid that all its volumes share"
        )
    has_spacing = np.allclose(scan.spacing_mm, spacing_mm, atol=_TOLERANCE)
    if scan.axes != axes or not has_spacing:
        raise InputError(
            f"{scan.path}: {scan.grid}; expected axes {axes}, voxels of"
            f" {product([spacing_mm] * 3)} mm; copy the original again, or turn image and labels"
        )


def require_same_shape(image: Scan, labels: Scan) -> None:
    """Refuse labels of another shape than their image.

    Raises:
        InputError: it is so.
    """
    if image.values.shape != labels.values.shape:
        raise InputError(
            f"{labels.path}: labels are {labels.values.shape}, the image is {image.values.shape};"
            " expected the same, copy both again"
        )


def require_same_affine(image: Scan, labels: Scan) -> None:
    """Refuse labels that lie elsewhere than their image.

    Raises:
        InputError: it is so.
    """
    if not np.allclose(image.affine, labels.affine, atol=_TOLERANCE):
        raise InputError(
            f"{labels.path}: labels have {labels.grid}, the image has {image.grid}; expected the"
            " same affine, copy both again"
        )


def whole_labels(labels: Scan, num_labels: int, *, hint: str) -> NDArray[np.uint8]:
    """The label map (*spatial) with whole numbers from 0 to `num_labels`.

    Raises:
        InputError: another number, NaN among them; `hint` ends the message.
    """
    values = labels.values
    is_label = (values >= 0) & (values <= num_labels) & (values == np.floor(values))
    if not is_label.all():
        foreign = values[~is_label]
        count = max(1, int(np.sum(foreign == foreign[0])))
        raise InputError(
            f"{labels.path}: label {foreign[0]:g} in {count}"
            f" {'pixels' if values.ndim == 2 else 'voxels'}; expected whole numbers from 0 to"
            f" {num_labels}; {hint}"
        )
    return values.astype(np.uint8)


def resample(image: NDArray[np.float32], labels: NDArray[np.uint8], size: Size) -> Pair:
    """Bring an image in [-1, 1] and its labels, both (*spatial), to another size.

    The image is resized with an antialiased linear filter along each axis, the labels to their
    nearest neighbours.

    Returns:
        Image (1, *size), labels (*size).
    """
    marks = torch.from_numpy(labels)[None, None]
    if image.shape != size:
        marks = torch.nn.functional.interpolate(marks, size, mode="nearest-exact")
    return resample_image(image, size), marks[0, 0].numpy()


def resample_image(image: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """The image (1, *size) of `resample` alone."""
    pixels = torch.from_numpy(image)[None, None]
    if image.shape != size:
        if len(size) == 2:
            pixels = _smooth(pixels, size)
        else:
            # The antialiased filter knows two axes at a time: the last two, then the first.
            pixels = _smooth(pixels[0], size[1:]).transpose(1, 2)
            pixels = _smooth(pixels, (size[0], size[2])).transpose(1, 2)[None]
        pixels = pixels.clamp(-1, 1)
    resampled: NDArray[np.float32] = pixels[0].numpy()
    return resampled


def resampled_affine(scan: Scan, size: Size) -> NDArray[np.float64]:
    """The affine (4, 4) of a volume that was resampled to another size: its edges stay."""
    scales = np.array([own / wanted for own, wanted in zip(scan.values.shape, size, strict=True)])
    to_scan = np.diag([*scales, 1.0])
    to_scan[:3, 3] = (scales - 1) / 2
    return scan.affine @ to_scan


def read_unit_volume(
    path: Path, data: bytes, *, size: Size, max_pixels: int = MAX_PIXELS
) -> ReadImage:
    """A volume with intensities in [0, 1], of any grid, resampled.

    Raises:
        InputError: no such file, or other intensities.
    """
    scan = read_nifti(path, data, example=size, max_pixels=max_pixels)
    return ReadImage(
        resample_image(unit_intensities(scan, hint="scale them"), size),
        resampled_affine(scan, size),
    )


def unit_intensities(scan: Scan, *, hint: str) -> NDArray[np.float32]:
    """Intensities of [0, 1] as ones in [-1, 1].

    Raises:
        InputError: some are outside, NaN among them; `hint` ends the message.
    """
    values = scan.values
    # A scaled image may end a rounding error above 1.
    if not (values.min() >= -1e-3 and values.max() <= 1 + 1e-3):
        raise InputError(
            f"{scan.path}: intensities in [{values.min():g}, {values.max():g}], expected"
            f" [0, 1]; {hint}"
        )
    return (np.clip(values, 0, 1) * 2 - 1).astype(np.float32)


def intensity_range(scan: Scan, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of a volume: few bright vessels do not set the scale.

    Raises:
        InputError: voxels are not finite, or the two are the same.
    """
    values = scan.values
    is_wrong = ~(np.abs(values) <= np.finfo(np.float32).max)
    if is_wrong.any():
        raise InputError(
            f"{scan.path}: {np.sum(is_wrong)} voxels are not finite in single precision; expected"
            " numbers, copy the original again"
        )
    low, high = np.percentile(values, percentiles)
    if not high > low:
        raise InputError(
            f"{scan.path}: intensities are {low:g} almost everywhere; expected an MRI, copy the"
            " original again"
        )
    return float(low), float(high)


def scaled_intensities(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float32]:
    """Intensities as ones in [-1, 1]: up to `low` -1, from `high` on 1."""
    scaled: NDArray[np.float64] = (np.clip(values, low, high) - low) / (high - low)
    return (scaled * 2 - 1).astype(np.float32)


def fitted(array: NDArray[Any], size: Size, fill: float) -> NDArray[Any]:
    """The central part of an array, in the centre of one of `size`."""
    result = np.full(size, fill, dtype=array.dtype)
    source, target = overlap(array.shape, size)
    result[target] = array[source]
    return result


def overlap(shape: Size, size: Size) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What `fitted` takes of an array of `shape`, and where it comes to lie in one of `size`."""
    lengths = [min(own, wanted) for own, wanted in zip(shape, size, strict=True)]
    source, target = (
        tuple(
            slice((whole - length) // 2, (whole - length) // 2 + length)
            for whole, length in zip(axes, lengths, strict=True)
        )
        for axes in (shape, size)
    )
    return source, target


def product(lengths: Any) -> str:
    """Lengths in words, such as 1 x 1 x 2."""
    return " x ".join(f"{length:g}" for length in lengths)


def _smooth(pixels: torch.Tensor, size: Size) -> torch.Tensor:
    return torch.nn.functional.interpolate(
        pixels, size, mode="bilinear", align_corners=False, antialias=True
    )
