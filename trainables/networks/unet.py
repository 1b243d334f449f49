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

from trainables.cost import Ledger, Operation, Rounding, Size
from trainables.networks.blocks import (
    BLOCKS,
    Block,
    PlainBlock,
    convolution,
    encode,
    resized,
    write_encoder,
)

Interpolation = Literal["linear", "nearest"]


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
        block: what every stage is, a name in `BLOCKS`.

    Raises:
        ValueError: the numbers of stages do not match, `num_dims` is neither 2 nor 3, or another
            interpolation or block.
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
        block: Block = "plain",
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
        if block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {block!r}")
        self.rounding: Rounding = rounding
        self.interpolation: Interpolation = interpolation
        self.in_channels, self.out_channels = in_channels, out_channels
        self.encoder_widths, self.decoder_widths = tuple(encoder_widths), tuple(decoder_widths)
        self.num_dims, self.block = num_dims, block
        self.encoder = nn.ModuleList(
            BLOCKS[block](before, after, num_dims=num_dims)
            for before, after in itertools.pairwise([in_channels, *encoder_widths])
        )
        skips = reversed(self.encoder_widths[:-1])
        below = [self.encoder_widths[-1], *self.decoder_widths]
        self.decoder = nn.ModuleList(
            BLOCKS[block](before + skip, after, num_dims=num_dims)
            for before, skip, after in zip(below, skips, self.decoder_widths, strict=False)
        )
        self.head = convolution(below[-1], out_channels, 1, num_dims=num_dims)

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
            "block": self.block,
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
        *skips, x = encode(self.encoder, x, factors, rounding=self.rounding, resize=self._resized)
        for block in self.decoder:
            skip = skips.pop()
            x = block(torch.cat([self._resized(x, skip.shape[2:]), skip], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def _resized(self, x: Tensor, size: Size) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(x, size=size, mode="nearest-exact")
        return resized(x, size)

    def operations(self, size: Size, factors: Sequence[float]) -> list[Operation]:
        """List what `forward` does to one image of that spatial size, without running it."""
        ledger = Ledger()
        skips = write_encoder(ledger, self.encoder, size, factors, rounding=self.rounding)
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
