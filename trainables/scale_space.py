"""Networks over a continuum of rescaling factors: SSHN and its three baselines.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging"; eq. 2, sections 4.3 and 4.4.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from search_spaces.errors import InputError
from search_spaces.rescaling import PARAMETERS, prior_around, rescaling_problem
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
class RescalingModel:
    """The primary network, its data's shape, and how its weights are conditioned.

    Attributes:
        in_channels: C of what the network is given.
        labels: names of the foreground labels.
        size: spatial size of the images.
        encoder_widths: features per encoder stage, full resolution first.
        decoder_widths: features per decoder stage, lowest resolution first.
        num_factors: 1, or the number of downsampling steps for one factor each.
        rounding: how a rescaled size becomes an integer.
        prior: range of each rescaling factor that training draws; [0, 1] by default.
        encoding: of the conditioning, a name in `ENCODINGS`.
        hidden_sizes: of the hypernetwork, and of FiLM's network.
        initialisation: of the hypernetwork.
        activation: of the hypernetwork.
        network: constructs the primary network; see `trainables.networks.base`.
        network_name: what it is called in `NETWORKS`.
        network_options: further keywords of its constructor.
        network_choices: keywords of it, each with values between which the conditioning chooses.
        distillation: share of the loss that is agreement with the network at the top of the prior.
    """

    in_channels: int
    labels: tuple[str, ...]
    size: Size
    encoder_widths: tuple[int, ...] = (16, 16, 16, 16, 16)
    decoder_widths: tuple[int, ...] = (16, 16, 16, 16)
    num_factors: int = 1
    rounding: Rounding = "round"
    prior: tuple[tuple[float, float], ...] | None = None
    encoding: str = "complement"
    hidden_sizes: tuple[int, ...] = (10, 100)
    initialisation: Initialisation = "residual"
    activation: Activation = "leaky_relu"
    network: Callable[..., nn.Module] = field(default=UNet, repr=False)  # a repr with no address
    network_name: str = "unet"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    network_choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    distillation: float = 0.0

    @property
    def starts_from_primary(self) -> bool:
        """Whether a `residual` hypernetwork starts with the weights given to the network."""
        return False

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """Of each factor, what training draws."""
        return self.prior or ((0.0, 1.0),) * self.num_factors


@dataclass(frozen=True)
class SegmentationModel(RescalingModel):
    """A model whose network tells a label of every pixel.

    Attributes:
        dice_share: part of the epochs that train on soft Dice, after cross-entropy.
    """

    dice_share: float = 0.5


# of a primary network, the model, the centre of the features (d,), and random numbers
Conditioner: TypeAlias = Callable[
    [nn.Module, RescalingModel, Tensor, torch.Generator], ConditionedNetwork
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


class ScaleSpace(Trainable):
    """What shrinks its features by a factor phi, or by one per level; sub-classes have a task.

    Options of the network may be conditionings too: `model.network_choices`.

    Args:
        method: its name.
        model: network and data shape.
        settled: training parameters: any of `PARAMETERS`, or a whole setting (the `fixed`
            baseline), with which nothing is drawn while training.
        condition: how the primary network's weights follow the conditioning; by default as the
            shipped method of that name does.

    Raises:
        InputError: factors outside [0, 1], a `num_factors` that the network does not have, or
            choices that it does not have or that change its weights' names or shapes.
    """

    def __init__(
        self,
        method: str,
        model: RescalingModel,
        settled: Config | None = None,
        *,
        condition: Conditioner | None = None,
    ) -> None:
        self.method, self.model = method, model
        self.condition = condition or CONDITIONED_NETWORKS[method]
        problem = rescaling_problem(num_factors=model.num_factors, choices=model.network_choices)
        self.space = problem.space
        given = settled or {}
        self.training: Config = {
            name: PARAMETERS[name].validate(x) for name, x in given.items() if name in PARAMETERS
        }
        own = {name: x for name, x in given.items() if name not in PARAMETERS}
        self.settled: Config = self.space.validate(own) if own else {}
        self.problem = problem.demoted() if own else problem
        self.distillation = float(self.training.get("distillation", model.distillation))
        if self.settled:
            self.distillation = 0.0
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
        parts = (self.method, self.model, {**self.settled, **self.training})
        return f"{type(self).__name__}({', '.join(map(repr, parts))})"

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """C of what the network gives."""

    def _primary(self, **choices: str) -> Any:
        return self.model.network(
            in_channels=self.model.in_channels,
            out_channels=self.out_channels,
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
        self.initialise(primary, generator)
        factors = [(low + high) / 2 for low, high in self.model.ranges]
        choices = self.model.network_choices.values()
        shares = [1 / len(values) for values in choices for _ in values]
        centre = torch.tensor([*factors, *shares])
        return self.condition(primary, self.model, centre, generator)

    def initialise(self, primary: nn.Module, generator: torch.Generator) -> None:
        """Give a fresh primary network its first weights."""
        initialise_primary(primary, generator=generator)

    def loss(
        self,
        module: nn.Module,
        images: Tensor,
        masks: Tensor,
        conditioning: Config,
        stage: str,
        draws: Draws | None = None,
    ) -> Tensor:
        found = self._outputs(module, images, conditioning)
        own = self.task_loss(found, images, masks, stage)
        if not self.distillation:
            return own
        # the sandwich rule of Yu & Huang (2019), arXiv:1903.05134: the widest learns from the
        # truth at every step, and the one that was drawn also from the widest
        top = self._outputs(module, images, {**conditioning, **self.top()})
        agreement = self.disagreement(found[0].float(), top[0].detach().float())
        taught = (1 - self.distillation) * own + self.distillation * agreement
        return (taught + self.task_loss(top, images, masks, stage)) / 2

    def top(self) -> Config:
        """The largest factors that training draws; of a settled one its own."""
        names = self.space.names[: self.model.num_factors]
        if self.settled:
            return {name: self.settled[name] for name in names}
        ranges = self.model.ranges
        if "prior_width" in self.training:
            width = float(self.training["prior_width"])
            ranges = tuple(prior_around(ends, width) for ends in ranges)
        return {name: high for name, (_, high) in zip(names, ranges, strict=True)}

    def _outputs(
        self, module: nn.Module, images: Tensor, conditioning: Config
    ) -> tuple[Tensor, ...]:
        """What the network gives, at full resolution first; at every level, if it trains them."""
        z, structure = self.encoded(conditioning, images.device), self.structure(conditioning)
        inputs = (images, self.factors(conditioning))
        if not getattr(structure, "is_supervised_at_every_level", False):
            return (module(z, *inputs, structure=structure),)
        return tuple(module(z, *inputs, True, structure=structure))

    @abstractmethod
    def task_loss(
        self, outputs: Sequence[Tensor], images: Tensor, masks: Tensor, stage: str
    ) -> Tensor:
        """Training loss of what the network gives; see `loss`."""

    @abstractmethod
    def disagreement(self, output: Tensor, taught: Tensor) -> Tensor:
        """How far an output is from what another network gives for the same images."""

    @torch.no_grad()
    def materialize(self, module: nn.Module, conditioning: Config) -> MaterializedNetwork:
        assert isinstance(module, ConditionedNetwork)
        device = next(module.parameters()).device
        weights = module.weights(self.encoded(conditioning, device))
        return MaterializedNetwork(
            self.structure(conditioning), weights, self.factors(conditioning)
        )

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


class ScaleSpaceSegmentation(ScaleSpace):
    """Segmentation whose network shrinks its features; see `ScaleSpace`.

    Args:
        method: `sshn`, `fixed`, `stochastic` or `film`.
        model: network and data shape.
        settled: see `ScaleSpace`.
        condition: see `ScaleSpace`.
    """

    model: SegmentationModel

    def __init__(
        self,
        method: str,
        model: SegmentationModel,
        settled: Config | None = None,
        *,
        condition: Conditioner | None = None,
    ) -> None:
        super().__init__(method, model, settled, condition=condition)
        self.metrics = ("dice", *(f"dice/{label}" for label in model.labels))
        self.stages = tuple(
            Stage(name, share)
            for name, share in (
                ("cross_entropy", 1 - model.dice_share),
                ("soft_dice", model.dice_share),
            )
            if share > 0
        )

    @property
    def out_channels(self) -> int:
        return len(self.model.labels) + 1

    def task_loss(
        self, outputs: Sequence[Tensor], images: Tensor, masks: Tensor, stage: str
    ) -> Tensor:
        criterion = soft_dice_loss if stage == "soft_dice" else cross_entropy
        size = masks.shape[1:]
        losses = [criterion(_at_size(one.float(), size), masks) for one in outputs]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def disagreement(self, output: Tensor, taught: Tensor) -> Tensor:
        return F.cross_entropy(output, taught.softmax(1))

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        labels = self.model.labels
        dice = dice_per_label(network(images).argmax(1), masks, num_labels=len(labels))
        per_label = {f"dice/{label}": dice[:, k] for k, label in enumerate(labels)}
        return {"dice": mean_over_labels(dice), **per_label}


def _at_size(x: Tensor, size: Size) -> Tensor:
    return x if x.shape[2:] == size else resized(x, size)


def _shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _hyper(
    primary: nn.Module, model: RescalingModel, centre: Tensor, generator: torch.Generator
) -> ConditionedNetwork:
    return HyperConditionedNetwork(
        primary,
        centre=centre,
        encoding=model.encoding,
        hidden_sizes=model.hidden_sizes,
        initialisation=model.initialisation,
        activation=model.activation,
        starts_from_primary=model.starts_from_primary,
        generator=generator,
    )


def _film(
    primary: nn.Module, model: RescalingModel, centre: Tensor, generator: torch.Generator
) -> ConditionedNetwork:
    return FilmConditionedNetwork(
        primary,
        centre=centre,
        encoding=model.encoding,
        hidden_sizes=model.hidden_sizes,
        generator=generator,
    )


def _unconditioned(
    primary: nn.Module, model: RescalingModel, centre: Tensor, generator: torch.Generator
) -> ConditionedNetwork:
    return ConditionedNetwork(primary)


CONDITIONED_NETWORKS: dict[str, Conditioner] = {
    "sshn": _hyper,
    "film": _film,
    "stochastic": _unconditioned,
    "fixed": _unconditioned,
}
