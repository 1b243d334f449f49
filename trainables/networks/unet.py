"""U-Net whose every change of resolution follows a continuous rescaling factor.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", sections 3, 4.4 and C.1: bilinear resizing, two convolutions per stage, LeakyReLU.
Shapes: B batch, C channels, then the spatial axes (two or three).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Ledger, Operation, Size
from trainables.networks.blocks import BLOCKS, Block, PlainBlock, RescalingNetwork, convolution
from trainables.networks.pyramids import PyramidPooling

Interpolation = Literal["linear", "nearest"]
DecoderBlock = Literal[Block, "pooling"]
DECODER_BLOCKS: dict[str, Callable[..., PlainBlock | PyramidPooling]] = {
    **BLOCKS,
    "pooling": PyramidPooling,
}


class UNet(RescalingNetwork):
    """Encoder and decoder stages joined by skip connections, then a 1-wide convolution.

    Args:
        interpolation: between the features of two sizes; `linear` along every axis, as in the
            paper, or the `nearest`.
        decoder_block: what every stage of the decoder is, a name in `DECODER_BLOCKS`; by default
            what those of the encoder are.
        shortcuts: the features of the encoder are joined to those of the decoder; without them all
            that is known of an image passes through its smallest features.
        arguments: see `RescalingNetwork`.

    Raises:
        ValueError: as there, another interpolation, or another block of the decoder.
    """

    def __init__(
        self,
        *,
        interpolation: Interpolation = "linear",
        decoder_block: DecoderBlock | None = None,
        shortcuts: bool = True,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        own = self.block if decoder_block is None else decoder_block
        if own not in DECODER_BLOCKS:
            raise ValueError(
                f"decoder_block must be one of {', '.join(DECODER_BLOCKS)}, got {own!r}"
            )
        if not isinstance(shortcuts, bool):
            raise ValueError(f"shortcuts must be true or false, got {shortcuts!r}")
        if interpolation not in get_args(Interpolation):
            raise ValueError(
                f"interpolation must be one of {', '.join(get_args(Interpolation))}, "
                f"got {interpolation!r}"
            )
        self.interpolation: Interpolation = interpolation
        self.decoder_block: DecoderBlock = own
        self.shortcuts = shortcuts
        skips = [width if shortcuts else 0 for width in reversed(self.encoder_widths[:-1])]
        below = [self.encoder_widths[-1], *self.decoder_widths]
        self.decoder = nn.ModuleList(
            DECODER_BLOCKS[own](before + skip, after, num_dims=self.num_dims)
            for before, skip, after in zip(below, skips, self.decoder_widths, strict=False)
        )
        self.head = convolution(below[-1], self.out_channels, 1, num_dims=self.num_dims)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this architecture again; JSON values."""
        own = {
            "interpolation": self.interpolation,
            "decoder_block": self.decoder_block,
            "shortcuts": self.shortcuts,
        }
        return {**super().arguments, **own}

    def forward(self, x: Tensor, factors: Sequence[float]) -> Tensor:
        """Return logits (B, out_channels, *spatial) of images (B, in_channels, *spatial).

        Args:
            x: images.
            factors: one rescaling factor in [0, 1] per downsampling step; the upsampling step
                of the same level returns to the size of its skip connection.
        """
        skips: list[tuple[Size, Tensor | None]] = []
        for features in self.encoded(x, factors):
            skips.append((features.shape[2:], features if self.shortcuts else None))
            x = features
        del skips[-1], features
        for block in self.decoder:
            size, skip = skips.pop()
            x = self.resized(x, size)
            x = block(x if skip is None else torch.cat([x, skip], dim=1))
        logits: Tensor = self.head(x)
        return logits

    def resized(self, x: Tensor, size: Size) -> Tensor:
        if self.interpolation == "nearest":
            return F.interpolate(x, size=size, mode="nearest-exact")
        return super().resized(x, size)

    def operations(self, size: Size, factors: Sequence[float]) -> list[Operation]:
        """List what `forward` does to one image of that spatial size, without running it."""
        ledger = Ledger()
        skips = self.write_encoder(ledger, size, factors, is_held=self.shortcuts)
        channels, size = self.encoder_widths[-1], skips.pop()[1]
        for level, block in enumerate(self.decoder):
            skip_channels, skip_size = skips.pop()
            ledger.resize(f"decoder.{level}.rescale", channels, size, skip_size)
            size = skip_size
            if self.shortcuts:
                area = math.prod(size)
                # the skip and its copy in the concatenation are alive together
                joined = channels + skip_channels
                ledger.note(f"decoder.{level}.concatenate", (channels + joined) * area, size)
                ledger.held -= skip_channels * area
            assert isinstance(block, PlainBlock | PyramidPooling)
            block.write(ledger, f"decoder.{level}", size)
            channels = block.out_channels
        ledger.convolve("head", channels, self.out_channels, size, kernel=1)
        return ledger.operations
