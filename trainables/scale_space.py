"""Segmentation networks over a continuum of rescaling factors: SSHN and its three baselines.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging"; eq. 2, sections 4.3 and 4.4.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from search_spaces.errors import InputError
from search_spaces.rescaling import rescaling_problem
from search_spaces.space import Config
from trainables.base import Draws, Stage, Trainable
from trainables.cost import Operation, Rounding, Size, costs
from trainables.hypernetwork import (
    Activation,
    ConditionedNetwork,
    FilmConditionedNetwork,
    HyperConditionedNetwork,
    Initialisation,
    initialise_primary,
)
from trainables.losses import cross_entropy, soft_dice_loss
from trainables.metrics.segmentation import dice_per_label, mean_over_labels
from trainables.networks.blocks import resized
from trainables.networks.unet import UNet


@dataclass(frozen=True)
class SegmentationModel:
    """The primary network, its data's shape, and how its weights are conditioned.

    Attributes:
        in_channels: C of the images.
        labels: names of the foreground labels.
        size: spatial size of the images.
        encoder_widths: features per encoder stage, full resolution first.
        decoder_widths: features per decoder stage, lowest resolution first.
        num_factors: 1, or the number of downsampling steps for one factor each.
        rounding: how a rescaled size becomes an integer.
        centre: rescaling factors in the middle of what training draws; 0.5 each by default.
        encoding: of the conditioning, a name in `ENCODINGS`.
        hidden_sizes: of the hypernetwork, and of FiLM's network.
        initialisation: of the hypernetwork.
        activation: of the hypernetwork.
        dice_share: part of the epochs that train on soft Dice, after cross-entropy.
        network: constructs the primary network; see `trainables.networks.base`.
        network_name: what it is called in `NETWORKS`.
        network_options: further keywords of its constructor.
        network_choices: keywords of it, each with values between which the conditioning chooses.
    """

    in_channels: int
    labels: tuple[str, ...]
    size: Size
    encoder_widths: tuple[int, ...] = (16, 16, 16, 16, 16)
    decoder_widths: tuple[int, ...] = (16, 16, 16, 16)
    num_factors: int = 1
    rounding: Rounding = "round"
    centre: tuple[float, ...] | None = None
    encoding: str = "complement"
    hidden_sizes: tuple[int, ...] = (10, 100)
    initialisation: Initialisation = "residual"
    activation: Activation = "leaky_relu"
    dice_share: float = 0.5
    network: Callable[..., nn.Module] = field(default=UNet, repr=False)  # a repr with no address
    network_name: str = "unet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    network_choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# of a primary network, the model, the centre of the features (d,), and random numbers
Conditioner: TypeAlias = Callable[
    [nn.Module, SegmentationModel, Tensor, torch.Generator], ConditionedNetwork
]


class MaterializedNetwork(nn.Module):
    """A primary network with its weights and rescaling factors settled; the hypernetwork is gone.

    Args:
        primary: the architecture.
        weights: every tensor of it, by name.
        factors: one rescaling factor per downsampling step.
    """

    def __init__(
        self, primary: nn.Module, weights: dict[str, Tensor], factors: Sequence[float]
    ) -> None:
        super().__init__()
        self.primary = primary
        self.factors = tuple(factors)
        self.settled = {name: tensor.detach() for name, tensor in weights.items()}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of images x."""
        output: Tensor = functional_call(self.primary, self.settled, (x, self.factors))
        return output


