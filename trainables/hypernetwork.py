"""Networks whose weights are a function of a conditioning.

A conditioned network answers one question, `weights(conditioning)`, and the primary network runs
with the answer; after training that answer is all that is kept. Shapes: d features of a
conditioning, numbers in [0, 1] and categories one-hot, encoded to e inputs; h features of the
hypernetwork's last hidden layer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Initialisation = Literal["residual", "kaiming", "kaiming_fan_out", "variance"]
Activation = Literal["leaky_relu", "relu", "relu_tanh"]
NEGATIVE_SLOPE = 0.01


def complement(z: Tensor) -> Tensor:
    """[z, 1 - z]: no bias towards large values (Scale-Space Hypernetworks, section 3)."""
    return torch.cat([z, 1 - z])


def fourier(z: Tensor) -> Tensor:
    """[z, sin and cos of 1, 2 and 4 half turns of z]."""
    angles = torch.cat([math.pi * frequency * z for frequency in (1, 2, 4)])
    return torch.cat([z, angles.sin(), angles.cos()])


ENCODINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "complement": complement,
    "plain": lambda z: z,
    "fourier": fourier,
}


class Hypernetwork(nn.Module):
    """Fully connected network from an encoded conditioning to every weight of a primary network.

    Args:
        shapes: name and shape of each tensor to predict.
        num_inputs: e, the length of the encoded conditioning.
        hidden_sizes: features of the hidden layers (the papers': 10 and 100).
        reference: encoded conditioning (e,) from whose features those of others are counted in
            the `residual` initialisation: there a prediction is the bias alone.
        initialisation: `residual` (default): a prediction is a weight of its own, Kaiming
            initialised, plus 1/h times a linear map of how far the features are from those at
            the reference; the map starts at zero. So the primary network starts as an ordinary
            one and learns at the rate of an ordinary one: without the reference, features that
            hardly vary would add their size to that rate. `kaiming` and `kaiming_fan_out`: the
            papers'; the last layer is initialised tensor by tensor, biases are zero. `variance`:
            as `kaiming`, scaled so that predictions have the variance of Kaiming weights.
        activation: of the hidden layers; `relu_tanh`: tanh after the last of them.
        generator: source of the random numbers.

    Source: Scale-Space Hypernetworks, sections 3 and 4.4; HyperMorph, section 3.4 (`relu_tanh`).
    """

    reference: Tensor

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        *,
        reference: Tensor,
        hidden_sizes: Sequence[int] = (10, 100),
        initialisation: Initialisation = "residual",
        activation: Activation = "leaky_relu",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.register_buffer("reference", reference, persistent=False)
        self.is_residual = initialisation == "residual"
        self.shapes = dict(shapes)
        self.numels = [shape.numel() for shape in self.shapes.values()]
        sizes = [len(reference), *hidden_sizes]
        layers = [nn.Linear(before, after) for before, after in itertools.pairwise(sizes)]
        self.hidden = nn.ModuleList(layers)
        self.weight = nn.Parameter(torch.zeros(sum(self.numels), sizes[-1]))
        self.bias = nn.Parameter(torch.zeros(sum(self.numels)))
        for layer in layers:
            kaiming_(layer.weight.data, generator=generator)
            nn.init.zeros_(layer.bias)
        self._initialise_last(initialisation, generator)

    @torch.no_grad()
    def _initialise_last(self, initialisation: str, generator: torch.Generator) -> None:
        biases = self.bias.split(self.numels)
        groups = zip(self.shapes.items(), self.weight.split(self.numels), biases, strict=True)
        norm = self.features(self.reference).norm()
        for (_, shape), weight, bias in groups:
            if self.is_residual:
                if len(shape) > 1:
                    bias.view(shape).copy_(kaiming_(torch.empty(shape), generator=generator))
            elif initialisation == "variance":
                gain = math.sqrt(2 / (1 + NEGATIVE_SLOPE**2))
                std = gain / math.sqrt(shape[1:].numel()) if len(shape) > 1 else 0.0
                weight.normal_(0, 1, generator=generator).mul_(std / norm)
            else:
                kaiming_(weight, generator=generator, fan_out=initialisation.endswith("out"))

    def features(self, inputs: Tensor) -> Tensor:
        """Return the last hidden features (..., h) of encoded inputs (..., e)."""
        slope = NEGATIVE_SLOPE if self.activation == "leaky_relu" else 0.0
        *first, last = self.hidden
        for layer in first:
            inputs = F.leaky_relu(layer(inputs), slope)
        inputs = last(inputs)
        return inputs.tanh() if self.activation == "relu_tanh" else F.leaky_relu(inputs, slope)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the predicted tensors, by name, for encoded inputs (e,)."""
        if self.is_residual:
            own, reference = self.features(torch.stack([inputs, self.reference]))
            # scaled here: addmv's alpha would make another pass over the gradient of every weight
            features = (own - reference) / len(own)
        else:
            features = self.features(inputs)
        flat = torch.addmv(self.bias, self.weight, features)
        parts = flat.split(self.numels)
        return {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}


class ConditionedNetwork(nn.Module):
    """A primary network with its own weights, the same for every conditioning.

    Sub-classes override `weights`. Parameters are what is trained; `weights` is what is run.

    Args:
        primary: the network that sees the images.
    """

    def __init__(self, primary: nn.Module) -> None:
        super().__init__()
        self.primary = primary

    def weights(self, z: Tensor) -> dict[str, Tensor]:
        """Return every weight of the primary network, by name, at the conditioning z (d,)."""
        return dict(self.primary.named_parameters())

    def forward(self, z: Tensor, *inputs: Any, structure: nn.Module | None = None) -> Tensor:
        """Run the primary network on its inputs with the weights at z.

        `structure` has the same weights and is run in its place: what else is chosen at z.
        """
        kind = z.device.type
        # tensors without storage are computed in no precision
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            weights = self.weights(z)
        network = self.primary if structure is None else structure
        output: Tensor = functional_call(network, weights, inputs)
        return output


class HyperConditionedNetwork(ConditionedNetwork):
    """A primary network with every weight predicted by a hypernetwork (eq. 2 of the paper).

    Args:
        primary: gives the names and shapes of the weights.
        centre: features (d,) in the middle of what training draws.
        encoding: of the features, a name in `ENCODINGS`.
        hidden_sizes: see `Hypernetwork`.
        initialisation: see `Hypernetwork`.
        activation: see `Hypernetwork`.
        starts_from_primary: a `residual` one starts with the weights that `primary` has.
        generator: source of the random numbers.
    """

    def __init__(
        self,
        primary: nn.Module,
        *,
        centre: Tensor,
        encoding: str = "complement",
        hidden_sizes: Sequence[int] = (10, 100),
        initialisation: Initialisation = "residual",
        activation: Activation = "leaky_relu",
        starts_from_primary: bool = False,
        generator: torch.Generator,
    ) -> None:
        nn.Module.__init__(self)
        own = [tensor.detach().clone() for tensor in primary.parameters()]
        # structure alone, and not a sub-module: nothing of it is stored, moved or trained
        self.__dict__["primary"] = primary.to("meta")
        self.encode = ENCODINGS[encoding]
        shapes = {name: tensor.shape for name, tensor in primary.named_parameters()}
        self.hypernetwork = Hypernetwork(
            shapes,
            reference=self.encode(centre),
            hidden_sizes=hidden_sizes,
            initialisation=initialisation,
            activation=activation,
            generator=generator,
        )
        if starts_from_primary and initialisation == "residual":
            with torch.no_grad():
                self.hypernetwork.bias.copy_(torch.cat([tensor.flatten() for tensor in own]))

    def weights(self, z: Tensor) -> dict[str, Tensor]:
        predicted: dict[str, Tensor] = self.hypernetwork(self.encode(z))
        return predicted


class FilmConditionedNetwork(ConditionedNetwork):
    """Feature-wise linear modulation after every convolution, from the conditioning.

    Scaling and shifting a convolution's output is the same as scaling its filters and scaling
    and shifting its bias: gamma (W x + b) + beta = (gamma W) x + (gamma b + beta). So FiLM too
    is a function from conditioning to weights, and costs nothing once the conditioning is chosen.

    Args:
        primary: the network that is modulated; its weights are trained too.
        centre: features (d,) in the middle of what training draws.
        encoding: of the features, a name in `ENCODINGS`.
        hidden_sizes: of the network that predicts gamma and beta; see `Hypernetwork`.
        generator: source of the random numbers.

    Source: Perez et al. (2018), arXiv:1709.07871; Scale-Space Hypernetworks, section 4.3.
    """

    def __init__(
        self,
        primary: nn.Module,
        *,
        centre: Tensor,
        encoding: str = "complement",
        hidden_sizes: Sequence[int] = (10, 100),
        generator: torch.Generator,
    ) -> None:
        super().__init__(primary)
        self.encode = ENCODINGS[encoding]
        self.convolutions = [
            name for name, child in primary.named_modules() if hasattr(child, "kernel_size")
        ]
        shapes = {name: self._vector(name) for name in self.convolutions}
        self.modulation = Hypernetwork(
            {
                f"{kind}.{name}": shape
                for name, shape in shapes.items()
                for kind in ("gamma", "beta")
            },
            reference=self.encode(centre),
            hidden_sizes=hidden_sizes,
            generator=generator,
        )

    def _vector(self, convolution: str) -> torch.Size:
        return self.primary.get_parameter(f"{convolution}.bias").shape

    def weights(self, z: Tensor) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = dict(self.primary.named_parameters())
        modulation = self.modulation(self.encode(z))
        for name in self.convolutions:
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            gamma, beta = 1 + modulation[f"gamma.{name}"], modulation[f"beta.{name}"]
            weights[f"{name}.weight"] = weight * gamma.view(-1, *[1] * (weight.dim() - 1))
            weights[f"{name}.bias"] = bias * gamma + beta
        return weights


def kaiming_(tensor: Tensor, *, generator: torch.Generator, fan_out: bool = False) -> Tensor:
    """Fill in place with Kaiming normal values for LeakyReLU (He et al. 2015, arXiv:1502.01852)."""
    return nn.init.kaiming_normal_(
        tensor,
        a=NEGATIVE_SLOPE,
        mode="fan_out" if fan_out else "fan_in",
        nonlinearity="leaky_relu",
        generator=generator,
    )


def initialise_primary(primary: nn.Module, *, generator: torch.Generator) -> None:
    """Kaiming weights, zero biases: as every prediction of a `residual` hypernetwork starts."""
    for parameter in primary.parameters():
        if parameter.dim() > 1:
            kaiming_(parameter.data, generator=generator)
        else:
            nn.init.zeros_(parameter)
