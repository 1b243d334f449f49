"""Networks that look at several resolutions at once: a feature pyramid, and pyramid pooling.

Source: "Scale-Space Hypernetworks for Efficient Biomedical Imaging", section C.1, which names them
and leaves their widths open; Lin et al. (2017), arXiv:1612.03144; Zhao et al. (2017),
arXiv:1612.01105.
Shapes: B batch, C channels, then the spatial axes (two or three).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Ledger, Operation, Size
from trainables.networks.blocks import RescalingNetwork, convolution, resized

BINS = (1, 2, 3, 6)  # pixels of pooled features along an axis


class FPN(RescalingNetwork):
    """Feature pyramid: features of every resolution, each with what the coarser ones tell.

    Features of every stage are brought to the width of the pyramid by a 1-wide convolution, and
    those of the coarser level, resized, added; a 3-wide convolution and a 1-wide one make a
    prediction at every level. While training all of them are compared with the labels; asked for
    one, it is that of the finest.

    Args:
        arguments: see `RescalingNetwork`; `decoder_widths` are of the pyramid, all alike.

    Raises:
        ValueError: as there, or the pyramid's widths differ.
    """

    is_supervised_at_every_level = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        widths = set(self.decoder_widths)
        if len(widths) > 1:
            raise ValueError(f"expected one width for the whole pyramid, got {sorted(widths)}")
        self.width = widths.pop() if widths else self.encoder_widths[-1]
        num_dims, width = self.num_dims, self.width
        self.lateral = nn.ModuleList(
            convolution(own, width, 1, num_dims=num_dims) for own in self.encoder_widths
        )
        self.smooth = nn.ModuleList(
            convolution(width, width, 3, num_dims=num_dims) for _ in self.encoder_widths
        )
        self.heads = nn.ModuleList(
            convolution(width, self.out_channels, 1, num_dims=num_dims) for _ in self.encoder_widths
        )

    def forward(
        self, x: Tensor, factors: Sequence[float], every: bool = False
    ) -> Tensor | list[Tensor]:
        """Return logits (B, out_channels, *spatial) of images (B, in_channels, *spatial).

        Args:
            x: images.
            factors: one rescaling factor in [0, 1] per downsampling step.
            every: those of every level, finest first, each of its own size.
        """
        features = list(self.encoded(x, factors))
        found: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(features))):
            own = self.lateral[level](features[level])
            above = own if above is None else own + resized(above, own.shape[2:])
            if every or level == 0:
                smooth = F.leaky_relu(self.smooth[level](above), inplace=True)
                found.append(self.heads[level](smooth))
        return found[::-1] if every else found[0]

    def operations(self, size: Size, factors: Sequence[float]) -> list[Operation]:
        """List what `forward` does to one image for the finest prediction, without running it."""
        ledger = Ledger()
        stages = self.write_encoder(ledger, size, factors)
        above: Size | None = None
        for level in reversed(range(len(stages))):
            channels, size = stages[level]
            area = math.prod(size)
            if above is None:
                ledger.convolve(f"lateral.{level}", channels, self.width, size, kernel=1)
            else:
                ledger.held -= channels * area
                ledger.held += self.width * math.prod(above)
                ledger.convolve(f"lateral.{level}", channels, self.width, size, kernel=1)
                ledger.held += self.width * (area - math.prod(above))
                ledger.resize(f"lateral.{level}.rescale", self.width, above, size)
                ledger.note(f"lateral.{level}.add", 2 * self.width * area, size)
                ledger.held -= self.width * area
            above = size
        kernel = 3**self.num_dims
        ledger.convolve("smooth.0", self.width, self.width, size, kernel=kernel)
        ledger.convolve("head", self.width, self.out_channels, size, kernel=1)
        return ledger.operations


class PyramidPooling(nn.Module):
    """Features beside their means over a few coarse grids, brought to a new width.

    Args:
        in_channels: C before.
        out_channels: C after.
        num_dims: 2 or 3 spatial axes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, num_dims: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_dims = num_dims
        self.share = max(1, in_channels // len(BINS))
        self.reduce = nn.ModuleList(
            convolution(in_channels, self.share, 1, num_dims=num_dims) for _ in BINS
        )
        joined = in_channels + len(BINS) * self.share
        self.conv1 = convolution(joined, out_channels, 3, num_dims=num_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, out_channels, *spatial) of features (B, in_channels, *spatial)."""
        pool = F.adaptive_avg_pool2d if self.num_dims == 2 else F.adaptive_avg_pool3d
        found = [x]
        for count, reduce in zip(BINS, self.reduce, strict=True):
            pooled = F.leaky_relu(reduce(pool(x, count)), inplace=True)
            found.append(resized(pooled, x.shape[2:]))
        return F.leaky_relu(self.conv1(torch.cat(found, dim=1)), inplace=True)

    def write(self, ledger: Ledger, name: str, size: Size) -> None:
        """Write down what `forward` does to one image of that size."""
        before, area = self.in_channels, math.prod(size)
        held = ledger.held
        ledger.held += before * area
        for number, count in enumerate(BINS):
            grid = (count,) * self.num_dims
            ledger.note(f"{name}.pool.{number}", before * math.prod(grid), grid)
            ledger.convolve(f"{name}.reduce.{number}", before, self.share, grid, kernel=1)
            ledger.resize(f"{name}.rescale.{number}", self.share, grid, size)
            ledger.held += self.share * area
        joined = before + len(BINS) * self.share
        ledger.note(f"{name}.concatenate", joined * area, size)
        ledger.held = held
        kernel = 3**self.num_dims
        ledger.convolve(f"{name}.conv1", joined, self.out_channels, size, kernel=kernel)
