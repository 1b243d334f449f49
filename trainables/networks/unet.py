"""U-Net whose every change of resolution follows a continuous rescaling factor.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", sections 3 and 4.4: bilinear resizing, two convolutions per stage, LeakyReLU.
Shapes: B batch, C channels, then the spatial axes (two or three).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Ledger, Operation, Size
from trainables.networks.blocks import BLOCKS, PlainBlock, RescalingNetwork, convolution

Interpolation = Literal["linear", "nearest"]


class UNet(RescalingNetwork):
    """Encoder and decoder stages joined by skip connections, then a 1-wide convolution.

    Args:
        interpolation: between the features of two sizes; `linear` along every axis, as in the
            paper, or the `nearest`.
        arguments: see `RescalingNetwork`; its block is that of the decoder, too.

    Raises:
        ValueError: as there, or another interpolation.
    """

    def __init__(self, *, interpolation: Interpolation = "linear", **arguments: Any) -> None:
        super().__init__(**arguments)
        if interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be one of {', '.join(get_args(Interpolation))}, "
                f"got {interpolation!r}"
            )
        self.interpolation: Interpolation = interpolation
        skips = reversed(self.encoder_widths[:-1])
        below = [self.encoder_widths[-1], *self.decoder_widths]
        self.decoder = nn.ModuleList(
            BLOCKS[self.block](before + skip, after, num_dims=self.num_dims)
            for before, skip, after in zip(below, skips, self.decoder_widths, strict=False)
        )
        self.head = convolution(below[-1], self.out_channels, 1, num_dims=self.num_dims)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this architecture again; JSON values."""
        return {**super().arguments, "interpolation": self.interpolation}

    def forward(self, x: Tensor, factors: Sequence[float]) -> Tensor:
        """Return logits (B, out_channels, *spatial) of images (B, in_channels, *spatial).

        Args:
            x: images.
            factors: one rescaling factor in [0, 1] per downsampling step; the upsampling step
                of the same level returns to the size of its skip connection.
        """
        *skips, x = self.encoded(x, factors)
        for block in self.decoder:
            skip = skips.pop()
            x = block(torch.cat([self.resized(x, skip.shape[2:]), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def resized(self, x: Tensor, size: Size) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(x, size=size, mode="nearest-exact")
        return super().resized(x, size)

    def operations(self, size: Size, factors: Sequence[float]) -> list[Operation]:
        """List what `forward` does to one image of that spatial size, without running it."""
        ledger = Ledger()
        skips = self.write_encoder(ledger, size, factors)
        channels, size = self.encoder_widths[-1], skips.pop()[1]
        for level, block in enumerate(self.decoder):
            skip_channels, skip_size = skips.pop()
            ledger.resize(f"decoder.{level}.rescale", channels, size, skip_size)
            size = skip_size
            area = math.prod(size)
            # the skip and its copy in the concatenation are alive together
            joined = channels + skip_channels
            ledger.note(f"decoder.{level}.concatenate", (channels + joined) * area, size)
            ledger.held -= skip_channels * area
            assert isinstance(block, PlainBlock)
            block.write(ledger, f"decoder.{level}", size)
            channels = block.out_channels
        ledger.convolve("head", channels, self.out_channels, size, kernel=1)
        return ledger.operations
