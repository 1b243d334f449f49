"""Linear layers whose weights are generated for every sample.

Source: "HyDA: Hypernetworks for Test Time Domain Adaptation in Medical Imaging Analysis", section
3.1; initialisation: Chang, Flokas, Lipson (2020), "Principled Weight
Initialization for Hypernetworks", section 4.
Shapes: B samples, d numbers of an embedding, n inputs, m outputs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOUND = 5.0


class HyperEmbedding(nn.Module):
    """One linear layer and a ReLU: from domain features (B, k) to embeddings (B, d).

    The features are first brought to a mean of zero and a variance of one, each sample by itself,
    so that the layers behind know the size of what they are given: embeddings then start with a
    mean square of one.

    Args:
        in_features: k.
        out_features: d.
        generator: source of the random numbers.
    """

    def __init__(self, in_features: int, out_features: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.linear = nn.Linear(in_features, out_features)
        with torch.no_grad():
            self.linear.weight.normal_(0, math.sqrt(2 / in_features), generator=generator)
            self.linear.bias.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (B, d)."""
        return F.relu(self.linear(F.layer_norm(features, (self.in_features,), eps=1e-8)))


class HyperLinear(nn.Module):
    """A linear layer with a weight and a bias of its own for every sample of a batch.

    At the start, inputs and embeddings of mean square one give outputs with the variance that a
    plain layer (`nn.Linear`) gives: its weights and biases have variance 1 / (3 n).

    Args:
        in_features: n.
        out_features: m.
        embedding_size: d.
        bound: generated values w become bound tanh(w / bound); None: they are left alone.
        generator: source of the random numbers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        embedding_size: int,
        *,
        bound: float | None = BOUND,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bound = bound
        size = (in_features + 1) * out_features
        self.generate = nn.Linear(embedding_size, size)
        with torch.no_grad():
            spread = math.sqrt(1 / (3 * in_features * embedding_size))
            self.generate.weight.normal_(0, spread, generator=generator)
            self.generate.bias.zero_()

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample, without those that generate its weights."""
        return self.in_features * self.out_features

    def weights(self, embeddings: Tensor) -> Tensor:
        """What is generated for each sample, (B, m, n + 1): weights, and the bias last."""
        flat: Tensor = self.generate(embeddings)
        if self.bound is not None:
            flat = self.bound * torch.tanh(flat / self.bound)
        return flat.view(-1, self.out_features, self.in_features + 1)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Outputs (B, m) of inputs (B, n) by generated weights (B, m, n + 1)."""
        outputs: Tensor = torch.baddbmm(weights[..., -1:], weights[..., :-1], x.unsqueeze(-1))
        return outputs.squeeze(-1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
