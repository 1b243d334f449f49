"""U-Net whose every change of resolution follows a continuous rescaling factor.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", sections 3 and 4.4: bilinear resizing, two convolutions per stage, LeakyReLU.
Shapes: B batch, C channels, then the spatial axes (two or three).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Operation, Rounding, Size, rescaled_size

Interpolation = Literal["linear", "nearest"]


class ConvBlock(nn.Module):
    """Two 3-wide convolutions, each followed by LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, num_dims: int) -> None:
        super().__init__()
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        self.conv0 = conv(in_channels, out_channels, 3, padding=1)
        self.conv1 = conv(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv0(x), inplace=True)
        return F.leaky_relu(self.conv1(x), inplace=True)


class UNet(nn.Module):
    """Encoder and decoder stages joined by skip connections, then a 1-wide convolution.

    Args:
        in_channels: C of the input.
        out_channels: C of the output logits.
        encoder_widths: features of each encoder stage, full resolution first.
        decoder_widths: features of each decoder stage, lowest resolution first; one fewer than
            `encoder_widths`.
        num_dims: 2 or 3 spatial axes.
        rounding: how a rescaled size becomes an integer.
        interpolation: between the features of two sizes; `linear` along every axis, as in the
            paper, or the `nearest`.

    Raises:
        ValueError: the numbers of stages do not match, `num_dims` is neither 2 nor 3, or another
            interpolation.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        encoder_widths: Sequence[int],
        decoder_widths: Sequence[int],
        num_dims: int = 2,
        rounding: Rounding = "round",
        interpolation: Interpolation = "linear",
    ) -> None:
        super().__init__()
        if len(decoder_widths) != len(encoder_widths) - 1:
            raise ValueError(
                f"expected one decoder stage fewer than encoder stages, got "
                f"{len(encoder_widths)} and {len(decoder_widths)}"
            )
        if num_dims not in (2, 3):
            raise ValueError(f"num_dims must be 2 or 3, got {num_dims}")
        if interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be one of {', '.join(get_args(Interpolation))}, "
                f"got {interpolation!r}"
            )
        self.rounding: Rounding = rounding
        self.interpolation: Interpolation = interpolation
        self.in_channels, self.out_channels = in_channels, out_channels
        self.encoder_widths, self.decoder_widths = tuple(encoder_widths), tuple(decoder_widths)
        self.num_dims = num_dims
        self.encoder = nn.ModuleList(
            ConvBlock(before, after, num_dims=num_dims)
            for before, after in itertools.pairwise([in_channels, *encoder_widths])
        )
        skips = reversed(self.encoder_widths[:-1])
        below = [self.encoder_widths[-1], *self.decoder_widths]
        self.decoder = nn.ModuleList(
            ConvBlock(before + skip, after, num_dims=num_dims)
            for before, skip, after in zip(below, skips, self.decoder_widths, strict=False)
        )
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        self.head = conv(below[-1], out_channels, 1)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this architecture again; JSON values."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "encoder_widths": list(self.encoder_widths),
            "decoder_widths": list(self.decoder_widths),
            "num_dims": self.num_dims,
            "rounding": self.rounding,
            "interpolation": self.interpolation,
        }

    @property
    def num_rescalings(self) -> int:
        """How many downsampling steps there are, and as many upsampling steps."""
        return len(self.encoder) - 1

    def forward(self, x: Tensor, factors: Sequence[float]) -> Tensor:
        """Return logits (B, out_channels, *spatial) of images (B, in_channels, *spatial).

        Args:
            x: images.
            factors: one rescaling factor in [0, 1] per downsampling step; the upsampling step
                of the same level returns to the size of its skip connection.
        """
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            if level:
                skips.append(x)
                size = rescaled_size(x.shape[2:], factors[level - 1], rounding=self.rounding)
                x = self._resized(x, size)
            x = block(x)
        for block in self.decoder:
            skip = skips.pop()
            x = block(torch.cat([self._resized(x, skip.shape[2:]), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def _resized(self, x: Tensor, size: Size) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(x, size=size, mode="nearest-exact")
        mode = "bilinear" if self.num_dims == 2 else "trilinear"
        return F.interpolate(x, size=size, mode=mode, align_corners=False)

    def operations(self, size: Size, factors: Sequence[float]) -> list[Operation]:
        """List what `forward` does to one image of that spatial size, without running it."""
        kernel = 3**self.num_dims
        done: list[Operation] = []
        held = 0

        def convolve(name: str, before: int, after: int, size: Size, kernel: int) -> None:
            area = math.prod(size)
            live = held + (before + after) * area
            done.append(Operation(name, kernel * before * after * area, live, size))

        def resize(name: str, channels: int, before: Size, after: Size) -> None:
            live = held + channels * (math.prod(before) + math.prod(after))
            done.append(Operation(name, 0, live, after))

        channels, skips = self.in_channels, list[tuple[int, Size]]()
        for level, width in enumerate(self.encoder_widths):
            if level:
                skips.append((channels, size))
                smaller = rescaled_size(size, factors[level - 1], rounding=self.rounding)
                # the skip is the resizing's input: it is counted once
                resize(f"encoder.{level}.rescale", channels, size, smaller)
                held += channels * math.prod(size)
                size = smaller
            convolve(f"encoder.{level}.conv0", channels, width, size, kernel)
            convolve(f"encoder.{level}.conv1", width, width, size, kernel)
            channels = width
        for level, width in enumerate(self.decoder_widths):
            skip_channels, skip_size = skips.pop()
            resize(f"decoder.{level}.rescale", channels, size, skip_size)
            size = skip_size
            # the skip and its copy in the concatenation are alive together
            joined = channels + skip_channels
            done.append(
                Operation(
                    f"decoder.{level}.concatenate",
                    0,
                    held + (channels + joined) * math.prod(size),
                    size,
                )
            )
            held -= skip_channels * math.prod(size)
            convolve(f"decoder.{level}.conv0", joined, width, size, kernel)
            convolve(f"decoder.{level}.conv1", width, width, size, kernel)
            channels = width
        convolve("head", channels, self.out_channels, size, 1)
        return done
