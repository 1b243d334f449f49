"""Adaptation of a segmentation network to another domain with few annotated images.

A network is trained on the source domain; SpotTUnet keeps that copy frozen beside one that is
fine-tuned, and a policy chooses between the two, block by block and image by image.

Source: Zakazov, Shirokikh, Chernyavskiy, Belyaev, "Anatomy of Domain Shift Impact on U-Net Layers
in MRI Segmentation", eq. 1. Shapes: B images, N blocks, K foreground labels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.adaptation import PARAMETERS, adaptation_problem
from search_spaces.errors import InputError
from search_spaces.space import Config, Value
from trainables.base import Arrays, Draws, ParameterGroup, Stage, Trainable
from trainables.cost import Operation, Size, costs
from trainables.hypernetwork import kaiming_
from trainables.losses import cross_entropy
from trainables.metrics.segmentation import dice_per_label, mean_over_labels
from trainables.metrics.surfaces import surface_dice_per_label
from trainables.networks.residual_unet import ResidualUNet
from trainables.policies import Conditioner, PolicyNetwork, decide

Regulariser = Literal["mean", "sum"]
Tuned = Literal["all", "first", "last", "none", "policy"]
NUM_QUANTILES = 256
_TO = "-to-"


@dataclass(frozen=True)
class AdaptationModel:
    """The network, its policy, and what is known of the two domains.

    Attributes:
        channels: C of an image.
        labels: names of the foreground labels.
        size: spatial size of the images.
        temperature: tau of Gumbel-Softmax, where it is no training parameter.
        regulariser: lambda times the `mean` (the authors' program) or the `sum` (eq. 1) over
            blocks of what is fine-tuned.
        width: features of the network at full resolution.
        num_levels: halvings of its resolution.
        policy_widths: features of the policy's stages.
        policy_rate: factor on the learning rate for the policy.
        policy_weight_decay: of the policy.
        conditioner: how a policy follows lambda.
        encoding: of lambda, a name in `ENCODINGS`.
        hidden_sizes: of the network from lambda.
        ends: lambda's feature at both ends of what training draws.
        tolerance: of surface Dice, in the unit of `spacing`; in pixels without one.
        spacing: of the pixels in mm, per axis; None: not known.
    """

    channels: int
    labels: tuple[str, ...]
    size: Size
    temperature: float = 0.1
    regulariser: Regulariser = "mean"
    width: int = 16
    num_levels: int = 3
    policy_widths: tuple[int, ...] = (32, 64, 128, 256)
    policy_rate: float = 10.0
    policy_weight_decay: float = 1e-3
    conditioner: Conditioner = "monotone"
    encoding: str = "complement"
    hidden_sizes: tuple[int, ...] = (10, 16)
    ends: tuple[float, float] = (0.0, 1.0)
    tolerance: float = 1.0
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Strategy:
    """What a method does with the network of the source domain.

    Attributes:
        tuned: blocks that the target domain changes.
        parameters: that its grid may name; the first it must.
        is_amortised: lambda is a conditioning.
        domain: whose images it is trained on.
        matches: images are given the histogram of the source domain.
    """

    tuned: Tuned
    parameters: tuple[str, ...] = ()
    is_amortised: bool = False
    domain: Literal["target", "source", "folds"] = "target"
    matches: bool = False

    @property
    def places(self) -> tuple[str, ...]:
        """Training parameters that say on which images: all are needed before there are any."""
        if self.domain == "source":
            return ("domain",)
        return ("pair", "amount") if self.domain == "target" and self.trains else ("pair",)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.tuned != "none"


STRATEGIES: dict[str, Strategy] = {
    "source": Strategy("all", domain="source"),
    "spottunet": Strategy("policy", ("lambda", "temperature")),
    "spottunet-amortised": Strategy("policy", is_amortised=True),
    "finetune-all": Strategy("all"),
    "finetune-first": Strategy("first"),
    "finetune-last": Strategy("last"),
    "histogram-matching": Strategy("none", matches=True),
    "no-adaptation": Strategy("none"),
    "oracle": Strategy("all", ("fold",), domain="folds"),
}


def domains_of(pair: object) -> tuple[str, str]:
    """Source and target of a pair that is written SOURCE-to-TARGET.

    Raises:
        InputError: it is written otherwise.
    """
    parts = pair.split(_TO) if isinstance(pair, str) else []
    if len(parts) != 2 or not all(parts) or parts[0] == parts[1]:
        raise InputError(f"pair: expected two different domains, SOURCE-to-TARGET, got {pair!r}")
    return parts[0], parts[1]


class AdaptedUNet(nn.Module):
    """A network whose blocks are frozen, fine-tuned, or chosen between by a policy.

    Frozen blocks never change, their running statistics included.

    Args:
        network: the blocks; those that stay frozen are given no gradient.
        tuned: names of the blocks that are fine-tuned.
        policy: chooses between a tuned and a frozen copy of every block; None: there is one copy.
        temperature: of the policy.
        matches: images are given the histogram that `quantiles` hold.
    """

    quantiles: Tensor

    def __init__(
        self,
        network: ResidualUNet,
        *,
        tuned: Sequence[str],
        policy: PolicyNetwork | None = None,
        temperature: float = 0.1,
        matches: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.policy = network, policy
        self.frozen = copy.deepcopy(network) if policy is not None else None
        self.tuned, self.temperature = tuple(tuned), temperature
        self.matches = matches
        if matches:
            self.register_buffer("quantiles", torch.zeros(network.in_channels, NUM_QUANTILES))
        for module in self._fixed():
            module.requires_grad_(False)
        self.train(self.training)

    def _fixed(self) -> list[nn.Module]:
        others = [block for name, block in self.network.blocks.items() if name not in self.tuned]
        return others if self.frozen is None else [*others, self.frozen]

    def train(self, mode: bool = True) -> AdaptedUNet:
        super().train(mode)
        for module in self._fixed():
            module.eval()
        return self

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Take over the weights of a network of the source domain, in every copy."""
        self.network.load_state_dict(dict(weights))
        if self.frozen is not None:
            self.frozen.load_state_dict(dict(weights))

    def decisions(
        self, images: Tensor, z: Tensor | None = None, uniform: Tensor | None = None
    ) -> Tensor:
        """Which blocks are frozen, (B, N) ones and zeros; with noise where `uniform` is given."""
        if self.policy is None:
            chosen = [float(name not in self.tuned) for name in self.network.blocks]
            return torch.tensor(chosen, device=images.device).expand(len(images), -1)
        logits = self.policy(images, z)
        with torch.autocast(images.device.type, enabled=False):
            return decide(logits.float(), temperature=self.temperature, uniform=uniform)

    def forward(
        self, images: Tensor, z: Tensor | None = None, uniform: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, K + 1, *spatial) of images, and what `decisions` returns."""
        if self.matches:
            images = matched(images, self.quantiles)
        decisions = self.decisions(images, z, uniform)
        if self.frozen is None:
            return self.network(images), decisions
        return self._mixed(self.frozen, images, decisions), decisions

    def _mixed(self, frozen: ResidualUNet, images: Tensor, decisions: Tensor) -> Tensor:
        numbers = {name: k for k, name in enumerate(self.network.blocks)}

        def run(name: str, x: Tensor) -> Tensor:
            chosen = decisions[:, numbers[name]].to(x.dtype).view(-1, *[1] * (x.dim() - 1))
            old, new = frozen.blocks[name](x), self.network.blocks[name](x)
            mixed: Tensor = chosen * old + (1 - chosen) * new
            return mixed

        return self.network.route(images, run, lambda a, b: a + b)


class SettledNetwork(nn.Module):
    """An adapted network at one conditioning: maps images to logits.

    Args:
        module: the adapted network.
        z: features (d,) of the conditioning; None: there is none.
    """

    def __init__(self, module: AdaptedUNet, z: Tensor | None) -> None:
        super().__init__()
        self.module, self.z = module, z

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of images, and which of their blocks are frozen, (B, N)."""
        outputs: tuple[Tensor, Tensor] = self.module(images, self.z)
        return outputs

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K + 1, *spatial) of images (B, C, *spatial)."""
        return self.run(images)[0]


class Adaptation(Trainable):
    """Segmentation of a target domain with a network of a source domain.

    Args:
        method: a name in `STRATEGIES`.
        model: network, policy and data.
        settled: values of the training parameters of its grid, and on which images: the `pair`
            SOURCE-to-TARGET and the `amount` of annotated images of the target, 0 for all; of the
            method `source` its `domain`. Without these it says what is asked of any.

    Raises:
        InputError: a size that the network cannot halve, or a grid of other parameters.
    """

    def __init__(self, method: str, model: AdaptationModel, settled: Config | None = None) -> None:
        self.method, self.model = method, model
        self.strategy = STRATEGIES[method]
        settled = settled or {}
        places, parameters = self.strategy.places, self.strategy.parameters
        unknown = [name for name in settled if name not in (*places, *parameters)]
        if unknown:
            known = ", ".join([*parameters, *places])
            raise InputError(f"{method} has the training parameters {known}, not {unknown[0]}")
        own = {name: value for name, value in settled.items() if name in parameters}
        if settled and not set(parameters[:1]) <= own.keys():
            raise InputError(
                f"{method} needs {parameters[0]} in its grid, got {', '.join(own) or 'none'}"
            )
        problem = adaptation_problem(("lambda",) if self.strategy.is_amortised else tuple(own))
        self.settled = {**settled, **problem.space.validate(own)} if own else settled
        if "amount" in settled:
            PARAMETERS["amount"].validate(settled["amount"])
        self.domain = settled.get("domain")
        if "pair" in settled:
            self.source, self.target = domains_of(settled["pair"])
        self.problem = problem if self.strategy.is_amortised else problem.demoted()
        factor = 2**model.num_levels
        if any(length % factor for length in model.size):
            raise InputError(
                f"dataset.size: expected multiples of {factor} for {model.num_levels} halvings, "
                f"got {list(model.size)}"
            )
        self.metrics = (
            *(f"{kind}{suffix}" for kind in self._kinds for suffix in ("", *self._suffixes)),
            "fine_tuned_blocks",
            *(f"fine_tuned/{name}" for name in self.skeleton.blocks),
        )
        self.stages = (Stage("fine_tuning", 1.0),) if self.strategy.trains else ()
        if self.strategy.tuned == "policy":
            self.advice = (
                " or adaptation.policy_rate, or raise adaptation.temperature, to which training "
                "through Gumbel-Softmax is sensitive"
            )

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("surface_dice", "dice")

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return tuple(f"/{label}" for label in self.model.labels)

    def __repr__(self) -> str:
        return f"Adaptation({self.method!r}, {self.model!r}, {self.settled!r})"

    @property
    def _arguments(self) -> dict[str, int]:
        """Of the network's constructor."""
        return {
            "in_channels": self.model.channels,
            "out_channels": len(self.model.labels) + 1,
            "width": self.model.width,
            "num_levels": self.model.num_levels,
            "num_dims": len(self.model.size),
        }

    @cached_property
    def skeleton(self) -> ResidualUNet:
        """The network without storage."""
        return _skeleton(**self._arguments)

    @cached_property
    def tuned(self) -> list[str]:
        """Names of the blocks that the target domain may change."""
        names = list(self.skeleton.blocks)
        chosen: dict[Tuned, list[str]] = {"first": names[:2], "last": names[-2:], "none": []}
        return chosen.get(self.strategy.tuned, names)

    def _value(self, name: str, default: float) -> float:
        return float(self.settled.get(name, default))

    def samples(self, data: Mapping[str, Arrays]) -> Mapping[str, Arrays]:
        if self.strategy.domain == "source":
            return {name: _of_domain(data[name], self.domain) for name in ("train", "val")}
        own = {name: _of_domain(samples, self.target) for name, samples in data.items()}
        if self.strategy.domain == "folds":
            is_other = np.asarray(own["test"].folds) != self.settled["fold"]
            own["train"] = own["train"].joined(own["test"].select(is_other))
        elif "train" in own:
            own["train"] = own["train"].select(slice(int(self.settled.get("amount", 0)) or None))
        return own

    def judged_by(self, samples: Arrays, split: str) -> NDArray[np.bool_]:
        domain = self.domain if self.strategy.domain == "source" else self.target
        is_own: NDArray[np.bool_] = np.asarray(samples.domains) == domain
        if self.strategy.domain == "folds" and split == "test":
            assert samples.folds is not None
            is_own &= samples.folds == self.settled["fold"]
        return is_own

    def build(self, seed: int) -> AdaptedUNet:
        generator = torch.Generator().manual_seed(seed)
        network = ResidualUNet(**self._arguments)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                kaiming_(parameter.data, generator=generator)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        return AdaptedUNet(
            network,
            tuned=self.tuned,
            policy=self._policy(generator) if self.strategy.tuned == "policy" else None,
            temperature=self._value("temperature", self.model.temperature),
            matches=self.strategy.matches,
        )

    def _policy(self, generator: torch.Generator) -> PolicyNetwork:
        model, is_amortised = self.model, self.strategy.is_amortised
        return PolicyNetwork(
            in_channels=model.channels,
            num_blocks=len(self.skeleton.blocks),
            widths=model.policy_widths,
            num_dims=len(model.size),
            conditioner=model.conditioner if is_amortised else None,
            ends=model.ends,
            encoding=model.encoding,
            hidden_sizes=model.hidden_sizes,
            generator=generator,
        )

    def begin(
        self, module: nn.Module, weights: Mapping[str, Tensor] | None, data: Mapping[str, Arrays]
    ) -> None:
        assert isinstance(module, AdaptedUNet)
        if weights is None or self.strategy.domain == "folds":
            return  # it learns from one domain alone
        prefix = "network."
        module.begin(
            {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        )
        if module.matches:
            images = _of_domain(data["train"], self.source).images
            shares = np.linspace(0, 1, NUM_QUANTILES)
            channels = [np.quantile(images[:, c], shares) for c in range(images.shape[1])]
            module.quantiles.copy_(torch.tensor(np.array(channels)))

    def parameter_groups(self, module: nn.Module) -> list[ParameterGroup]:
        assert isinstance(module, AdaptedUNet)
        network = [one for one in module.network.parameters() if one.requires_grad]
        groups = [ParameterGroup(network)]
        if module.policy is not None:
            policy = list(module.policy.parameters())
            decay = self.model.policy_weight_decay
            groups.append(ParameterGroup(policy, self.model.policy_rate, decay))
        return groups

    def loss(
        self,
        module: nn.Module,
        images: Tensor,
        masks: Tensor,
        conditioning: Config,
        stage: str,
        draws: Draws | None = None,
    ) -> Tensor:
        z, uniform = self._features(conditioning, images.device), None
        has_policy = self.strategy.tuned == "policy"
        if has_policy and draws is not None:
            uniform = draws.uniform(len(self.skeleton.blocks), 2).to(images.device)
        logits, frozen = module(images, z, uniform)
        tuned: Tensor = 1 - frozen
        loss = cross_entropy(logits.float(), masks)
        if not has_policy:
            return loss
        price = float(conditioning.get("lambda", self._value("lambda", 0.0)))
        share = tuned.mean() if self.model.regulariser == "mean" else tuned.sum(1).mean()
        return loss + price * share

    def _features(self, conditioning: Config, device: torch.device) -> Tensor | None:
        if not self.strategy.is_amortised:
            return None
        values = self.problem.space.features([conditioning])[0]
        return torch.tensor(values, dtype=torch.float32, device=device)

    def materialize(self, module: nn.Module, conditioning: Config) -> SettledNetwork:
        assert isinstance(module, AdaptedUNet)
        device = next(module.parameters()).device
        return SettledNetwork(module, self._features(conditioning, device))

    def evaluate(self, network: nn.Module, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, SettledNetwork)
        logits, frozen = network.run(images)
        found, labels = logits.argmax(1), self.model.labels
        per_label = {
            "surface_dice": surface_dice_per_label(
                found,
                masks,
                num_labels=len(labels),
                tolerance=self.model.tolerance,
                spacing=self.model.spacing,
            ),
            "dice": dice_per_label(found, masks, num_labels=len(labels)),
        }
        values: dict[str, Tensor] = {}
        for kind, own in per_label.items():
            values[kind] = mean_over_labels(own)
            values |= {f"{kind}/{label}": own[:, k] for k, label in enumerate(labels)}
        tuned = (1 - frozen).double()
        values["fine_tuned_blocks"] = tuned.sum(1)
        blocks = self.skeleton.blocks
        values |= {f"fine_tuned/{name}": tuned[:, k] for k, name in enumerate(blocks)}
        return values

    @cached_property
    def _meta(self) -> AdaptedUNet:
        with torch.device("meta"):
            return self.build(0)

    def costs(self, conditioning: Config) -> dict[str, float]:
        """Of one image: every block once, as the policy chooses, and the policy itself."""
        known = {name: x for name, x in self.settled.items() if name in self.problem.space.names}
        self.problem.space.validate({**known, **conditioning})
        module = self._meta
        return costs(self._operations(), num_parameters=sum(p.numel() for p in module.parameters()))

    def _operations(self) -> list[Operation]:
        policy = self._meta.policy
        chosen = policy.operations(self.model.size) if policy is not None else []
        return [*chosen, *self.skeleton.operations(self.model.size)]

    def sizes(self, conditioning: Config) -> dict[str, list[int]]:
        return {one.name: list(one.size) for one in self._operations()}


@cache
def _skeleton(**arguments: int) -> ResidualUNet:
    """The network without storage; the check of a spec asks for it once per training."""
    with torch.device("meta"):
        return ResidualUNet(**arguments)


def _of_domain(samples: Arrays, domain: Value | None) -> Arrays:
    return samples.select(np.flatnonzero(samples.domains == domain))


def matched(images: Tensor, quantiles: Tensor) -> Tensor:
    """Images (B, C, *spatial) whose every channel has the histogram of the quantiles (C, q).

    An intensity goes to the quantile of its rank within its image, the middle rank of equal ones.

    Source: histogram specification, Gonzalez and Woods; as preprocessing of an adaptation Singh et
    al. (2020), doi:10.1117/12.2549866.
    """
    flat = images.flatten(2).contiguous()  # of channels-last it is not
    ordered = flat.sort(-1).values
    low = torch.searchsorted(ordered, flat, side="left")
    high = torch.searchsorted(ordered, flat, side="right")
    num_quantiles = quantiles.shape[1]
    place = (low + high - 1).double() / 2 / max(1, flat.shape[2] - 1) * (num_quantiles - 1)
    below = place.floor().long().clamp(0, num_quantiles - 2)
    table = quantiles.expand(len(images), -1, -1)
    share = (place - below).to(images.dtype)
    a, b = table.gather(2, below), table.gather(2, below + 1)
    mixed: Tensor = a + share * (b - a)
    return mixed.view_as(images)