class ScaleSpaceSegmentation(Trainable):
    """Segmentation whose network shrinks its features by a factor phi, or by one per level.

    Options of the network may be conditionings too: `model.network_choices`.

    Args:
        method: `sshn`, `fixed`, `stochastic` or `film`.
        model: network and data shape.
        settled: a setting whose parameters are training parameters (the `fixed` baseline); when
            given, nothing is drawn while training.
        condition: how the primary network's weights follow the conditioning; by default as the
            shipped method of that name does.

    Raises:
        InputError: factors outside [0, 1], a `num_factors` that the network does not have, or
            choices that it does not have or that change its weights' names or shapes.
    """

    def __init__(
        self,
        method: str,
        model: SegmentationModel,
        settled: Config | None = None,
        *,
        condition: Conditioner | None = None,
    ) -> None:
        self.method, self.model = method, model
        self.condition = condition or CONDITIONED_NETWORKS[method]
        problem = rescaling_problem(num_factors=model.num_factors, choices=model.network_choices)
        self.space = problem.space
        self.settled: Config = self.space.validate(settled) if settled else {}
        self.problem = problem.demoted() if settled else problem
        self.metrics = ("dice", *(f"dice/{label}" for label in model.labels))
        self.stages = tuple(
            Stage(name, share)
            for name, share in (
                ("cross_entropy", 1 - model.dice_share),
                ("soft_dice", model.dice_share),
            )
            if share > 0
        )
        if model.num_factors not in (1, self.skeleton.num_rescalings):
            raise InputError(
                f"model.num_factors must be 1 or the number of downsampling steps, "
                f"{self.skeleton.num_rescalings}; got {model.num_factors}"
            )
        shapes = [_shapes(structure) for structure in self.structures.values()]
        if any(own != shapes[0] for own in shapes):
            raise InputError(
                f"model.choices: expected options that leave the weights' names and shapes alone; "
                f"{', '.join(model.network_choices)} change them"
            )

    def __repr__(self) -> str:
        return f"ScaleSpaceSegmentation({self.method!r}, {self.model!r}, {self.settled!r})"

    def _primary(self, **choices: str) -> Any:
        return self.model.network(
            in_channels=self.model.in_channels,
            out_channels=len(self.model.labels) + 1,
            encoder_widths=self.model.encoder_widths,
            decoder_widths=self.model.decoder_widths,
            num_dims=len(self.model.size),
            rounding=self.model.rounding,
            **{**self.model.network_options, **choices},
        )

    @cached_property
    def structures(self) -> dict[tuple[str, ...], Any]:
        """The primary network without storage for each combination of choices."""
        names = list(self.model.network_choices)
        with torch.device("meta"):
            return {
                values: self._primary(**dict(zip(names, values, strict=True)))
                for values in itertools.product(*self.model.network_choices.values())
            }

    @property
    def skeleton(self) -> Any:
        """The primary network without storage, at the first of all choices."""
        return next(iter(self.structures.values()))

    def structure(self, conditioning: Config) -> Any:
        """The primary network without storage, as a setting chooses it."""
        setting = self.setting(conditioning)
        return self.structures[tuple(str(setting[name]) for name in self.model.network_choices)]

    def setting(self, conditioning: Config) -> Config:
        """Every parameter's value, the settled ones too, in column order.

        Raises:
            InputError: a value is missing, unknown or outside its range.
        """
        return self.space.validate({**self.settled, **conditioning})

    @cached_property
    def num_parameters(self) -> int:
        """Number of weights and biases of the primary network."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    def factors(self, conditioning: Config) -> tuple[float, ...]:
        """One rescaling factor per downsampling step; raises as `setting` does."""
        values = list(self.setting(conditioning).values())[: self.model.num_factors]
        repeats = self.skeleton.num_rescalings if self.model.num_factors == 1 else 1
        return tuple(float(value) for value in values) * repeats

    def encoded(self, conditioning: Config, device: torch.device) -> Tensor:
        """Features z (d,) in [0, 1]: the factors, then the choices one-hot."""
        values = self.space.features([{**self.settled, **conditioning}])[0]
        return torch.tensor(values, dtype=torch.float32, device=device)

    def build(self, seed: int) -> ConditionedNetwork:
        generator = torch.Generator().manual_seed(seed)
        primary = self._primary()
        initialise_primary(primary, generator=generator)
        factors = self.model.centre or (0.5,) * self.model.num_factors
        choices = self.model.network_choices.values()
        shares = [1 / len(values) for values in choices for _ in values]
        centre = torch.tensor([*factors, *shares])
        return self.condition(primary, self.model, centre, generator)

    def loss(
        self,
        module: nn.Module,
        images: Tensor,
        masks: Tensor,
        conditioning: Config,
        stage: str,
        draws: Draws | None = None,
    ) -> Tensor:
        z = self.encoded(conditioning, images.device)
        structure = self.structure(conditioning)
        inputs = (images, self.factors(conditioning))
        criterion = soft_dice_loss if stage == "soft_dice" else cross_entropy
        if not getattr(structure, "is_supervised_at_every_level", False):
            return criterion(module(z, *inputs, structure=structure).float(), masks)
        found = module(z, *inputs, True, structure=structure)
        losses = [criterion(resized(one.float(), masks.shape[1:]), masks) for one in found]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def materialize(self, module: nn.Module, conditioning: Config) -> MaterializedNetwork:
        assert isinstance(module, ConditionedNetwork)
        device = next(module.parameters()).device
        weights = module.weights(self.encoded(conditioning, device))
        return MaterializedNetwork(
            self.structure(conditioning), weights, self.factors(conditioning)
        )

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        labels = self.model.labels
        dice = dice_per_label(network(images).argmax(1), masks, num_labels=len(labels))
        per_label = {f"dice/{label}": dice[:, k] for k, label in enumerate(labels)}
        return {"dice": mean_over_labels(dice), **per_label}

    def costs(self, conditioning: Config) -> dict[str, float]:
        return costs(self._operations(conditioning), num_parameters=self.num_parameters)

    def sizes(self, conditioning: Config) -> dict[str, list[int]]:
        operations = self._operations(conditioning)
        stages = [one for one in operations if one.name.endswith((".conv1", "head"))]
        return {one.name.removesuffix(".conv1"): list(one.size) for one in stages or operations}

    def _operations(self, conditioning: Config) -> list[Operation]:
        found: list[Operation] = self.structure(conditioning).operations(
            self.model.size, self.factors(conditioning)
        )
        return found


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _hyper(
    primary: nn.Module, model: SegmentationModel, centre: Tensor, generator: torch.Generator
) -> ConditionedNetwork:
    return HyperConditionedNetwork(
        primary,
        centre=centre,
        encoding=model.encoding,
        hidden_sizes=model.hidden_sizes,
        initialisation=model.initialisation,
        activation=model.activation,
        generator=generator,
    )


def _film(
    primary: nn.Module, model: SegmentationModel, centre: Tensor, generator: torch.Generator
) -> ConditionedNetwork:
    return FilmConditionedNetwork(
        primary,
        centre=centre,
        encoding=model.encoding,
        hidden_sizes=model.hidden_sizes,
        generator=generator,
    )


def _unconditioned(
    primary: nn.Module, model: SegmentationModel, centre: Tensor, generator: torch.Generator
) -> ConditionedNetwork:
    return ConditionedNetwork(primary)


CONDITIONED_NETWORKS: dict[str, Conditioner] = {
    "sshn": _hyper,
    "film": _film,
    "stochastic": _unconditioned,
    "fixed": _unconditioned,
}
