"""Networks from an image to a vector of features, in 2D and 3D.

Shapes: B images, C channels, F features, then the spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from search_spaces.errors import InputError, unknown_name

Normalisation = Literal["batch", "instance"]
Activation = Literal["relu", "gelu"]
NORMALISATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # with statistics of a batch


class ConvolutionEncoder(nn.Module):
    """Blocks of a 3-wide convolution, normalisation, activation and a halving, then a mean.

    With the widths 16, 64, 128, 128, `instance` and `gelu` the one of the brain-age task.

    Args:
        channels: C.
        widths: features of the blocks; F is the last.
        num_dims: 2 or 3 spatial axes.
        normalisation: `batch`, or `instance`, which leaves no statistics behind.
        activation: `relu` or `gelu`.

    Source: the authors' program of "HyDA: Hypernetworks for Test Time Domain Adaptation in Medical
    Imaging Analysis"; Levakov et al. (2020), doi:10.1002/hbm.25011.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        *,
        num_dims: int = 2,
        normalisation: Normalisation = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if num_dims not in (2, 3) or not widths or min(widths) < 1:
            raise ValueError(f"expected 2 or 3 axes and a block, got {num_dims} and {widths}")
        if normalisation not in get_args(Normalisation) or activation not in get_args(Activation):
            raise ValueError(
                f"expected normalisation {' or '.join(get_args(Normalisation))} and activation "
                f"{' or '.join(get_args(Activation))}, got {normalisation} and {activation}"
            )
        self.num_features = widths[-1]
        convolution = nn.Conv2d if num_dims == 2 else nn.Conv3d
        pool = nn.MaxPool2d if num_dims == 2 else nn.MaxPool3d
        blocks: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            blocks += [
                convolution(before, width, 3, padding=1),
                _normalisation(normalisation, width, num_dims),
                nn.ReLU() if activation == "relu" else nn.GELU(),
                pool(2, ceil_mode=True),
            ]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, *spatial)."""
        return self.blocks(images).flatten(2).mean(2)  # type: ignore[no-any-return]  # torch's


def _normalisation(kind: Normalisation, width: int, num_dims: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(width) if num_dims == 2 else nn.BatchNorm3d(width)
    norm = nn.InstanceNorm2d if num_dims == 2 else nn.InstanceNorm3d
    return norm(width, affine=True)


class DenseEncoder(nn.Module):
    """MONAI's DenseNet121 without its last layer; weights are not pre-trained.

    Args:
        channels: C.
        num_dims: 2 or 3 spatial axes.

    Source: Huang et al. (2017), arXiv:1608.06993.
    """

    def __init__(self, channels: int, *, num_dims: int = 2) -> None:
        super().__init__()
        from monai.networks.nets.densenet import DenseNet121  # takes seconds

        network = DenseNet121(spatial_dims=num_dims, in_channels=channels, out_channels=1)
        self.num_features = int(network.class_layers.out.in_features)  # type: ignore[arg-type, union-attr]  # a linear layer
        self.features = network.features

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, F) of images (B, C, *spatial), at least 32 pixels along each axis."""
        features: Tensor = self.features(images)
        return nn.functional.relu(features).flatten(2).mean(2)


def _small(channels: int, *, num_dims: int = 2, **options: Any) -> ConvolutionEncoder:
    widths = options.pop("widths", (16, 32, 64, 128))
    return ConvolutionEncoder(channels, widths, num_dims=num_dims, **options)


def _brain(channels: int, *, num_dims: int = 3) -> ConvolutionEncoder:
    return ConvolutionEncoder(
        channels,
        (16, 64, 128, 128),
        num_dims=num_dims,
        normalisation="instance",
        activation="gelu",
    )


def _densenet121(channels: int, *, num_dims: int = 2) -> DenseEncoder:
    return DenseEncoder(channels, num_dims=num_dims)


# (channels, num_dims, options) -> a module with `num_features`
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "small": _small,
    "brain": _brain,
    "densenet121": _densenet121,
}


@cache
def skeleton(
    name: str, options: tuple[tuple[str, Any], ...], channels: int, size: tuple[int, ...]
) -> nn.Module:
    """An encoder without storage, that was tried on an image of that size.

    Raises:
        TypeError: options that it does not take.
        ValueError: values that it does not take.
        RuntimeError: the image is too small.
    """
    with torch.device("meta"):
        encoder = ENCODERS[name](channels, num_dims=len(size), **dict(options)).eval()
        encoder(torch.empty(1, channels, *size))
    return encoder


def require_encoder(
    place: str,
    name: str,
    options: tuple[tuple[str, Any], ...],
    *,
    channels: int,
    size: tuple[int, ...],
) -> None:
    """Refuse what cannot be built, or not for images of that size; nothing is stored.

    Raises:
        InputError: at `place` an unknown name, or options that the encoder does not take.
    """
    if name not in ENCODERS:
        raise unknown_name(f"{place}network", name, list(ENCODERS))
    try:
        skeleton(name, options, channels, size)
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}options of {name}: {error}") from None
    except RuntimeError as error:
        raise InputError(
            f"{place}network: {name} takes no image of {list(size)}: {error}"
        ) from None
