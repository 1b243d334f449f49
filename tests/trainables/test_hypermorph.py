"""The registration network, its loss over lambda, gamma and radius, and what is measured."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from search_spaces.errors import InputError
from trainables.datasets import synthetic
from trainables.deformations import integrate, resized_field, warp
from trainables.hypermorph import Registration, RegistrationModel, RegistrationNetwork
from trainables.losses import half_squared_gradient, scaled_squares
from trainables.networks.voxelmorph import RegistrationUNet

LABELS = synthetic.labels_of(3)
MODEL = RegistrationModel(
    channels=1,
    labels=LABELS,
    size=(32, 32),
    encoder_widths=(4, 6, 6),
    decoder_widths=(6, 6, 6),
    final_widths=(6, 4),
    hidden_sizes=(8, 8),
)


def registration(method="hypermorph", settled=None, **changes):
    return Registration(method, RegistrationModel(**(vars(MODEL) | changes)), settled)


def batch(count=2):
    data = synthetic.load(size=(32, 32), num_images=2 * count, num_labels=3, num_domains=1)
    images = torch.from_numpy(data.images).reshape(count, 2, 32, 32)
    return images, torch.from_numpy(data.masks).reshape(count, 2, 32, 32).long()


def moved_away(trainable, scale=0.3):
    """A module whose field is not nearly zero, as it is at the start."""
    module, source = trainable.build(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=source))
    return module.eval()


def test_the_network_in_3d_has_the_papers_number_of_parameters():
    with torch.device("meta"):
        network = RegistrationUNet()
    shapes = [
        tuple(module.weight.shape[:2])
        for module in network.modules()
        if isinstance(module, torch.nn.Conv3d)
    ]
    encoder = [(16, 2), (32, 16), (32, 32), (32, 32)]
    decoder = [(32, 32), (32, 64), (32, 64), (32, 64)]
    assert shapes == [*encoder, *decoder, (32, 32), (16, 32), (16, 16), (3, 16)]
    assert sum(parameter.numel() for parameter in network.parameters()) == 313_507


@pytest.mark.parametrize("size", [(32, 40), (33, 38), (16, 24, 20)])
def test_operations_count_what_torch_counts(size):
    with torch.device("meta"):
        network = RegistrationUNet(num_dims=len(size))
        pair = torch.empty(1, 2, *size)
        counter = FlopCounterMode(display=False)
        with counter:
            velocity = network(pair)
    operations = network.operations(size)
    assert 2 * sum(operation.macs for operation in operations) == counter.get_total_flops()
    assert velocity.shape[2:] == operations[-1].size == tuple(length // 2 for length in size)


def test_training_starts_at_the_identity():
    trainable = registration()
    for value in (0.0, 1.0):
        network = trainable.materialize(trainable.build(0), {"lambda": value})
        assert network(batch()[0]).abs().max() < 1e-2


def test_loss_is_that_of_eq_2_at_the_networks_field():
    trainable, (images, masks) = registration(noise_scale=0.1), batch()
    module = moved_away(trainable)
    for value in (0.0, 0.3, 1.0):
        network = trainable.materialize(module, {"lambda": value})
        velocity = network.velocity(images)
        moved = warp((images[:, :1] + 1) / 2, resized_field(integrate(velocity), (32, 32)))
        similarity = scaled_squares(moved, (images[:, 1:] + 1) / 2, noise_scale=0.1)
        expected = (1 - value) * similarity + value * half_squared_gradient(velocity)
        loss = trainable.loss(module, images, masks, {"lambda": value}, "registration")
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_of_eq_3_weighs_the_trained_labels_alone():
    images, masks = batch()
    conditionings = ("lambda", "gamma")
    some = registration(conditionings=conditionings, trained_labels=LABELS[:1])
    module = moved_away(some)
    setting = {"lambda": 0.0, "gamma": 1.0}
    before = some.loss(module, images, masks, setting, "registration")
    others = torch.where(masks == 1, masks, 0)
    assert torch.equal(some.loss(module, images, others, setting, "registration"), before)
    every = registration(conditionings=conditionings)
    assert not torch.equal(every.loss(module, images, masks, setting, "registration"), before)
    darker = images * 0.5
    without = some.loss(module, images, masks, {"lambda": 1.0, "gamma": 1.0}, "registration")
    assert without.item() > 0  # smoothness alone
    assert some.metrics[1:3] == ("dice/trained", "dice/held_out")
    assert not torch.equal(
        some.loss(module, darker, masks, setting | {"gamma": 0.5}, "registration"),
        some.loss(module, images, masks, setting | {"gamma": 0.5}, "registration"),
    )


def test_the_window_of_correlation_is_a_conditioning():
    trainable = registration(conditionings=("lambda", "radius"), similarity="ncc")
    module, (images, masks) = moved_away(trainable), batch()
    losses = [
        trainable.loss(module, images, masks, {"lambda": 0.2, "radius": radius}, "registration")
        for radius in (1, 4)
    ]
    assert losses[0] != losses[1]
    with pytest.raises(InputError, match="radius is a window of similarity ncc, got mse"):
        registration(conditionings=("lambda", "radius"))


@pytest.mark.parametrize("shrinkage", [0.0, 0.05])
def test_overlap_has_the_slope_of_finite_differences_in_lambda(shrinkage):
    trainable, (images, masks) = registration(shrinkage=shrinkage), batch()
    module = moved_away(trainable, scale=0.15).double()
    images = images.double()

    def overlap(features):
        network = trainable.network_at(module, features)
        return trainable.overlap(network, images, masks, [0, 1, 2]).mean()

    features = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(overlap(features), features)
    step = 1e-6
    with torch.no_grad():
        difference = overlap(features + step) - overlap(features - step)
    assert slope.item() == pytest.approx((difference / (2 * step)).item(), rel=1e-3)
    assert slope.item() != 0


def test_a_shrunk_field_vanishes_at_lambda_one():
    trainable = registration(shrinkage=0.05)
    module = moved_away(trainable)
    assert trainable.materialize(module, {"lambda": 1.0})(batch()[0]).abs().max() == 0
    assert trainable.materialize(module, {"lambda": 0.5})(batch()[0]).abs().max() > 0.1


def test_evaluation_of_the_identity_is_the_overlap_before_registration():
    trainable, (images, masks) = registration(), batch()
    network = trainable.materialize(trainable.build(0), {"lambda": 0.5})
    values = trainable.evaluate(network, images, torch.stack([masks[:, 0], masks[:, 0]], dim=1))
    assert values["dice"].tolist() == [1.0, 1.0]
    assert set(values) == set(trainable.metrics)
    assert values["folded_voxels"].tolist() == [0.0, 0.0]
    assert values["displacement"].max() < 1e-2


def test_folding_is_counted():
    trainable, (images, masks) = registration(), batch()
    module = moved_away(trainable, scale=1.0)
    network = trainable.materialize(module, {"lambda": 0.5})
    assert isinstance(network, RegistrationNetwork)
    network.num_integration_steps = 0  # the velocity itself, which may fold
    values = trainable.evaluate(network, images, masks)
    assert values["folded_voxels"].max() > 0
    assert torch.allclose(values["folded_share"] * 32 * 32, values["folded_voxels"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (6, 32)}, "dataset.size: expected at least 8 along each axis"),
        ({"channels": 3}, "expected images of one channel, got 3"),
        (
            {"conditionings": ("phi",)},
            "train.prior: expected any of lambda, gamma, radius, got phi",
        ),
        ({"trained_labels": ("liver",)}, "registration.trained_labels: liver is not one of"),
    ],
)
def test_models_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        registration(**changes)


def test_a_setting_of_voxelmorph_is_a_training_parameter():
    trainable = registration("voxelmorph", {"lambda": 0.7})
    assert not len(trainable.problem.space.conditioning)
    assert trainable.setting({}) == {"lambda": 0.7}
    assert trainable.costs({}) == registration().costs({"lambda": 0.1})


def test_metrics_of_overlap_name_their_labels():
    trainable = registration(trained_labels=LABELS[1:])
    found = {name: trainable.overlapping(name) for name in trainable.metrics}
    others = ("folded_share", "folded_voxels", "velocity_gradient", "displacement")
    assert found == {
        "dice": [0, 1, 2],
        "dice/trained": [1, 2],
        "dice/held_out": [0],
        **{f"dice/{label}": [k] for k, label in enumerate(LABELS)},
        **{name: [] for name in others},
    }
