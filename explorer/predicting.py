"""More images through frozen models at any setting, and the pictures of what comes out.

Shapes: C channels, spatial (H, W) or (D, H, W), d spatial axes. Results lie on the grid of the
network, to which the data set's own reader brings every image.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from explorer.models import build_trainable, dataset_source, image_size, method_of
from explorer.places import Place, mark_of
from explorer.recent import Recent
from explorer.registering import middle_slice, register
from explorer.series import PALETTE
from explorer.specs import ExplorationSpec
from explorer.training import trained_model
from search_spaces.errors import InputError
from search_spaces.space import Config
from trainables.base import Trainable
from trainables.datasets.base import MAX_PIXELS, ReadImage
from trainables.deformations import jacobian_determinants

NUM_TRIALS, NUM_NETWORKS = 8, 16  # that are kept, networks at a setting beside what makes them
OPACITY = 0.5

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class File:
    """The content of a file, and what it is."""

    media_type: str
    data: bytes


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """Labels of one image.

    Attributes:
        image: (C, *spatial), intensities in [-1, 1].
        mask: (*spatial); 0 background, k = `labels[k - 1]`.
        labels: names.
        affine: (4, 4) of a volume; None of a picture.
    """

    image: Floats
    mask: Bytes
    labels: tuple[str, ...]
    affine: NDArray[np.float64] | None = None

    def statistics(self) -> dict[str, Any]:
        """Of every label: its pixels (voxels), and their share of the image."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.labels) + 1)
        return {
            "labels": {
                name: {"pixels": int(count), "share": float(count / self.mask.size)}
                for name, count in zip(self.labels, counts[1:], strict=True)
            }
        }

    def files(self) -> dict[str, File]:
        """`mask`: label numbers, coloured where a picture; `overlay`: colours over the image."""
        return {"mask": self._mask(), "overlay": png(self.overlay())}

    def overlay(self) -> Bytes:
        """Colours over the image, (H, W, 3); of a volume its middle slice."""
        mask = middle_slice(self.mask)
        channels = self.image[:3] if len(self.image) == 3 else self.image[:1].repeat(3, axis=0)
        grey = np.stack([to_bytes(middle_slice(channel)) for channel in channels], axis=-1)
        mixed = (1 - OPACITY) * grey + OPACITY * colours_of(self.labels)[mask]
        return np.where(mask[..., None] > 0, mixed, grey).astype(np.uint8)

    def _mask(self) -> File:
        if self.mask.ndim == 3:
            return nifti(self.mask, self.affine)
        picture = Image.fromarray(self.mask)
        picture.putpalette(colours_of(self.labels).astype(np.uint8).tobytes())  # values stay
        return png(picture)


@dataclass(frozen=True, eq=False, repr=False)
class Warping:
    """One pair registered.

    Attributes:
        fixed: (*spatial), intensities in [-1, 1].
        moved: the moving image at x + displacement(x).
        displacement: (d, *spatial) in voxels.
        affine: (4, 4) of the fixed volume; None of a picture.
    """

    fixed: Floats
    moved: Floats
    displacement: Floats
    affine: NDArray[np.float64] | None = None

    def statistics(self) -> dict[str, Any]:
        """How far voxels move, in voxels, and how many of them fold."""
        lengths = np.linalg.norm(self.displacement, axis=0)
        determinants = jacobian_determinants(torch.from_numpy(self.displacement)[None])
        folded = int((determinants <= 0).sum())
        return {
            "displacement": {"mean": float(lengths.mean()), "max": float(lengths.max())},
            "folded_voxels": folded,
            "folded_share": folded / determinants.numel(),
        }

    def files(self) -> dict[str, File]:
        """`moved`: the warped image; `overlay`: the fixed one green, the warped one magenta."""
        moved = png(to_bytes(self.moved))
        if self.moved.ndim == 3:
            moved = nifti((self.moved + 1) / 2, self.affine)
        return {"moved": moved, "overlay": png(self.overlay())}

    def overlay(self) -> Bytes:
        """Fixed image green, moved one magenta: grey where they agree, (H, W, 3)."""
        moved, fixed = (to_bytes(middle_slice(one)) for one in (self.moved, self.fixed))
        return np.stack([moved, fixed, moved], axis=-1)


Prediction: TypeAlias = Segmentation | Warping


