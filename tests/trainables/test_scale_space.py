import math
import random

import pytest
import torch

from search_spaces.errors import InputError
from trainables.networks.unet import UNet
from trainables.scale_space import CONDITIONED_NETWORKS, ScaleSpaceSegmentation, SegmentationModel

MODEL = SegmentationModel(
    in_channels=1,
    labels=("nucleus", "cytoplasm"),
    size=(12, 10),
    encoder_widths=(3, 4, 5),
    decoder_widths=(4, 3),
    hidden_sizes=(4, 6),
)


MODES = {"interpolation": ("linear", "nearest")}


def make(method="sshn", settled=None, **changes):
    return ScaleSpaceSegmentation(method, SegmentationModel(**(vars(MODEL) | changes)), settled)


def images(count=2, size=(12, 10)):
    return torch.randn(count, 1, *size, generator=torch.Generator().manual_seed(3))


def randomised(trainable):
    """A module of the trainable whose predictions depend on the setting."""
    module, source = trainable.build(0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=source))
    return module


@torch.no_grad()
@pytest.mark.parametrize("method", CONDITIONED_NETWORKS)
@pytest.mark.parametrize("num_factors", [1, 2])
@pytest.mark.parametrize("choices", [{}, MODES])
def test_materialised_network_equals_the_conditioned_path_bit_for_bit(method, num_factors, choices):
    trainable = make(method, num_factors=num_factors, network_choices=choices)
    module, rng = randomised(trainable), random.Random(0)
    for _ in range(10):
        units = [[rng.random() for _ in trainable.space.names]]
        (setting,) = trainable.space.decode(units)
        z = trainable.encoded(setting, torch.device("cpu"))
        structure = trainable.structure(setting)
        expected = module(z, images(), trainable.factors(setting), structure=structure)
        assert torch.equal(trainable.materialize(module, setting)(images()), expected)


# Options of the network as conditionings


@torch.no_grad()
def test_choice_settles_the_network_and_its_weights():
    trainable = make(network_choices=MODES)
    module = randomised(trainable)
    linear, nearest = (
        trainable.materialize(module, {"phi": 0.4, "interpolation": mode})
        for mode in MODES["interpolation"]
    )
    assert (linear.primary.interpolation, nearest.primary.interpolation) == ("linear", "nearest")
    assert all(not torch.equal(linear.settled[n], t) for n, t in nearest.settled.items())
    weights = dict(nearest.settled)
    alone = UNet(**nearest.primary.arguments)
    alone.load_state_dict(weights)
    torch.testing.assert_close(alone(images(), (0.4, 0.4)), nearest(images()), rtol=0, atol=0)


def test_choice_is_one_hot_after_the_factors():
    trainable = make(network_choices=MODES)
    for mode, expected in (("linear", [0.25, 1, 0]), ("nearest", [0.25, 0, 1])):
        setting = {"interpolation": mode, "phi": 0.25}
        assert trainable.encoded(setting, torch.device("cpu")).tolist() == expected
        assert trainable.factors(setting) == (0.25, 0.25)


def test_loss_runs_the_chosen_network():
    trainable = make("stochastic", network_choices=MODES)
    module, masks = randomised(trainable), torch.zeros(2, 12, 10, dtype=torch.long)
    for mode in MODES["interpolation"]:
        fixed = make("fixed", {"phi": 0.4}, network_options={"interpolation": mode})
        fresh = fixed.build(1)
        fresh.load_state_dict(module.state_dict())
        setting = {"phi": 0.4, "interpolation": mode}
        losses = [
            one.loss(network, images(), masks, asked, "cross_entropy").item()
            for one, network, asked in ((trainable, module, setting), (fixed, fresh, {}))
        ]
        assert losses[0] == losses[1]


def test_settled_choice_is_a_training_parameter():
    trainable = make("fixed", {"phi": 0.4, "interpolation": "nearest"}, network_choices=MODES)
    assert len(trainable.problem.space.conditioning) == 0
    assert trainable.structure({}).interpolation == "nearest"
    with pytest.raises(InputError, match="expected values for phi, interpolation, got phi"):
        make("fixed", {"phi": 0.4}, network_choices=MODES)


class Widening(UNet):
    def __init__(self, *, size="small", **arguments):
        super().__init__(**arguments)
        if size == "large":
            self.head = torch.nn.Conv2d(3, 3, 3)


