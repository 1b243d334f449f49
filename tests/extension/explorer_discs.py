"""An extension: a data set, a primary network, a conditioned method and a sampler."""

import hashlib
import math
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from trainables.cost import Operation, rescaled_size
from trainables.datasets.base import DatasetReport, DatasetSource, ImageDataset
from trainables.hypernetwork import ConditionedNetwork
from trainables.methods import Method
from trainables.scale_space import ScaleSpaceSegmentation


def load_discs(root, *, size, num_images=60):
    """Bright discs in noise; a real data set would read `root`."""
    generator = np.random.default_rng(0)
    rows, columns = np.indices(size)
    centres = generator.uniform(0.3, 0.7, (num_images, 2)) * size
    radii = generator.uniform(0.1, 0.25, num_images) * min(size)
    distances = np.hypot(rows - centres[:, :1, None], columns - centres[:, 1:, None])
    masks = (distances < radii[:, None, None]).astype(np.uint8)
    noise = generator.normal(0, 0.3, masks.shape)
    images = np.clip(masks - 0.5 + noise, -1, 1).astype(np.float32)[:, None]
    return ImageDataset(
        name="discs",
        images=images,
        masks=masks,
        labels=("disc",),
        ids=tuple(f"disc-{number:03d}" for number in range(num_images)),
        domains=np.zeros(num_images, np.int64),
        domain_names=("noise",),
        classes=np.full(num_images, -1),
        targets=np.full(num_images, np.nan),
        digest=hashlib.sha256(images.tobytes()).hexdigest(),
    )


DISCS = DatasetSource(
    name="discs",
    summary="bright discs in noise, invented",
    needs_root=False,
    channels=1,
    labels=("disc",),
    size=(32, 32),
    load=load_discs,
    check=lambda root: DatasetReport(0, (), {}),
)


class Pyramid(nn.Module):
    """Full resolution beside one rescaled level, added."""

    num_rescalings = 1

    def __init__(self, *, in_channels, out_channels, encoder_widths, num_dims, kernel=3, **unused):
        super().__init__()
        if num_dims != 2:
            raise ValueError("images only")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.kernel = encoder_widths[0], kernel
        padding = kernel // 2
        self.fine = nn.Conv2d(in_channels, self.width, kernel, padding=padding)
        self.coarse = nn.Conv2d(self.width, self.width, kernel, padding=padding)
        self.head = nn.Conv2d(self.width, out_channels, 1)

    @property
    def arguments(self):
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "encoder_widths": [self.width],
            "num_dims": 2,
            "kernel": self.kernel,
        }

    def forward(self, x, factors):
        fine = F.leaky_relu(self.fine(x))
        size = rescaled_size(x.shape[2:], factors[0], rounding="round")
        coarse = F.interpolate(fine, size=size, mode="bilinear", align_corners=False)
        coarse = F.leaky_relu(self.coarse(coarse))
        coarse = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.head(fine + coarse)

    def operations(self, size, factors):
        full, small = math.prod(size), math.prod(rescaled_size(size, factors[0], rounding="round"))
        taps, width = self.kernel**2, self.width
        return [
            Operation("fine", taps * self.in_channels * width * full, 2 * width * full, size),
            Operation("coarse", taps * width * width * small, width * (full + 2 * small), size),
            Operation("head", width * self.out_channels * full, 3 * width * full, size),
        ]


class LinearNetwork(ConditionedNetwork):
    """Every weight a straight line over the first conditioning parameter."""

    def __init__(self, primary):
        super().__init__(primary)
        self.slopes = nn.ParameterDict(
            {
                name.replace(".", "/"): torch.zeros_like(tensor)
                for name, tensor in primary.named_parameters()
            }
        )

    def weights(self, z):
        return {
            name: tensor + (z[0] - 0.5) * self.slopes[name.replace(".", "/")]
            for name, tensor in self.primary.named_parameters()
        }


def linear(primary, model, centre, generator):
    return LinearNetwork(primary)


LINEAR = Method(partial(ScaleSpaceSegmentation, "linear", condition=linear))


class Halving:
    """The ends of the first parameter, then always the middle of the widest gap."""

    def __init__(self, task):
        self.task, self.left, self.units = task, task.num_points, [0.0, 1.0]
        self.fresh = [0.0, 1.0]

    def ask(self, n):
        settings = []
        for _ in range(min(n, self.left)):
            if not self.fresh:
                self.units.sort()
                gaps = np.diff(self.units)
                k = int(gaps.argmax())
                self.fresh.append(self.units[k] + gaps[k] / 2)
                self.units.append(self.fresh[-1])
            units = np.full((1, len(self.task.space)), 0.5)
            units[0, 0] = self.fresh.pop(0)
            settings += self.task.space.decode(units)
        self.left -= len(settings)
        return settings

    def tell(self, configs, outcomes):
        """Nothing is learned."""
