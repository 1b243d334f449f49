"""Registration by networks that shrink their features."""

import numpy as np
import pytest
import torch

from search_spaces.errors import InputError
from tests.trainables.test_scale_space import randomised
from trainables.base import Arrays
from trainables.deformations import warp
from trainables.losses import total_variation
from trainables.methods import TRAINABLES
from trainables.networks.architectures import NETWORKS
from trainables.scale_space_registration import DisplacementModel
from trainables.train_loop import evaluate_setting

SHAPE = {
    "in_channels": 2,
    "labels": ("one", "two"),
    "size": (12, 10),
    "encoder_widths": (3, 4, 4),
    "decoder_widths": (4, 4),
    "hidden_sizes": (4, 6),
}


def make(method="sshn-registration", settled=None, **changes):
    return TRAINABLES[method].construct(DisplacementModel(**(SHAPE | changes)), settled)


def pair():
    source = torch.Generator().manual_seed(2)
    return torch.rand(2, 2, 12, 10, generator=source) * 2 - 1


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["sshn-registration", "film-registration"])
def test_training_starts_at_the_identity(network, method):
    trainable = make(method, network=NETWORKS[network], network_name=network)
    module = trainable.build(0)
    for phi in (0.0, 0.4, 1.0):
        displacement = trainable.materialize(module, {"phi": phi})(pair())
        assert displacement.shape == (2, 2, 12, 10)
        assert displacement.abs().max() < 1e-2


@pytest.mark.parametrize("num_dims", [2, 3])
def test_loss_is_squares_and_total_variation_of_what_is_displaced(num_dims):
    size = (12, 10, 8)[:num_dims]
    trainable = make(smoothness=0.3, size=size)
    module = randomised(trainable)
    images = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    displacement = trainable.materialize(module, {"phi": 0.5})(images)
    moving, fixed = ((images + 1) / 2).split(1, dim=1)
    expected = (warp(moving, displacement) - fixed).square().mean()
    expected = expected + 0.3 * total_variation(displacement)
    found = trainable.loss(module, images, torch.zeros(0), {"phi": 0.5}, "registration")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_identity_has_the_overlap_of_the_labels_as_they_are():
    trainable = make()
    source = np.random.default_rng(0)
    images = source.random((2, 1, 12, 10)).astype(np.float32)
    masks = source.integers(0, 3, (2, 12, 10)).astype(np.uint8)
    data = Arrays(images, masks, np.array([[0, 1], [1, 0]]))
    values = evaluate_setting(trainable, trainable.build(0), data, {"phi": 0.3})
    assert tuple(values) == trainable.metrics
    one, other = (masks[k] == 1 for k in (0, 1))
    overlap = 2 * (one & other).sum() / (one.sum() + other.sum())
    assert values["dice/one"] == pytest.approx([overlap, overlap])
    assert values["folded_voxels"].tolist() == [0, 0]
    assert values["displacement"].max() < 1e-2


def test_images_of_several_channels_are_refused():
    with pytest.raises(InputError, match="expected images of one channel, got 3"):
        make(in_channels=6)