def test_choice_that_changes_the_weights_is_refused():
    with pytest.raises(InputError, match=r"model\.choices: .*; size change them"):
        make(network=Widening, network_choices={"size": ("small", "large")})


@torch.no_grad()
@pytest.mark.parametrize("method", ["sshn", "film"])
def test_weights_of_a_conditioned_method_depend_on_the_setting(method):
    trainable = make(method)
    module = randomised(trainable)
    low, high = (trainable.materialize(module, {"phi": phi}).settled for phi in (0.1, 0.9))
    assert all(not torch.equal(low[name], high[name]) for name in low)


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "centre"),
    [({}, (0.5,)), ({"prior": ((0.0, 0.5),)}, (0.25,)), ({"num_factors": 2}, (0.5, 0.5))],
)
def test_weights_at_the_centre_of_the_model_are_those_without_a_setting(changes, centre):
    trainable = make("sshn", **changes)
    module = randomised(trainable)
    setting = dict(zip(trainable.space.names, centre, strict=True))
    weights = trainable.materialize(module, setting).settled.values()
    flat = torch.cat([tensor.flatten() for tensor in weights])
    expected = module.hypernetwork.bias.detach()
    torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["fixed", "stochastic"])
def test_plain_baselines_have_the_parameters_of_the_primary_alone(method):
    trainable = make(method)
    count = sum(parameter.numel() for parameter in trainable.build(0).parameters())
    assert count == trainable.num_parameters == trainable.costs({"phi": 0.5})["parameters"]


def test_materialised_network_holds_no_hypernetwork():
    trainable = make()
    network = trainable.materialize(trainable.build(0), {"phi": 0.5})
    assert sum(tensor.numel() for tensor in network.settled.values()) == trainable.num_parameters
    assert not any(tensor.requires_grad for tensor in network.settled.values())
    assert isinstance(network.primary, UNet)


def test_fixed_factors_are_training_parameters():
    trainable = make("fixed", {"phi": 0.25})
    assert len(trainable.problem.space.conditioning) == 0
    assert trainable.factors({}) == (0.25, 0.25)
    assert trainable.costs({}) == make("sshn").costs({"phi": 0.25})


def test_one_factor_drives_every_level_and_several_one_each():
    assert make().factors({"phi": 0.3}) == (0.3, 0.3)
    assert make(num_factors=2).factors({"phi_1": 0.2, "phi_0": 0.7}) == (0.7, 0.2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({}, "^expected values for phi, got none$"),
        ({"phi": 1.1}, r"^phi must be in \[0, 1\], got 1.1$"),
        ({"phi": 0.1, "psi": 0}, "^expected values for phi, got phi, psi$"),
    ],
)
def test_wrong_setting_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        make().factors(setting)


def test_settled_factor_outside_its_range_is_refused():
    with pytest.raises(InputError, match=r"phi must be in \[0, 1\], got 2"):
        make("fixed", {"phi": 2})


def test_number_of_factors_must_fit_the_network():
    with pytest.raises(InputError, match=r"model.num_factors must be 1 or .*steps, 2; got 3"):
        make(num_factors=3)


def test_encoded_setting_is_in_column_order():
    encoded = make(num_factors=2).encoded({"phi_1": 0.25, "phi_0": 0.5}, torch.device("cpu"))
    assert encoded.tolist() == [0.5, 0.25]
    assert encoded.dtype == torch.float32


@pytest.mark.parametrize(
    ("dice_share", "expected"),
    [
        (0.0, [("cross_entropy", 1.0)]),
        (0.25, [("cross_entropy", 0.75), ("soft_dice", 0.25)]),
        (1.0, [("soft_dice", 1.0)]),
    ],
)
def test_stages_are_cross_entropy_then_soft_dice(dice_share, expected):
    stages = make(dice_share=dice_share).stages
    assert [(stage.name, stage.share) for stage in stages] == expected