class Predictor:
    """Frozen models and the networks at settings of them; the latest are kept, until they change.

    Args:
        num_trials: models that are kept.
        num_networks: networks that are kept.
    """

    def __init__(self, *, num_trials: int = NUM_TRIALS, num_networks: int = NUM_NETWORKS) -> None:
        self._models: Recent[Any, tuple[Trainable, nn.Module]] = Recent(num_trials)
        self._networks: Recent[Any, tuple[Trainable, nn.Module]] = Recent(num_networks)

    def network(
        self, folder: Place, spec: ExplorationSpec, trial_id: str, conditioning: Config
    ) -> tuple[Trainable, nn.Module]:
        """The trainable of a trial and its network at a setting.

        Raises:
            InputError: the trial's weights are missing or damaged, or the setting is none of its.
        """
        trial_dir = folder / "trials" / trial_id
        try:
            key = str(trial_dir), mark_of(trial_dir / "trial.json")
        except FileNotFoundError as error:
            raise InputError(f"{trial_dir} holds no trained model; restore it") from error

        def make() -> tuple[Trainable, nn.Module]:
            trainable, module = self._models.get(key, lambda: trained_model(trial_dir, spec))
            names = trainable.problem.space.conditioning.names
            return trainable, trainable.materialize(module, {n: conditioning[n] for n in names})

        return self._networks.get((key, tuple(sorted(conditioning.items()))), make)

    def predict(
        self,
        folder: Place,
        spec: ExplorationSpec,
        trial_id: str,
        conditioning: Config,
        images: Sequence[ReadImage],
    ) -> Prediction:
        """What a trial's network at a setting makes of an image, or of a pair: moving, fixed.

        Raises:
            InputError: as `network` does.
        """
        trainable, network = self.network(folder, spec, trial_id, conditioning)
        last = images[-1]
        if method_of(spec, trainable.method).task == "registration":
            pair = np.concatenate([image.pixels for image in images])
            moved, displacement = register(network, pair)
            return Warping(last.pixels[0], moved, displacement, last.affine)
        with torch.inference_mode():
            logits: torch.Tensor = network(torch.from_numpy(last.pixels)[None])
        mask = logits.argmax(1)[0].to(torch.uint8).numpy()
        labels: tuple[str, ...] = build_trainable(spec).model.labels  # type: ignore[attr-defined]
        return Segmentation(last.pixels, mask, labels, last.affine)


def read_image(
    spec: ExplorationSpec, name: str, data: bytes, *, max_pixels: int = MAX_PIXELS
) -> ReadImage:
    """An image as the spec's data set reads its own.

    Args:
        spec: names the data set, its options and the size.
        name: of the image in messages.
        data: content of the file.
        max_pixels: more are refused before they are decoded.

    Raises:
        InputError: no such image, or the data set does not say how it reads one.
    """
    source = dataset_source(spec)
    if source.read is None:
        raise InputError(
            f"{name}: the data set {spec.dataset.name} does not say how one more image is read "
            f"(DatasetSource.read)"
        )
    read: ReadImage = source.read(
        Path(name), data, size=image_size(spec), max_pixels=max_pixels, **spec.dataset.options
    )
    return read


def colours_of(labels: Sequence[str]) -> NDArray[np.float64]:
    """A colour (1 + K, 3) in [0, 255] for the background, black, and for every label."""
    if len(labels) < len(PALETTE):
        chosen = np.array([to_rgb(name) for name in PALETTE[: len(labels)]])
    else:
        chosen = colormaps["tab20"](np.arange(len(labels)) % 20)[:, :3]
    return np.vstack([np.zeros(3), np.round(255 * chosen)])


def to_bytes(intensities: Floats) -> Bytes:
    """Intensities in [-1, 1] as 8-bit values."""
    return np.clip(np.round((intensities + 1) * 127.5), 0, 255).astype(np.uint8)


def png(picture: Bytes | Image.Image) -> File:
    """A picture (H, W) or (H, W, 3) as a file."""
    data = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(data, "PNG")
    return File("image/png", data.getvalue())


def nifti(volume: NDArray[Any], affine: NDArray[np.float64] | None) -> File:
    """A volume as a gzipped NIfTI file."""
    image = nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine)  # type: ignore[no-untyped-call] # has no types
    return File("application/gzip", gzip.compress(image.to_bytes(), mtime=0))
