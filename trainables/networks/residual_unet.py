"""Residual U-Net made of named blocks, each of which may be frozen, fine-tuned or replaced.

Source: the U-Net of Shirokikh et al. (2020), arXiv:2008.07357, as Zakazov et al., "Anatomy of
Domain Shift Impact on U-Net Layers in MRI Segmentation", use it: pre-activated residual blocks,
2-wide strided convolutions down and up, shortcuts that are added, a normalised output.
Shapes: B batch, C channels, then the spatial axes (two or three).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Operation, Size

NUM_RESIDUAL = 3  # blocks on each level, on the way down and on the way up

T = TypeVar("T")


class PreActivation(nn.Module):
    """Batch normalisation, ReLU, then a convolution."""

    def __init__(self, convolution: nn.Module, *, num_dims: int) -> None:
        super().__init__()
        self.norm = normalisation(convolution.in_channels, num_dims)  # type: ignore[arg-type]
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(F.relu(self.norm(x)))
        return y


class ResidualBlock(nn.Module):
    """Two pre-activated 3-wide convolutions, added to their input."""

    def __init__(self, channels: int, *, num_dims: int) -> None:
        super().__init__()
        conv = _convolution(num_dims)
        self.first = PreActivation(
            conv(channels, channels, 3, padding=1, bias=False), num_dims=num_dims
        )
        self.second = PreActivation(conv(channels, channels, 3, padding=1), num_dims=num_dims)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.second(self.first(x))
        return y


class ResidualUNet(nn.Module):
    """The blocks of the network, by name in the order of the data.

    With three halvings there are 32: 29 on the path, and a shortcut on each level but the lowest.

    Args:
        in_channels: C of the input.
        out_channels: C of the output logits.
        width: features at full resolution; they double with every halving.
        num_levels: halvings of the resolution.
        num_dims: 2 or 3 spatial axes.

    Raises:
        ValueError: `num_dims` is neither 2 nor 3, or there is no halving.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        width: int = 16,
        num_levels: int = 3,
        num_dims: int = 2,
    ) -> None:
        super().__init__()
        if num_dims not in (2, 3) or num_levels < 1:
            raise ValueError(
                f"expected 2 or 3 axes and at least one halving, got {num_dims} and {num_levels}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.num_levels, self.num_dims = width, num_levels, num_dims
        self.blocks = nn.ModuleDict({name: self._block(name) for name in self._names()})

    def _names(self) -> Iterator[str]:
        def residual(stage: str, first: int) -> Iterator[str]:
            return (f"{stage}_{k}" for k in range(first, first + NUM_RESIDUAL))

        for level in range(self.num_levels):
            stage = f"down{level}" if level else "init"
            yield f"{stage}_0"
            yield from residual(stage, 1)
            yield f"shortcut{level}"
        yield "bottleneck_0"
        yield from residual("bottleneck", 1)
        for level in reversed(range(self.num_levels)):
            yield f"up{level}_0"
            yield from residual(f"up{level}", 1)
        yield "out"

    def _block(self, name: str) -> nn.Module:
        """A level's first block changes the resolution, the others keep it."""
        conv, num_dims = _convolution(self.num_dims), self.num_dims
        stage, _, index = name.partition("_")
        level = self.level(name)
        width = self.width * 2**level
        if name == "init_0":
            return conv(self.in_channels, width, 3, padding=1, bias=False)
        if name == "out":
            last = PreActivation(conv(width, self.out_channels, 1), num_dims=num_dims)
            return nn.Sequential(last, normalisation(self.out_channels, num_dims))
        if stage.startswith("shortcut"):
            return conv(width, width, 1)
        if index != "0":
            return ResidualBlock(width, num_dims=num_dims)
        if stage.startswith("up"):
            transposed = nn.ConvTranspose2d if num_dims == 2 else nn.ConvTranspose3d
            return transposed(2 * width, width, 2, stride=2, bias=False)
        half = conv(width // 2, width, 2, stride=2, bias=False)
        return PreActivation(half, num_dims=num_dims)

    def level(self, name: str) -> int:
        """How often the resolution of a block's output is halved."""
        stage = name.partition("_")[0]
        if stage == "bottleneck":
            return self.num_levels
        digits = "".join(filter(str.isdigit, stage))
        return int(digits) if digits else 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What the constructor needs to build this architecture again; JSON values."""
        names = ("in_channels", "out_channels", "width", "num_levels", "num_dims")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, out_channels, *spatial) of images (B, in_channels, *spatial)."""
        return self.route(x, lambda name, y: self.blocks[name](y), lambda a, b: a + b)

    def route(self, x: T, run: Callable[[str, T], T], add: Callable[[T, T], T]) -> T:
        """Send something through the network: what a block does with it is the caller's.

        Args:
            x: what enters.
            run: the output of a block, by its name, for what reaches it.
            add: joins the path and a shortcut.
        """
        shortcuts: list[T] = []
        for name in self.blocks:
            if name.startswith("shortcut"):
                shortcuts.append(run(name, x))
            else:
                x = run(name, x)
                if name.startswith("up") and name.endswith("_0"):
                    x = add(x, shortcuts.pop())
        return x

    def operations(self, size: Size) -> list[Operation]:
        """List what `forward` does to one image of that spatial size, without running it."""
        done: list[Operation] = []
        held = 0

        def run(name: str, before: _Feature) -> _Feature:
            nonlocal held
            after = _Feature(
                self._out_channels(name), tuple(n // 2 ** self.level(name) for n in size)
            )
            live = held + before.numel + after.numel
            if name.startswith("shortcut"):
                held += after.numel  # until it is added
            elif isinstance(self.blocks[name], ResidualBlock):
                live += after.numel  # its input waits for the sum
            done.append(Operation(name, self._macs(name, before, after), live, after.size))
            return after

        def add(a: _Feature, b: _Feature) -> _Feature:
            nonlocal held
            held -= b.numel
            return a

        self.route(_Feature(self.in_channels, size), run, add)
        return done

    def _out_channels(self, name: str) -> int:
        return self.out_channels if name == "out" else self.width * 2 ** self.level(name)

    def _macs(self, name: str, before: _Feature, after: _Feature) -> int:
        convolutions: list[Any] = [
            m for m in self.blocks[name].modules() if hasattr(m, "kernel_size")
        ]
        # a transposed convolution works at every place of its input
        is_transposed = math.prod(before.size) < math.prod(after.size)
        area = math.prod((before if is_transposed else after).size)
        return sum(area * one.weight.numel() for one in convolutions)


@dataclass(frozen=True)
class _Feature:
    """Shape of what passes between blocks, for one image."""

    channels: int
    size: Size

    @property
    def numel(self) -> int:
        return self.channels * math.prod(self.size)


def normalisation(channels: int, num_dims: int) -> nn.Module:
    """Batch normalisation of features with two or three spatial axes."""
    return nn.BatchNorm2d(channels) if num_dims == 2 else nn.BatchNorm3d(channels)


def _convolution(num_dims: int) -> Callable[..., nn.Module]:
    return nn.Conv2d if num_dims == 2 else nn.Conv3d
