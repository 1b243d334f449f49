"""What is looked at inside conditioned networks."""

import numpy as np
import pytest
import torch

from tests.trainables.test_scale_space import images, make, randomised
from trainables.base import Arrays
from trainables.inspection import (
    coefficients_of_variation,
    feature_maps,
    predicted_weights,
    transferred,
)
from trainables.networks.architectures import NETWORKS
from trainables.train_loop import evaluate_setting


def test_predicted_weights_are_those_that_networks_run_with():
    trainable = make()
    module = randomised(trainable)
    settings = [{"phi": phi} for phi in (0.0, 0.3, 0.9)]
    weights = predicted_weights(trainable, module, settings)
    for row, setting in enumerate(settings):
        own = trainable.materialize(module, setting).settled
        assert own.keys() == weights.keys()
        assert all(np.array_equal(weights[name][row], x.numpy()) for name, x in own.items())


def test_variation_is_the_spread_over_the_size_of_the_mean():
    weights = np.array([[[1.0, -2.0]], [[3.0, -2.0]], [[0.0, 0.0]]])
    weights[2] = [[2.0, -2.0]]
    expected = [np.std([1, 3, 2]) / 2, 0.0]
    assert coefficients_of_variation(weights) == pytest.approx(expected)
    assert np.isnan(coefficients_of_variation(np.array([[1.0], [-1.0]])))


@pytest.mark.parametrize("network", NETWORKS)
def test_features_are_of_every_block_at_its_size(network):
    trainable = make(
        network=NETWORKS[network], network_name=network, decoder_widths=(4, 4), size=(16, 12)
    )
    settled = trainable.materialize(randomised(trainable), {"phi": 0.5})
    found = feature_maps(settled, images(1, (16, 12))[0].numpy())
    encoder = [name for name in found if name.startswith("encoder.")]
    assert [found[name].shape[1:] for name in encoder] == [(16, 12), (8, 6), (4, 3)]
    hooks = [one._forward_hooks for one in settled.primary.modules()]
    assert not any(hooks)  # nothing stays behind


def test_transferred_weights_stay_while_the_sizes_change():
    trainable = make()
    module, source = randomised(trainable), np.random.default_rng(0)
    masks = source.integers(0, 3, (3, 12, 10)).astype(np.uint8)
    data = Arrays(images(3).numpy(), masks)
    home, other = {"phi": 0.5}, {"phi": 0.9}
    found = transferred(trainable, module, weights_at=home, run_at=[home, other], data=data)
    at_home = evaluate_setting(trainable, module, data, home)["dice"]
    assert found[0]["dice"].tolist() == at_home.tolist()
    network = trainable.materialize(module, home)
    network.factors = trainable.factors(other)
    expected = trainable.evaluate(network, torch.from_numpy(data.images), torch.from_numpy(masks))
    assert found[1]["dice"] == pytest.approx(expected["dice"].numpy())


def test_weights_of_a_network_of_one_factor_run_at_others():
    trainable = make("fixed", {"phi": 0.5})
    module = trainable.build(0)
    data = Arrays(images(2).numpy(), np.ones((2, 12, 10), dtype=np.uint8))
    found = transferred(
        trainable, module, weights_at={"phi": 0.5}, run_at=[{"phi": 0.5}, {"phi": 0.1}], data=data
    )
    assert len(found) == 2
