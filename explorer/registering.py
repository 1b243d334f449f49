"""Pairs registered at any setting of a frozen model, and the picture of it.

Shapes: d spatial axes, which images (*spatial) have, and displacements (d, *spatial) in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from explorer.figures import registration_panels
from explorer.series import setting_of
from search_spaces.space import Config
from trainables.base import Arrays, Trainable
from trainables.deformations import warp

Image = NDArray[np.float32]


@dataclass(frozen=True, repr=False, eq=False)
class RegisteredPair:
    """What a registration did to one pair.

    Attributes:
        name: MOVING>FIXED.
        setting: at which it was registered.
        moving: intensities in [-1, 1].
        fixed: likewise.
        moved: the moving image, read at x + displacement(x).
        displacement: in voxels.
    """

    name: str
    setting: Config
    moving: Image
    fixed: Image
    moved: Image
    displacement: Image


class RegisteredPairs:
    """The pairs of one split and the frozen model that registers them, in milliseconds each.

    Args:
        trainable: of a registration.
        module: trained.
        pairs: n pairs.
        names: (n,) MOVING>FIXED.
    """

    def __init__(
        self, trainable: Trainable, module: nn.Module, pairs: Arrays, names: Sequence[str]
    ) -> None:
        self.trainable, self.module = trainable, module
        self.pairs, self.names = pairs, list(names)

    def __len__(self) -> int:
        return len(self.names)

    def at(self, setting: Config, *, row: int = 0) -> RegisteredPair:
        """One pair at one setting.

        Raises:
            IndexError: there is no such row.
            InputError: the setting is not of the model's conditioning.
        """
        pair = self.pairs.batch([row])[0][0]
        space = self.trainable.problem.space.conditioning
        asked = space.validate({name: own for name, own in setting.items() if name in space.names})
        with torch.inference_mode():
            network = self.trainable.materialize(self.module, asked)
        moved, displacement = register(network, pair)
        return RegisteredPair(self.names[row], setting, pair[0], pair[1], moved, displacement)

    def figure(
        self, settings: Sequence[Config], *, row: int = 0, best: Config | None = None
    ) -> Figure:
        """Images and grids of one pair at several settings; of a volume its middle slice.

        Args:
            settings: one row of the picture each.
            row: of the pair.
            best: one more, which is called that.
        """
        named = [(setting_of({"conditioning": one}), one) for one in settings]
        if best is not None:
            named.append((f"{setting_of({'conditioning': best})}, best", best))
        found = [(name, self.at(setting, row=row)) for name, setting in named]
        first = found[0][1]
        return registration_panels(
            middle_slice(first.moving),
            middle_slice(first.fixed),
            [
                (name, middle_slice(one.moved), _slice_of_field(one.displacement))
                for name, one in found
            ],
            title=f"{first.name.replace('>', ' to ')}, by {self.trainable.method}",
        )


def register(network: nn.Module, pair: Image) -> tuple[Image, Image]:
    """The moved image (*spatial) and the displacement (d, *spatial) of a pair (2, *spatial)."""
    images = torch.from_numpy(pair)[None]
    with torch.inference_mode():
        displacement: torch.Tensor = network(images)
        moved = warp(images[:, :1], displacement)
    return moved[0, 0].numpy(), displacement[0].numpy()


def middle_slice(image: NDArray[Any]) -> NDArray[Any]:
    """A picture (H, W) as it is; of a volume the middle slice across its second axis."""
    return image if image.ndim == 2 else image[:, image.shape[1] // 2]


def _slice_of_field(field: Image) -> Image:
    """The components within that slice."""
    return field if field.ndim == 3 else field[[0, 2], :, field.shape[2] // 2]
