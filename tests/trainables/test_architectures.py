"""Every network that a specification can name, under every method, in two and three dimensions."""

import json

import pytest
import torch

from trainables.losses import cross_entropy
from trainables.networks.architectures import NETWORKS
from trainables.networks.blocks import resized
from trainables.scale_space import CONDITIONED_NETWORKS, ScaleSpaceSegmentation, SegmentationModel

SIZES = {2: (14, 11), 3: (7, 6, 5)}


def make(name, method="sshn", *, num_dims=2, settled=None):
    model = SegmentationModel(
        in_channels=2,
        labels=("nucleus", "cytoplasm"),
        size=SIZES[num_dims],
        encoder_widths=(9, 4, 5),
        decoder_widths=(4, 4),
        hidden_sizes=(4, 6),
        network=NETWORKS[name],
        network_name=name,
    )
    return ScaleSpaceSegmentation(method, model, settled)


def images(num_dims=2, count=3):
    return torch.randn(count, 2, *SIZES[num_dims], generator=torch.Generator().manual_seed(3))


def masks(num_dims=2, count=3):
    source = torch.Generator().manual_seed(4)
    return torch.randint(0, 3, (count, *SIZES[num_dims]), generator=source)


@pytest.mark.parametrize("num_dims", SIZES)
@pytest.mark.parametrize("method", CONDITIONED_NETWORKS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_tensor(name, method, num_dims):
    trainable = make(name, method, num_dims=num_dims)
    module = trainable.build(0)
    weights = {}

    def kept(z, own=module.weights):
        weights.update(own(z))
        for tensor in weights.values():
            tensor.retain_grad()
        return weights

    module.weights = kept
    for stage in ("cross_entropy", "soft_dice"):
        loss = trainable.loss(module, images(num_dims), masks(num_dims), {"phi": 0.6}, stage)
        loss.backward()
        without = [n for n, t in weights.items() if t.grad is None or not t.grad.abs().max() > 0]
        assert not without
        assert set(weights) == {n for n, _ in trainable.skeleton.named_parameters()}


@torch.no_grad()
@pytest.mark.parametrize("num_dims", SIZES)
@pytest.mark.parametrize("phi", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_rebuilt_from_its_arguments_it_predicts_the_same(name, phi, num_dims):
    trainable = make(name, num_dims=num_dims)
    network = trainable.materialize(trainable.build(0), {"phi": phi})
    logits = network(images(num_dims))
    assert logits.shape == (3, 3, *SIZES[num_dims])
    assert logits.std() > 0
    arguments = json.loads(json.dumps(network.primary.arguments))
    alone = NETWORKS[name](**arguments)
    alone.load_state_dict(dict(network.settled))
    torch.testing.assert_close(alone(images(num_dims), (phi, phi)), logits)
    assert alone.arguments == arguments


@pytest.mark.parametrize("name", NETWORKS)
def test_each_image_is_predicted_by_itself(name):
    trainable = make(name)
    network = trainable.materialize(trainable.build(0), {"phi": 0.5})
    together = network(images())
    alone = torch.cat([network(one) for one in images().split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_pyramid_is_trained_at_every_level_and_asked_for_the_finest():
    trainable = make("fpn", "fixed", settled={"phi": 0.5})
    module = trainable.build(0)
    network = trainable.materialize(module, {})
    every = network.primary
    levels = torch.func.functional_call(every, network.settled, (images(), (0.5, 0.5), True))
    assert [tuple(one.shape[2:]) for one in levels] == [(14, 11), (7, 6), (4, 3)]
    assert torch.equal(levels[0], network(images()))
    losses = [cross_entropy(resized(one, (14, 11)), masks()) for one in levels]
    loss = trainable.loss(module, images(), masks(), {}, "cross_entropy")
    torch.testing.assert_close(loss, torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("name", "widths", "message"),
    [
        ("fpn", (4, 3), r"one width for the whole pyramid, got \[3, 4\]"),
        ("fpn", (4,), "one decoder stage fewer"),
        ("pspnet", (4, 4, 4), "one decoder stage fewer"),
        ("senet", (4,), "one decoder stage fewer"),
    ],
)
def test_widths_that_do_not_fit_are_refused(name, widths, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS[name](
            in_channels=1, out_channels=2, encoder_widths=(4, 4, 4), decoder_widths=widths
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "dense"}, "^block must be one of plain, residual, squeeze, got 'dense'"),
        (
            {"decoder_block": "dense"},
            "decoder_block must be one of plain, residual, squeeze, pooling, got 'dense'",
        ),
        ({"shortcuts": "none"}, "shortcuts must be true or false, got 'none'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NETWORKS["unet"](
            in_channels=1, out_channels=2, encoder_widths=(4, 4), decoder_widths=(4,), **options
        )


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "pspnet"])
def test_without_shortcuts_all_passes_through_the_smallest_features(name):
    network = NETWORKS[name](
        in_channels=1,
        out_channels=2,
        encoder_widths=(4, 4, 4),
        decoder_widths=(4, 4),
        shortcuts=False,
    )
    network.double()  # what gets through is small: 1e-6 of some initial weights
    alone = NETWORKS[name](**network.arguments).double()
    alone.load_state_dict(network.state_dict())
    source = torch.Generator().manual_seed(5)
    x = torch.randn(1, 1, 12, 12, generator=source, dtype=torch.float64)
    # of a single pixel only the edges of the convolutions tell where one is
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    one_pixel = network(x, (0.0, 0.0))
    torch.testing.assert_close(alone(x, (0.0, 0.0)), one_pixel)
    assert one_pixel[inner].std(dim=(2, 3)).max() < 1e-14
    assert network(x, (0.5, 0.5))[inner].std(dim=(2, 3)).max() > 1e-10
