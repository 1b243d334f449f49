"""Registration of pairs of images over a continuum of loss weights: HyperMorph and its grid.

The moving image is read at x + u(x), where u is the flow of a stationary velocity field after unit
time; a network predicts that field at half resolution from the pair.

Source: Hoopes, Hoffmann, Fischl, Guttag, Dalca, "HyperMorph: Amortized Hyperparameter Learning for
Image Registration", arXiv:2101.01035; eq. 1 to 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.errors import InputError
from search_spaces.registration import PARAMETERS, registration_problem
from search_spaces.space import Config
from trainables.base import Draws, Stage, Trainable
from trainables.cost import Size, costs
from trainables.deformations import (
    integrate,
    mean_gradient,
    resized_field,
    warp,
)
from trainables.hypernetwork import (
    Activation,
    ConditionedNetwork,
    HyperConditionedNetwork,
    Initialisation,
)
from trainables.losses import (
    half_squared_gradient,
    local_ncc_loss,
    nmi_loss,
    overlap_loss,
    scaled_squares,
    soft_dice,
)
from trainables.metrics.registration import metric_names, registration_metrics
from trainables.networks.voxelmorph import RegistrationUNet

Similarity = Literal["mse", "ncc", "nmi"]


@dataclass(frozen=True)
class RegistrationModel:
    """The registration network, its loss, and the data's shape.

    Attributes:
        channels: C of one image.
        labels: names of the foreground labels.
        size: spatial size of the images.
        conditionings: any of `lambda`, `gamma` and `radius`.
        weight: lambda, where it is none.
        gamma: where it is none.
        radius: where it is none.
        similarity: `mse` scaled by the noise, local `ncc`, or `nmi`.
        noise_scale: standard deviation of the noise of `mse`, for intensities in [0, 1].
        trained_labels: those whose overlap is trained with weight gamma; all by default.
        encoder_widths: of the network.
        decoder_widths: of the network.
        final_widths: of the network.
        num_integration_steps: of scaling and squaring.
        shrinkage: s of the factor (1 - lambda) / (1 - lambda + s lambda) on the field, by which
            the best field shrinks as lambda nears 1: it minimises (1 - lambda) (v - v0)^2 +
            s lambda v^2. 0: none, as in the paper.
        encoding: of the conditioning, a name in `ENCODINGS`.
        hidden_sizes: of the hypernetwork.
        initialisation: of the hypernetwork.
        activation: of the hypernetwork.
        centre: features in the middle of what training draws; 0.5 each by default.
    """

    channels: int
    labels: tuple[str, ...]
    size: Size
    conditionings: tuple[str, ...] = ("lambda",)
    weight: float = 0.5
    gamma: float = 0.0
    radius: int = 4
    similarity: Similarity = "mse"
    noise_scale: float = 0.05
    trained_labels: tuple[str, ...] | None = None
    encoder_widths: tuple[int, ...] = (16, 32, 32, 32)
    decoder_widths: tuple[int, ...] = (32, 32, 32, 32)
    final_widths: tuple[int, ...] = (32, 16, 16)
    num_integration_steps: int = 7
    shrinkage: float = 0.0
    encoding: str = "complement"
    hidden_sizes: tuple[int, ...] = (64, 64, 64, 64)
    initialisation: Initialisation = "residual"
    activation: Activation = "leaky_relu"
    centre: tuple[float, ...] | None = None

    @property
    def constants(self) -> dict[str, float]:
        """Values of the parameters that are no conditioning."""
        return {"lambda": self.weight, "gamma": self.gamma, "radius": self.radius}


class RegistrationNetwork(nn.Module):
    """A registration network with its weights settled: maps pairs to displacements.

    Args:
        primary: the architecture.
        weights: every tensor of it, by name.
        damping: factor on the velocity.
        num_integration_steps: of scaling and squaring.
    """

    def __init__(
        self,
        primary: nn.Module,
        weights: dict[str, Tensor],
        *,
        damping: float | Tensor,
        num_integration_steps: int,
    ) -> None:
        super().__init__()
        self.primary, self.settled = primary, weights
        self.damping, self.num_integration_steps = damping, num_integration_steps

    def velocity(self, pairs: Tensor) -> Tensor:
        """Stationary velocity (B, d, *half) of pairs (B, 2 C, *spatial), moving then fixed."""
        return _widened(functional_call(self.primary, self.settled, (pairs,))) * self.damping

    def displacement(self, velocity: Tensor, size: Size) -> Tensor:
        """Displacement (B, d, *size) in voxels of that size."""
        return resized_field(integrate(velocity, num_steps=self.num_integration_steps), size)

    def forward(self, pairs: Tensor) -> Tensor:
        """Displacement (B, d, *spatial) in voxels, at which the moving image is read."""
        return self.displacement(self.velocity(pairs), tuple(pairs.shape[2:]))


class Registration(Trainable):
    """Deformable registration whose loss is weighted by a conditioning.

    Args:
        method: `hypermorph`, or `voxelmorph` for one setting.
        model: network, loss and data shape.
        settled: a setting whose parameters are training parameters (`voxelmorph`); when given,
            nothing is drawn while training.

    Raises:
        InputError: a size that the network cannot halve, several channels, unknown labels, or a
            conditioning that the loss does not have.
    """

    def __init__(
        self, method: str, model: RegistrationModel, settled: Config | None = None
    ) -> None:
        self.method, self.model = method, model
        unknown = [name for name in model.conditionings if name not in PARAMETERS]
        if unknown or not model.conditionings:
            raise InputError(
                f"train.prior: expected any of {', '.join(PARAMETERS)}, got "
                f"{', '.join(unknown) or 'none'}; for example {{lambda: [0, 1]}}"
            )
        problem = registration_problem(model.conditionings)
        self.space = problem.space
        self.settled: Config = self.space.validate(settled) if settled else {}
        self.problem = problem.demoted() if settled else problem
        self._check()
        groups = {"trained": self.trained, "held_out": self.held_out} if self.held_out else {}
        self.groups: dict[str, list[int]] = groups
        names = metric_names(model.labels, tuple(groups))
        self.metrics: tuple[str, ...] = (*names, "velocity_gradient")
        self.stages: tuple[Stage, ...] = (Stage("registration", 1.0),)

    def _check(self) -> None:
        model = self.model
        least = 2 ** len(model.encoder_widths)
        if min(model.size) < least:
            raise InputError(
                f"dataset.size: expected at least {least} along each axis for "
                f"{len(model.encoder_widths)} halvings, got {list(model.size)}"
            )
        if model.channels != 1:
            raise InputError(f"{self.method}: expected images of one channel, got {model.channels}")
        if "radius" in model.conditionings and model.similarity != "ncc":
            raise InputError(
                f"train.prior: radius is a window of similarity ncc, got {model.similarity}"
            )
        for label in model.trained_labels or ():
            if label not in model.labels:
                raise InputError(
                    f"registration.trained_labels: {label} is not one of the labels "
                    f"{', '.join(model.labels)}"
                )

    def __repr__(self) -> str:
        return f"Registration({self.method!r}, {self.model!r}, {self.settled!r})"

    @cached_property
    def trained(self) -> list[int]:
        """Indices of the labels whose overlap is trained."""
        names = self.model.trained_labels or self.model.labels
        return [self.model.labels.index(name) for name in names]

    @cached_property
    def held_out(self) -> list[int]:
        """Indices of the other labels."""
        return [k for k in range(len(self.model.labels)) if k not in self.trained]

    def _primary(self) -> RegistrationUNet:
        return RegistrationUNet(
            in_channels=2 * self.model.channels,
            encoder_widths=self.model.encoder_widths,
            decoder_widths=self.model.decoder_widths,
            final_widths=self.model.final_widths,
            num_dims=len(self.model.size),
        )

    @cached_property
    def skeleton(self) -> RegistrationUNet:
        """The registration network without storage."""
        with torch.device("meta"):
            return self._primary()

    @cached_property
    def num_parameters(self) -> int:
        """Number of weights and biases of the registration network."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def setting(self, conditioning: Config) -> Config:
        """Every parameter's value, the settled ones too, in column order.

        Raises:
            InputError: a value is missing, unknown or outside its range.
        """
        return self.space.validate({**self.settled, **conditioning})

    def build(self, seed: int) -> ConditionedNetwork:
        generator = torch.Generator().manual_seed(seed)
        primary = self._primary()
        primary.initialise(generator=generator)
        if self.settled:
            return ConditionedNetwork(primary)
        return HyperConditionedNetwork(
            primary,
            centre=torch.tensor(self.model.centre or (0.5,) * len(self.space.names)),
            encoding=self.model.encoding,
            hidden_sizes=self.model.hidden_sizes,
            initialisation=self.model.initialisation,
            activation=self.model.activation,
            starts_from_primary=True,
            generator=generator,
        )

    def loss(
        self,
        module: nn.Module,
        images: Tensor,
        masks: Tensor,
        conditioning: Config,
        stage: str,
        draws: Draws | None = None,
    ) -> Tensor:
        own = {name: float(value) for name, value in self.setting(conditioning).items()}
        setting = {**self.model.constants, **own}
        smooth, labelled = setting["lambda"], setting["gamma"]
        velocity = _widened(module(self._features(conditioning, images.device), images))
        velocity = velocity * self._damping(smooth)
        displacement = resized_field(
            integrate(velocity, num_steps=self.model.num_integration_steps), images.shape[2:]
        )
        moving, fixed = ((images + 1) / 2).chunk(2, dim=1)
        with torch.autocast(images.device.type, enabled=False):
            moved = warp(moving, displacement)
            similarity = self._dissimilarity(moved, fixed, int(setting["radius"]))
        terms = (1 - smooth) * (1 - labelled) * similarity + smooth * half_squared_gradient(
            velocity
        )
        if labelled > 0:
            a, b = self._one_hot(masks, self.trained, displacement.dtype)
            terms = terms + (1 - smooth) * labelled * overlap_loss(warp(a, displacement), b)
        return terms

    def _dissimilarity(self, moved: Tensor, fixed: Tensor, radius: int) -> Tensor:
        if self.model.similarity == "mse":
            return scaled_squares(moved, fixed, noise_scale=self.model.noise_scale)
        if self.model.similarity == "ncc":
            return local_ncc_loss(moved, fixed, radius=radius)
        return nmi_loss(moved, fixed)

    def _one_hot(self, masks: Tensor, labels: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
        """Labels (B, K, *spatial) of the moving and of the fixed images."""
        numbers = torch.tensor(labels, device=masks.device) + 1
        shape = (1, 1, -1, *[1] * (masks.dim() - 2))
        return list((masks.unsqueeze(2) == numbers.view(shape)).to(dtype).unbind(1))

    def _damping(self, smooth: float | Tensor) -> float | Tensor:
        if not self.model.shrinkage:
            return 1.0
        return (1 - smooth) / (1 - smooth + self.model.shrinkage * smooth)

    def _features(self, conditioning: Config, device: torch.device) -> Tensor:
        values = self.space.features([self.setting(conditioning)])[0]
        return torch.tensor(values, dtype=torch.float32, device=device)

    @torch.no_grad()
    def materialize(self, module: nn.Module, conditioning: Config) -> RegistrationNetwork:
        device = next(module.parameters()).device
        return self.network_at(module, self._features(conditioning, device))

    def network_at(self, module: nn.Module, features: Tensor) -> RegistrationNetwork:
        """The network at features (d,) of a conditioning, differentiable with respect to them."""
        assert isinstance(module, ConditionedNetwork)
        smooth: float | Tensor = self.model.constants["lambda"]
        if "lambda" in self.space.names:
            smooth = features[self.space.names.index("lambda")]
        return RegistrationNetwork(
            self.skeleton,
            module.weights(features),
            damping=self._damping(smooth),
            num_integration_steps=self.model.num_integration_steps,
        )

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, RegistrationNetwork)
        velocity = network.velocity(images)
        displacement = network.displacement(velocity, tuple(images.shape[2:]))
        values = registration_metrics(displacement, masks, self.model.labels, self.groups)
        values["velocity_gradient"] = mean_gradient(velocity)
        return values

    def overlap(
        self, network: nn.Module, images: Tensor, masks: Tensor, labels: Sequence[int]
    ) -> Tensor:
        """Mean soft Dice (n,) over labels of linearly warped label maps: what has a gradient."""
        displacement = network(images)
        moving, fixed = self._one_hot(masks, labels, displacement.dtype)
        return soft_dice(warp(moving, displacement), fixed).nanmean(1)

    def overlapping(self, metric: str) -> list[int]:
        """Indices of the labels that a metric of overlap is a mean over; of others none."""
        everything = list(range(len(self.model.labels)))
        groups = {"dice": everything, "dice/trained": self.trained, "dice/held_out": self.held_out}
        groups |= {f"dice/{label}": [k] for k, label in enumerate(self.model.labels)}
        return groups.get(metric, [])

    def costs(self, conditioning: Config) -> dict[str, float]:
        self.setting(conditioning)
        return costs(self.skeleton.operations(self.model.size), num_parameters=self.num_parameters)

    def sizes(self, conditioning: Config) -> dict[str, list[int]]:
        operations = self.skeleton.operations(self.model.size)
        return {operation.name: list(operation.size) for operation in operations}


def _widened(velocity: Tensor) -> Tensor:
    """At least float32: halves are too coarse for places."""
    return velocity.to(torch.promote_types(velocity.dtype, torch.float32))