def test_loss_follows_the_stage():
    trainable = make("stochastic")
    module = trainable.build(0)
    with torch.no_grad():
        module.primary.head.weight.zero_()  # undecided: every class has probability 1/3
    masks = torch.ones(2, 12, 10, dtype=torch.long)
    losses = {
        stage: trainable.loss(module, images(), masks, {"phi": 0.5}, stage).item()
        for stage in ("cross_entropy", "soft_dice")
    }
    assert losses["cross_entropy"] == pytest.approx(math.log(3), rel=1e-5)
    overlaps = ((2 * 120 / 3 + 1) / (120 + 120 / 3 + 1), 1 / (120 / 3 + 1))
    assert losses["soft_dice"] == pytest.approx(1 - sum(overlaps) / 2, rel=1e-5)


def test_evaluate_gives_dice_per_image_and_label():
    trainable = make("stochastic")
    masks = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [1, 0]]])
    answer = torch.tensor([[[0, 1], [2, 1]], [[1, 1], [1, 0]]])
    logits = torch.nn.functional.one_hot(answer, 3).movedim(-1, 1).float()
    values = trainable.evaluate(torch.nn.Identity(), logits, masks)
    assert list(values) == ["dice", "dice/nucleus", "dice/cytoplasm"]
    assert values["dice/nucleus"].tolist() == [2 / 3, 1.0]
    assert values["dice/cytoplasm"][0] == 2 / 3
    assert values["dice/cytoplasm"][1].isnan()
    assert values["dice"].tolist() == [2 / 3, 1.0]


@torch.no_grad()
@pytest.mark.parametrize("phi", [0.0, 0.4, 1.0])
def test_sizes_are_those_of_a_forward_pass(phi):
    trainable, seen = make(), {}
    primary = UNet(**trainable.skeleton.arguments)
    for name, module in primary.named_modules():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: list(output.shape[2:])})
        )
    primary(images(), trainable.factors({"phi": phi}))
    sizes = trainable.sizes({"phi": phi})
    assert sizes == {name: seen[name] for name in sizes}
    assert list(sizes) == ["encoder.0", "encoder.1", "encoder.2", "decoder.0", "decoder.1", "head"]


def test_network_of_volumes_has_three_axes():
    trainable = make("sshn", size=(6, 5, 4))
    network = trainable.materialize(trainable.build(0), {"phi": 0.5})
    assert network(images(1, (6, 5, 4))).shape == (1, 3, 6, 5, 4)


def test_weights_are_decided_by_the_seed():
    first, again, other = (make().build(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# How an amortised network may be trained


def test_distillation_is_the_sandwich_of_the_drawn_and_the_largest_factor():
    model = {"prior": ((0.0, 0.5),), "dice_share": 0.0}
    plain, taught = make(**model), make(distillation=0.25, **model)
    module, x = randomised(plain), images()
    masks = torch.randint(0, 3, (2, 12, 10), generator=torch.Generator().manual_seed(4))
    own, top = ({"phi": 0.2}, {"phi": 0.5})
    losses = [plain.loss(module, x, masks, at, "cross_entropy") for at in (own, top)]
    logits, teacher = (plain.materialize(module, at)(x) for at in (own, top))
    agreement = -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()
    expected = (0.75 * losses[0] + 0.25 * agreement + losses[1]) / 2
    found = taught.loss(module, x, masks, own, "cross_entropy")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_largest_factor_learns_nothing_from_the_drawn_one():
    taught = make(distillation=1.0, prior=((0.0, 0.5),), dice_share=0.0)
    alone = make(prior=((0.0, 0.5),), dice_share=0.0)
    module, x = randomised(taught), images()
    masks = torch.zeros(2, 12, 10, dtype=torch.long)
    top = {"phi": 0.5}
    taught.loss(module, x, masks, top, "cross_entropy").backward()
    found = module.hypernetwork.bias.grad.clone()
    module.zero_grad()
    alone.loss(module, x, masks, top, "cross_entropy").backward()
    # its agreement with itself has no gradient: half of its own loss is left
    assert torch.allclose(found, module.hypernetwork.bias.grad / 2, atol=1e-6)


def test_training_parameters_leave_the_conditioning_open():
    trainable = make(settled={"prior_width": 0.1, "draws": "common", "distillation": 0.5})
    assert trainable.problem.space.conditioning.names == ("phi",)
    assert trainable.distillation == 0.5
    assert "prior_width" in repr(trainable)
    assert make("fixed", {"phi": 0.3}, distillation=0.5).distillation == 0
    with pytest.raises(InputError, match="prior_width must be in"):
        make(settled={"prior_width": 0.7})
