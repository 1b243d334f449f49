"""Registration of pairs of images over a continuum of rescaling factors.

A network of segmentation, given both images, tells how far each voxel is displaced; one of the two
losses is how much neighbours differ in that.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", section 4.1 (registration); Balakrishnan et al. (2019), arXiv:1809.05231.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.errors import InputError
from search_spaces.space import Config
from trainables.base import Stage
from trainables.deformations import resized_field, warp
from trainables.losses import total_variation
from trainables.metrics.registration import metric_names, registration_metrics
from trainables.scale_space import Conditioner, RescalingModel, ScaleSpace

FIRST_STD = 1e-5  # of the heads' first weights: training starts at the identity


@dataclass(frozen=True)
class DisplacementModel(RescalingModel):
    """A model whose network, given two images of one channel, tells a displacement.

    Attributes:
        smoothness: weight of the total variation beside the mean squared difference of
            intensities in [0, 1].
    """

    smoothness: float = 0.001

    @property
    def starts_from_primary(self) -> bool:
        return True


class ScaleSpaceRegistration(ScaleSpace):
    """Deformable registration whose network shrinks its features; see `ScaleSpace`.

    Args:
        method: `sshn-registration`, `fixed-registration`, `stochastic-registration` or
            `film-registration`.
        model: network and data shape.
        settled: see `ScaleSpace`.
        condition: see `ScaleSpace`.

    Raises:
        InputError: as there, or images of several channels.
    """

    model: DisplacementModel

    def __init__(
        self,
        method: str,
        model: DisplacementModel,
        settled: Config | None = None,
        *,
        condition: Conditioner | None = None,
    ) -> None:
        if model.in_channels != 2:
            raise InputError(
                f"{method}: expected images of one channel, got {model.in_channels // 2}"
            )
        super().__init__(method, model, settled, condition=condition)
        self.metrics = metric_names(model.labels)
        self.stages = (Stage("registration", 1.0),)

    @property
    def out_channels(self) -> int:
        return len(self.model.size)

    def initialise(self, primary: nn.Module, generator: torch.Generator) -> None:
        super().initialise(primary, generator)
        layers = {n: one for n, one in primary.named_modules() if hasattr(one, "kernel_size")}
        heads = [one for name, one in layers.items() if name.startswith("head")]
        for layer in heads or list(layers.values())[-1:]:
            assert isinstance(layer.weight, Tensor)
            layer.weight.data.normal_(0, FIRST_STD, generator=generator)

    def task_loss(
        self, outputs: Sequence[Tensor], images: Tensor, masks: Tensor, stage: str
    ) -> Tensor:
        moving, fixed = ((images.float() + 1) / 2).chunk(2, dim=1)
        losses = []
        for output in outputs:
            displacement = resized_field(output.float(), tuple(images.shape[2:]))
            squares = (warp(moving, displacement) - fixed).square().mean()
            losses.append(squares + self.model.smoothness * total_variation(displacement))
        return torch.stack(losses).mean()

    def disagreement(self, output: Tensor, taught: Tensor) -> Tensor:
        return (output - taught).square().mean()

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        return registration_metrics(network(images).float(), masks, self.model.labels)
