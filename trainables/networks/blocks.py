"""What networks of segmentation are made of: blocks at one size, and an encoder of them.

Source: "Scale-Space Hypernetworks for Efficient Biomedical Imaging", sections 4.4 and C.1.
Shapes: B batch, C channels, then the spatial axes (two or three).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Ledger, Rounding, Size, rescaled_size

Block = Literal["plain", "residual", "squeeze"]
REDUCTION, MIN_HIDDEN = 8, 4  # of a squeeze: features for each hidden one


class PlainBlock(nn.Module):
    """Two 3-wide convolutions, each followed by LeakyReLU.

    Args:
        in_channels: C before.
        out_channels: C after.
        num_dims: 2 or 3 spatial axes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_dims: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_dims = num_dims
        self.conv0 = convolution(in_channels, out_channels, 3, num_dims=num_dims)
        self.conv1 = convolution(out_channels, out_channels, 3, num_dims=num_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_channels, *spatial) of features (B, in_channels, *spatial)."""
        x = F.leaky_relu(self.conv0(x), inplace=True)
        return F.leaky_relu(self.conv1(x), inplace=True)

    def write(self, ledger: Ledger, name: str, size: Size) -> None:
        """Write down what `forward` does to one image of that size."""
        before, after, kernel = self.in_channels, self.out_channels, 3**self.num_dims
        ledger.convolve(f"{name}.conv0", before, after, size, kernel=kernel)
        ledger.convolve(f"{name}.conv1", after, after, size, kernel=kernel)


class ResidualBlock(PlainBlock):
    """A plain block whose input is added before the last LeakyReLU.

    Where the channels change, a 1-wide convolution brings the input to the new ones.

    Source: He et al. (2016), arXiv:1512.03385; the kind of shortcut is not in the paper.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_dims: int) -> None:
        super().__init__(in_channels, out_channels, num_dims=num_dims)
        is_same = in_channels == out_channels
        self.shortcut = (
            None if is_same else convolution(in_channels, out_channels, 1, num_dims=num_dims)
        )

    def forward(self, x: Tensor) -> Tensor:
        own = self.conv1(F.leaky_relu(self.conv0(x), inplace=True))
        return F.leaky_relu(own + (x if self.shortcut is None else self.shortcut(x)), inplace=True)

    def write(self, ledger: Ledger, name: str, size: Size) -> None:
        before, after, area = self.in_channels, self.out_channels, math.prod(size)
        kernel = 3**self.num_dims
        ledger.convolve(f"{name}.conv0", before, after, size, kernel=kernel)
        ledger.held += before * area  # the input, until it is added
        ledger.convolve(f"{name}.conv1", after, after, size, kernel=kernel)
        ledger.held -= before * area
        if self.shortcut is not None:
            ledger.held += after * area
            ledger.convolve(f"{name}.shortcut", before, after, size, kernel=1)
            ledger.held -= after * area
        ledger.note(f"{name}.add", 3 * after * area, size)


class SqueezeBlock(PlainBlock):
    """A plain block whose features are weighted by what their means tell.

    Source: Hu et al. (2018), arXiv:1709.01507, section 3; a hidden feature for each 8, at least 4,
    since networks here are narrower than theirs, and LeakyReLU as everywhere else.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_dims: int) -> None:
        super().__init__(in_channels, out_channels, num_dims=num_dims)
        self.num_hidden = max(MIN_HIDDEN, out_channels // REDUCTION)
        self.squeeze = nn.Linear(out_channels, self.num_hidden)
        self.excite = nn.Linear(self.num_hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        shares = self.excite(F.leaky_relu(self.squeeze(x.flatten(2).mean(2)))).sigmoid()
        weighted: Tensor = x * shares.view(*shares.shape, *[1] * self.num_dims)
        return weighted

    def write(self, ledger: Ledger, name: str, size: Size) -> None:
        super().write(ledger, name, size)
        after, hidden, area = self.out_channels, self.num_hidden, math.prod(size)
        ledger.held += after * area
        ledger.note(f"{name}.squeeze", after + hidden, size, macs=after * hidden)
        ledger.note(f"{name}.excite", hidden + after, size, macs=hidden * after)
        ledger.held -= after * area
        ledger.note(f"{name}.weigh", 2 * after * area + after, size)


BLOCKS: dict[str, Callable[..., PlainBlock]] = {
    "plain": PlainBlock,
    "residual": ResidualBlock,
    "squeeze": SqueezeBlock,
}


def convolution(before: int, after: int, width: int, *, num_dims: int) -> nn.Module:
    """A convolution that keeps the size."""
    kind = nn.Conv2d if num_dims == 2 else nn.Conv3d
    return kind(before, after, width, padding=width // 2)


def resized(x: Tensor, size: Size) -> Tensor:
    """Features brought to another size, linearly along every axis."""
    mode = "bilinear" if x.dim() == 4 else "trilinear"
    return F.interpolate(x, size=size, mode=mode, align_corners=False)


class RescalingNetwork(nn.Module):
    """An encoder whose every step follows a rescaling factor; what stands behind it is its own.

    Args:
        in_channels: C of the input.
        out_channels: C of the output logits.
        encoder_widths: features of each encoder stage, full resolution first.
        decoder_widths: features of each decoder stage, lowest resolution first; one fewer than
            `encoder_widths`.
        num_dims: 2 or 3 spatial axes.
        rounding: how a rescaled size becomes an integer.
        block: what every stage of the encoder is, a name in `BLOCKS`.

    Raises:
        ValueError: the numbers of stages do not match, `num_dims` is neither 2 nor 3, or another
            block.
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
        if block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {block!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.encoder_widths, self.decoder_widths = tuple(encoder_widths), tuple(decoder_widths)
        self.num_dims, self.block = num_dims, block
        self.rounding: Rounding = rounding
        self.encoder = nn.ModuleList(
            BLOCKS[block](before, after, num_dims=num_dims)
            for before, after in itertools.pairwise([in_channels, *encoder_widths])
        )

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
            "block": self.block,
        }

    @property
    def num_rescalings(self) -> int:
        """How many downsampling steps there are, and as many upsampling steps."""
        return len(self.encoder) - 1

    def resized(self, x: Tensor, size: Size) -> Tensor:
        """Features brought to another size."""
        return resized(x, size)

    def encoded(self, x: Tensor, factors: Sequence[float]) -> Iterator[Tensor]:
        """Features after every block, each at its factor's share of the size before."""
        for level, block in enumerate(self.encoder):
            if level:
                size = rescaled_size(x.shape[2:], factors[level - 1], rounding=self.rounding)
                x = self.resized(x, size)
            x = block(x)
            yield x

    def write_encoder(
        self, ledger: Ledger, size: Size, factors: Sequence[float], *, is_held: bool = True
    ) -> list[tuple[int, Size]]:
        """Write down what `encoded` does; channels and size after every block.

        With `is_held` a later step reads all of them.
        """
        found: list[tuple[int, Size]] = []
        for level, block in enumerate(self.encoder):
            assert isinstance(block, PlainBlock)
            if level:
                channels, before = found[-1]
                size = rescaled_size(before, factors[level - 1], rounding=self.rounding)
                # what is held of it is the resizing's input: it is counted once
                ledger.resize(f"encoder.{level}.rescale", channels, before, size)
                ledger.held += channels * math.prod(before) if is_held else 0
            block.write(ledger, f"encoder.{level}", size)
            found.append((block.out_channels, size))
        return found
