"""Encoders of whole images."""

import pytest
import torch

from trainables.networks.image_encoders import ENCODERS, ConvolutionEncoder


@pytest.mark.parametrize(
    ("name", "size"), [("small", (40, 33)), ("small", (9, 8, 10)), ("brain", (20, 24, 17))]
)
def test_images_of_any_size_become_features(name, size):
    encoder = ENCODERS[name](2, num_dims=len(size))
    features = encoder(torch.randn(3, 2, *size))
    assert features.shape == (3, encoder.num_features)
    features.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_instance_normalisation_treats_every_image_by_itself():
    encoder = ConvolutionEncoder(1, (4, 8), normalisation="instance").train()
    images = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(encoder(images)[2:3], encoder(images[2:3]))


@pytest.mark.parametrize(("dims", "widths"), [(1, (4,)), (2, ())])
def test_other_shapes_are_refused(dims, widths):
    with pytest.raises(ValueError, match="expected 2 or 3 axes and a block"):
        ConvolutionEncoder(1, widths, num_dims=dims)
