"""The registration U-Net of VoxelMorph and HyperMorph: a pair of images to a velocity field.

Source: Hoopes, Hoffmann, Fischl, Guttag, Dalca, "HyperMorph: Amortized Hyperparameter Learning for
Image Registration", section 4 (implementation); Dalca, Balakrishnan, Guttag, Sabuncu (2019),
arXiv:1903.03545. Shapes: B batch, d spatial axes, then the spatial axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Ledger, Operation, Size

NEGATIVE_SLOPE = 0.2
FLOW_STD = 1e-5  # of the last layer's first weights: training starts at the identity


class RegistrationUNet(nn.Module):
    """Max-pooling encoder, decoder with skip connections up to half resolution, then convolutions.

    With the default widths in three dimensions: 2-16-32-32-32, 32, 32, 32, 32, then 32, 16, 16 and
    the field, 313,507 parameters, as many as the paper's.

    Args:
        in_channels: C of the two images together.
        encoder_widths: features per encoder stage, full resolution first.
        decoder_widths: features per decoder stage, lowest resolution first; as many.
        final_widths: features of the convolutions at half resolution before the field.
        num_dims: d, 2 or 3.

    Raises:
        ValueError: the numbers of stages differ, there are fewer than two, or `num_dims` is
            neither 2 nor 3.
    """

    def __init__(
        self,
        *,
        in_channels: int = 2,
        encoder_widths: Sequence[int] = (16, 32, 32, 32),
        decoder_widths: Sequence[int] = (32, 32, 32, 32),
        final_widths: Sequence[int] = (32, 16, 16),
        num_dims: int = 3,
    ) -> None:
        super().__init__()
        if len(encoder_widths) != len(decoder_widths) or len(encoder_widths) < 2:
            raise ValueError(
                f"expected as many decoder stages as encoder stages and at least two, got "
                f"{len(decoder_widths)} and {len(encoder_widths)}"
            )
        if num_dims not in (2, 3):
            raise ValueError(f"num_dims must be 2 or 3, got {num_dims}")
        self.in_channels, self.num_dims = in_channels, num_dims
        self.encoder_widths, self.decoder_widths = tuple(encoder_widths), tuple(decoder_widths)
        self.final_widths = tuple(final_widths)
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        self.encoder = nn.ModuleList(
            conv(before, after, 3, padding=1)
            for before, after in itertools.pairwise([in_channels, *encoder_widths])
        )
        # the first decoder stage has no skip, and the full resolution's is not used
        skips = [0, *reversed(self.encoder_widths[1:])]
        below = [self.encoder_widths[-1], *self.decoder_widths[:-1]]
        self.decoder = nn.ModuleList(
            conv(before + skip, after, 3, padding=1)
            for before, skip, after in zip(below, skips, self.decoder_widths, strict=True)
        )
        self.final = nn.ModuleList(
            conv(before, after, 3, padding=1)
            for before, after in itertools.pairwise([self.decoder_widths[-1], *final_widths])
        )
        self.flow = conv([*self.decoder_widths, *final_widths][-1], num_dims, 3, padding=1)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this architecture again; JSON values."""
        return {
            "in_channels": self.in_channels,
            "encoder_widths": list(self.encoder_widths),
            "decoder_widths": list(self.decoder_widths),
            "final_widths": list(self.final_widths),
            "num_dims": self.num_dims,
        }

    @torch.no_grad()
    def initialise(self, *, generator: torch.Generator) -> None:
        """Glorot uniform weights and zero biases; the field starts at nearly zero."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
        self.flow.weight.normal_(0, FLOW_STD, generator=generator)

    def forward(self, pair: Tensor) -> Tensor:
        """Return the velocity (B, d, *half) in voxels of the half resolution.

        Args:
            pair: (B, in_channels, *spatial), moving then fixed; each axis at least 2 to the power
                of the number of encoder stages.
        """
        pool = F.max_pool2d if self.num_dims == 2 else F.max_pool3d
        x, skips = pair, list[Tensor]()
        for convolution in self.encoder:
            x = F.leaky_relu(convolution(x), NEGATIVE_SLOPE)
            skips.append(x)
            x = pool(x, 2)
        x = F.leaky_relu(self.decoder[0](x), NEGATIVE_SLOPE)
        for convolution in list(self.decoder)[1:]:
            skip = skips.pop()
            x = torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1)
            x = F.leaky_relu(convolution(x), NEGATIVE_SLOPE)
        for convolution in self.final:
            x = F.leaky_relu(convolution(x), NEGATIVE_SLOPE)
        velocity: Tensor = self.flow(x)
        return velocity

    def operations(self, size: Size) -> list[Operation]:
        """List what `forward` does to one pair of images of that spatial size."""
        kernel = 3**self.num_dims
        ledger = Ledger()
        channels, skips = self.in_channels, list[tuple[int, Size]]()
        for level, width in enumerate(self.encoder_widths):
            ledger.convolve(f"encoder.{level}", channels, width, size, kernel=kernel)
            if level:  # that of the full resolution is not kept
                skips.append((width, size))
                ledger.held += width * math.prod(size)
            size, channels = tuple(length // 2 for length in size), width
        for level, width in enumerate(self.decoder_widths):
            if level:
                skip, size = skips.pop()
                ledger.held -= skip * math.prod(size)
                channels += skip
            ledger.convolve(f"decoder.{level}", channels, width, size, kernel=kernel)
            channels = width
        for level, width in enumerate(self.final_widths):
            ledger.convolve(f"final.{level}", channels, width, size, kernel=kernel)
            channels = width
        ledger.convolve("flow", channels, self.num_dims, size, kernel=kernel)
        return ledger.operations
