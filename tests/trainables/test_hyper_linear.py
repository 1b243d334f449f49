"""Weights of their own for every sample."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainables.hyper_linear import BOUND, HyperEmbedding, HyperLinear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_batch_is_each_sample_alone_with_its_own_weights():
    layer = HyperLinear(7, 4, 5, generator=generator()).double()
    x, e = (torch.randn(6, n, dtype=torch.float64, generator=generator(n)) for n in (7, 5))
    together = layer(x, layer.weights(e))
    for k in range(6):
        own = layer.weights(e[k : k + 1])[0]
        alone = F.linear(x[k], own[:, :-1], own[:, -1])
        assert (together[k] - alone).abs().max() < 1e-12
    assert len({tuple(row) for row in layer.weights(e)[:, 0].tolist()}) == 6


@pytest.mark.parametrize("bound", [BOUND, None])
@pytest.mark.parametrize(("n", "m", "d"), [(64, 256, 16), (1024, 64, 32), (16, 512, 64)])
def test_outputs_start_with_the_variance_of_a_plain_layer(n, m, d, bound):
    x, features = torch.randn(400, n, generator=generator(1)), 6 * torch.randn(400, 48) + 3
    own, plain = [], []
    for seed in range(6):
        embed = HyperEmbedding(48, d, generator=generator(seed))
        layer = HyperLinear(n, m, d, bound=bound, generator=generator(100 + seed))
        own.append(layer(x, layer.weights(embed(features))).var().item())
        plain.append(nn.Linear(n, m)(x).var().item())
    assert np.mean(own) == pytest.approx(np.mean(plain), rel=0.2)


def test_embeddings_start_with_a_mean_square_of_one_whatever_the_features():
    for scale in (1e-2, 1, 1e3):
        features = scale * torch.randn(500, 32, generator=generator(2))
        squares = HyperEmbedding(32, 256, generator=generator())(features).square()
        assert squares.mean().item() == pytest.approx(1, rel=0.1)


def test_generated_values_keep_within_the_bound():
    layer = HyperLinear(3, 2, 4, generator=generator())
    weights = layer.weights(1e4 * torch.randn(5, 4, generator=generator(3)))
    assert weights.abs().max() <= BOUND
    free = HyperLinear(3, 2, 4, bound=None, generator=generator())
    assert free.weights(1e4 * torch.randn(5, 4, generator=generator(3))).abs().max() > BOUND


def test_gradients_reach_what_generates_and_the_embedding():
    embed = HyperEmbedding(6, 4, generator=generator())
    layer = HyperLinear(3, 2, 4, generator=generator())
    x, features = torch.randn(5, 3), torch.randn(5, 6)
    layer(x, layer.weights(embed(features))).square().sum().backward()
    for parameter in (*embed.parameters(), *layer.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
