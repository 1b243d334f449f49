import random

import pytest
import torch
from torch.nn import functional as F

from trainables.cost import rescaled_size
from trainables.hypernetwork import initialise_primary
from trainables.networks.unet import UNet


def make_unet(num_dims=2, **changes):
    fields = {
        "in_channels": 1,
        "out_channels": 3,
        "encoder_widths": (4, 5, 6),
        "decoder_widths": (3, 2),
        "num_dims": num_dims,
    }
    unet = UNet(**{**fields, **changes})
    initialise_primary(unet, generator=torch.Generator().manual_seed(0))
    return unet


def written_out(unet, x, factors, mode="bilinear"):
    """The forward pass of three encoder and two decoder stages, level by level."""

    def block(stage, x):
        return F.leaky_relu(stage.conv1(F.leaky_relu(stage.conv0(x))))

    def resize(x, size):
        corners = {} if mode.startswith("nearest") else {"align_corners": False}
        return F.interpolate(x, size=size, mode=mode, **corners)

    e0 = block(unet.encoder[0], x)
    e1 = block(unet.encoder[1], resize(e0, rescaled_size(e0.shape[2:], factors[0])))
    e2 = block(unet.encoder[2], resize(e1, rescaled_size(e1.shape[2:], factors[1])))
    d0 = block(unet.decoder[0], torch.cat([resize(e2, e1.shape[2:]), e1], dim=1))
    d1 = block(unet.decoder[1], torch.cat([resize(d0, e0.shape[2:]), e0], dim=1))
    return unet.head(d1)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 12), (7, 9), (1, 5), (1, 1)])
@pytest.mark.parametrize("factors", [(0, 0), (1, 1), (0.3, 0.3), (0, 1), (1, 0), (0.77, 0.21)])
@pytest.mark.parametrize("rounding", ["round", "ceil"])
def test_output_has_the_size_of_the_input_at_every_factor(size, factors, rounding):
    unet = make_unet(rounding=rounding)
    assert unet(torch.ones(2, 1, *size), factors).shape == (2, 3, *size)


@torch.no_grad()
@pytest.mark.parametrize("factors", [(0, 0), (1, 1), (0.6, 0.2)])
def test_volumes_keep_their_size(factors):
    unet = make_unet(num_dims=3)
    assert unet(torch.ones(1, 1, 5, 6, 1), factors).shape == (1, 3, 5, 6, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_dims", "interpolation", "mode"),
    [
        (2, "linear", "bilinear"),
        (3, "linear", "trilinear"),
        (2, "nearest", "nearest-exact"),
        (3, "nearest", "nearest-exact"),
    ],
)
def test_forward_equals_the_levels_written_out(num_dims, interpolation, mode):
    unet, rng = make_unet(num_dims, interpolation=interpolation), random.Random(0)
    x = torch.randn(2, 1, *(9, 8, 5)[:num_dims], generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        factors = (rng.random(), rng.random())
        torch.testing.assert_close(
            unet(x, factors), written_out(unet, x, factors, mode), rtol=1e-5, atol=1e-6
        )


@torch.no_grad()
def test_features_shrink_by_their_factor_and_return_to_the_skip():
    unet, seen = make_unet(), {}
    for name, module in unet.named_modules():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: tuple(output.shape[2:])})
        )
    unet(torch.ones(1, 1, 40, 31), (0.5, 0.3))
    # 15.5 rounds half to even
    assert [seen[f"encoder.{level}"] for level in range(3)] == [(40, 31), (20, 16), (6, 5)]
    assert [seen[f"decoder.{level}"] for level in range(2)] == [(20, 16), (40, 31)]


@torch.no_grad()
def test_input_is_not_modified():
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    make_unet()(x, (0.5, 0.5))
    assert torch.equal(x, before)


def test_arguments_rebuild_the_architecture():
    unet = make_unet(num_dims=3, rounding="ceil", interpolation="nearest")
    again = UNet(**unet.arguments)
    assert again.arguments == unet.arguments
    assert {n: p.shape for n, p in again.named_parameters()} == {
        n: p.shape for n, p in unet.named_parameters()
    }


def test_num_rescalings_counts_downsampling_steps():
    assert make_unet().num_rescalings == 2
    assert make_unet(encoder_widths=(4,), decoder_widths=()).num_rescalings == 0


def test_numbers_of_stages_must_match():
    with pytest.raises(ValueError, match="one decoder stage fewer than encoder stages, got 3 and"):
        make_unet(decoder_widths=(3,))


@pytest.mark.parametrize("num_dims", [1, 4])
def test_two_or_three_axes_are_expected(num_dims):
    with pytest.raises(ValueError, match=f"num_dims must be 2 or 3, got {num_dims}"):
        make_unet(num_dims=num_dims)


def test_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match="must be one of linear, nearest, got 'cubic'"):
        make_unet(interpolation="cubic")
