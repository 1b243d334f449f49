"""Policies that decide, image by image, which blocks of a network are fine-tuned.

Shapes: B images, N blocks, F features of the policy's last layer.
Source: Guo et al. (2019), "SpotTune", arXiv:1811.08737; Zakazov et al., "Anatomy of Domain Shift
Impact on U-Net Layers in MRI Segmentation", section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.cost import Operation, Size
from trainables.hypernetwork import ENCODINGS, Hypernetwork, kaiming_
from trainables.networks.residual_unet import normalisation

Conditioner = Literal["monotone", "film", "hyper"]


class PolicyNetwork(nn.Module):
    """A residual network from images to two logits per block: frozen, fine-tuned.

    Each stage but the first halves the resolution and doubles the features with a residual block
    whose way past it is averaged and padded with zeros, as in the authors' network.

    Args:
        in_channels: C of the images.
        num_blocks: N.
        widths: features of each stage.
        num_dims: 2 or 3 spatial axes.
        conditioner: how the logits follow a price z: `monotone` adds to that of the frozen block a
            positive slope times z, a slope that is predicted for each image and block; `film`
            scales and shifts the last features, `hyper` predicts the last layer. None: there is no
            price.
        ends: of the prices that training draws.
        encoding: of the price for `film` and `hyper`, a name in `ENCODINGS`.
        hidden_sizes: of the network from the conditioning.
        generator: source of the random numbers.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_blocks: int,
        widths: Sequence[int],
        num_dims: int = 2,
        conditioner: Conditioner | None = None,
        ends: tuple[float, float] = (0.0, 1.0),
        encoding: str = "complement",
        hidden_sizes: Sequence[int] = (10, 16),
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.num_blocks, self.widths, self.num_dims = num_blocks, tuple(widths), num_dims
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        self.first = conv(in_channels, widths[0], 3, padding=1, bias=False)
        self.first_norm = normalisation(widths[0], num_dims)
        self.stages = nn.ModuleList(
            _Stage(before, after, num_dims=num_dims) for before, after in itertools.pairwise(widths)
        )
        self.last_norm = normalisation(widths[-1], num_dims)
        self.num_outputs = 3 if conditioner == "monotone" else 2
        self.head = nn.Linear(widths[-1], self.num_outputs * num_blocks)
        self.conditioner, self.encode = conditioner, ENCODINGS[encoding]
        self.centre, self.half_width = sum(ends) / 2, (ends[1] - ends[0]) / 2 or 1.0
        self.modulation: Hypernetwork | None = None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                kaiming_(parameter.data, generator=generator)
        nn.init.zeros_(self.head.bias)
        if conditioner in ("film", "hyper"):
            last = torch.Size(widths[-1:])
            shapes = {
                "film": {"gamma": last, "beta": last},
                "hyper": {"weight": self.head.weight.shape, "bias": self.head.bias.shape},
            }
            self.modulation = Hypernetwork(
                shapes[conditioner],
                reference=self.encode(torch.tensor([self.centre])),
                hidden_sizes=hidden_sizes,
                generator=generator,
            )

    def forward(self, images: Tensor, z: Tensor | None = None) -> Tensor:
        """Logits (B, N, 2) of images (B, C, *spatial) at a price z (1,)."""
        x = self.first_norm(self.first(images))
        for stage in self.stages:
            x = stage(x)
        features = F.relu(self.last_norm(x)).flatten(2).mean(2)
        with torch.autocast(images.device.type, enabled=False):
            return self._logits(features.float(), z)

    def _logits(self, features: Tensor, z: Tensor | None) -> Tensor:
        """Logits (B, N, 2) of the last features (B, F)."""
        weight, bias = self.head.weight, self.head.bias
        if self.modulation is not None:
            assert z is not None
            predicted = self.modulation(self.encode(z))
            if self.conditioner == "film":
                features = features * (1 + predicted["gamma"]) + predicted["beta"]
            else:
                weight, bias = predicted["weight"], predicted["bias"]
        outputs = F.linear(features, weight, bias).view(len(features), self.num_blocks, -1)
        logits: Tensor = outputs[..., :2]
        if self.conditioner == "monotone":
            assert z is not None
            # within one on both sides of the middle, at first with slope one
            shift = (z - self.centre) / self.half_width
            slope = F.softplus(outputs[..., 2] + math.log(math.e - 1))
            logits = torch.stack([logits[..., 0] + slope * shift, logits[..., 1]], dim=-1)
        return logits

    def operations(self, size: Size) -> list[Operation]:
        """List what `forward` does to one image of that spatial size, without running it."""
        kernel = 3**self.num_dims
        done: list[Operation] = []

        def convolve(name: str, before: int, after: int, size: Size, held: int) -> None:
            area = math.prod(size)
            macs = kernel * before * after * area
            done.append(Operation(name, macs, held + (before + after) * area, size))

        convolve("policy.first", self.first.in_channels, self.widths[0], size, 0)
        for k, (before, after) in enumerate(itertools.pairwise(self.widths)):
            half = tuple(-(-n // 2) for n in size)
            past = before * math.prod(size)
            convolve(f"policy.{k}.first", before, after, half, past)
            convolve(f"policy.{k}.second", after, after, half, past)
            size = half
        num_inputs, num_outputs = self.widths[-1], self.num_outputs * self.num_blocks
        one = tuple(1 for _ in size)
        live = num_inputs + num_outputs
        done.append(Operation("policy.head", num_inputs * num_outputs, live, one))
        return done


class _Stage(nn.Module):
    """A residual block at half the resolution; what goes past it is averaged."""

    def __init__(self, before: int, after: int, *, num_dims: int) -> None:
        super().__init__()
        conv = nn.Conv2d if num_dims == 2 else nn.Conv3d
        self.first = conv(before, after, 3, stride=2, padding=1, bias=False)
        self.first_norm = normalisation(after, num_dims)
        self.second = conv(after, after, 3, padding=1, bias=False)
        self.second_norm = normalisation(after, num_dims)
        self.pool = (nn.AvgPool2d if num_dims == 2 else nn.AvgPool3d)(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        past = self.pool(x)
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        missing = y.shape[1] - past.shape[1]
        padded = F.pad(past, (0, 0) * (past.dim() - 2) + (0, missing))
        return F.relu(padded + y)


def decide(logits: Tensor, *, temperature: float, uniform: Tensor | None = None) -> Tensor:
    """One for a frozen block, zero for a fine-tuned one; the gradient is that of a softmax.

    The straight-through Gumbel-Softmax: the larger of two perturbed logits decides, and its
    gradient is taken of their softmax at the temperature.

    Args:
        logits: (B, N, 2), frozen then fine-tuned.
        temperature: tau; the smaller, the closer softmax and decision, the larger gradients.
        uniform: (B, N, 2) numbers in (0, 1) that the noise is made of; None: no noise.

    Returns:
        (B, N), exactly 0 or 1.

    Source: Jang, Gu, Poole (2017), arXiv:1611.01144; class 0 is the frozen block as in section 3.
    """
    if uniform is not None:
        logits = logits - (-uniform.log()).log()
    soft = (logits / temperature).softmax(-1)[..., 0]
    hard = (logits[..., 0] >= logits[..., 1]).to(soft.dtype)
    return hard + (soft - soft.detach())
