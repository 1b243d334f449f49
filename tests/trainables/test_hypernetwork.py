import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainables.hypernetwork import (
    ENCODINGS,
    NEGATIVE_SLOPE,
    ConditionedNetwork,
    FilmConditionedNetwork,
    HyperConditionedNetwork,
    Hypernetwork,
    complement,
    fourier,
    initialise_primary,
    kaiming_,
)
from trainables.networks.unet import UNet

GAIN = math.sqrt(2 / (1 + NEGATIVE_SLOPE**2))
INITIALISATIONS = ("residual", "kaiming", "kaiming_fan_out", "variance")
SHAPES = {
    "wide.weight": torch.Size((64, 32, 3, 3)),
    "wide.bias": torch.Size((64,)),
    "narrow.weight": torch.Size((40, 4, 3, 3)),
    "narrow.bias": torch.Size((40,)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_hypernetwork(
    initialisation="residual", seed=0, hidden_sizes=(10, 100), activation="leaky_relu"
):
    return Hypernetwork(
        SHAPES,
        reference=torch.tensor([0.5, 0.5]),
        hidden_sizes=hidden_sizes,
        initialisation=initialisation,
        activation=activation,
        generator=generator(seed),
    )


def make_primary(num_dims=2):
    primary = UNet(
        in_channels=1,
        out_channels=3,
        encoder_widths=(4, 5, 6),
        decoder_widths=(5, 4),
        num_dims=num_dims,
    )
    initialise_primary(primary, generator=generator())
    return primary


def randomise(module, seed=7):
    """Give every parameter values that no initialisation would."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))


def std_is(tensor, expected):
    """Whether a sample's standard deviation is within four standard errors of the expected one."""
    return abs(tensor.std().item() / expected - 1) < 4 / math.sqrt(2 * tensor.numel())


# --- encodings


def test_complement_appends_one_minus_every_value():
    assert complement(torch.tensor([0.25, 1.0])).tolist() == [0.25, 1.0, 0.75, 0.0]


def test_plain_encoding_changes_nothing():
    z = torch.tensor([0.1, 0.9])
    assert torch.equal(ENCODINGS["plain"](z), z)


def test_fourier_has_sines_and_cosines_of_whole_half_turns():
    z = 0.3
    angles = [math.pi * z, 2 * math.pi * z, 4 * math.pi * z]
    expected = torch.tensor([z, *map(math.sin, angles), *map(math.cos, angles)])
    torch.testing.assert_close(fourier(torch.tensor([z])), expected, rtol=1e-5, atol=1e-6)


# --- hypernetwork


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "relu_tanh"])
def test_prediction_equals_the_layers_written_out(initialisation, activation):
    hyper = make_hypernetwork(initialisation, hidden_sizes=(3, 8, 5), activation=activation)
    randomise(hyper)

    def features(*x):
        x = torch.tensor(x)
        for number, layer in enumerate(hyper.hidden, start=1):
            x = layer.weight @ x + layer.bias
            if activation == "relu_tanh" and number == len(hyper.hidden):
                return x.tanh()
            x = F.leaky_relu(x, NEGATIVE_SLOPE) if activation == "leaky_relu" else x.relu()
        return x

    x = features(0.2, 0.8)
    if initialisation == "residual":
        x = (x - features(0.5, 0.5)) / 5
    flat = hyper.bias + hyper.weight @ x
    predicted, start = hyper(torch.tensor([0.2, 0.8])), 0
    assert {name: tensor.shape for name, tensor in predicted.items()} == SHAPES
    for name, shape in SHAPES.items():
        expected = flat[start : start + shape.numel()].view(shape)
        torch.testing.assert_close(predicted[name], expected, rtol=1e-5, atol=1e-6)
        start += shape.numel()
    assert start == len(flat)


def test_residual_prediction_at_the_reference_is_the_bias():
    hyper = make_hypernetwork("residual")
    randomise(hyper)
    flat = torch.cat([t.detach().flatten() for t in hyper(hyper.reference).values()])
    torch.testing.assert_close(flat, hyper.bias.detach(), rtol=1e-5, atol=1e-6)


def test_hidden_layers_have_the_papers_sizes_and_kaiming_weights():
    hyper = make_hypernetwork()
    assert [tuple(layer.weight.shape) for layer in hyper.hidden] == [(10, 2), (100, 10)]
    assert std_is(hyper.hidden[1].weight, GAIN / math.sqrt(10))
    assert all(not layer.bias.any() for layer in hyper.hidden)


def test_residual_start_is_an_ordinary_kaiming_network_at_every_setting():
    hyper = make_hypernetwork("residual")
    assert not hyper.weight.any()
    predictions = [hyper(torch.tensor([phi, 1 - phi])) for phi in (0.0, 0.3, 1.0)]
    for name, tensor in predictions[0].items():
        assert all(torch.equal(tensor, other[name]) for other in predictions[1:])
    assert std_is(predictions[0]["wide.weight"], GAIN / math.sqrt(32 * 9))
    assert std_is(predictions[0]["narrow.weight"], GAIN / math.sqrt(4 * 9))
    assert not predictions[0]["wide.bias"].any()
    assert not predictions[0]["narrow.bias"].any()


def test_kaiming_last_layer_is_a_linear_layer_per_tensor_with_zero_biases():
    hyper = make_hypernetwork("kaiming")
    assert not hyper.bias.any()
    for group in hyper.weight.split(hyper.numels):
        assert std_is(group, GAIN / math.sqrt(100))


def test_kaiming_fan_out_scales_each_tensor_by_its_own_size():
    hyper = make_hypernetwork("kaiming_fan_out")
    assert not hyper.bias.any()
    for group, shape in zip(hyper.weight.split(hyper.numels), SHAPES.values(), strict=True):
        assert std_is(group, GAIN / math.sqrt(shape.numel()))


def test_variance_start_predicts_kaiming_spread_at_the_centre():
    hyper = make_hypernetwork("variance")
    predicted = hyper(torch.tensor([0.5, 0.5]))
    assert std_is(predicted["wide.weight"], GAIN / math.sqrt(32 * 9))
    assert std_is(predicted["narrow.weight"], GAIN / math.sqrt(4 * 9))
    assert not predicted["wide.bias"].any()


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_generator_decides_the_start(initialisation):
    first, again, other = (
        list(make_hypernetwork(initialisation, seed).parameters()) for seed in (0, 0, 1)
    )
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize("initialisation", INITIALISATIONS)
def test_gradients_reach_every_parameter_within_two_steps(initialisation):
    network = HyperConditionedNetwork(
        make_primary(),
        centre=torch.tensor([0.5]),
        initialisation=initialisation,
        generator=generator(),
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    x = torch.randn(2, 1, 8, 8, generator=generator(1))
    reached = []
    for _ in range(2):
        optimizer.zero_grad()
        for phi in (0.0, 1.0):  # a unit's bias matters where the reference is on its other side
            network(torch.tensor([phi]), x, (0.5, 0.5)).square().mean().backward()
        reached.append({n for n, p in network.named_parameters() if p.grad.any()})
        optimizer.step()
    hidden = {n for n, _ in network.named_parameters() if ".hidden." in n}
    everything = {n for n, _ in network.named_parameters()}
    # W = 0 hides the hidden layers from the first gradient
    assert reached[0] == (everything - hidden if initialisation == "residual" else everything)
    assert reached[1] == everything


# --- conditioned networks


def test_conditioned_network_runs_its_own_weights_at_every_setting():
    primary = make_primary()
    network = ConditionedNetwork(primary)
    x = torch.randn(2, 1, 8, 8, generator=generator(1))
    assert torch.equal(network(torch.tensor([0.9]), x, (0.4, 0.4)), primary(x, (0.4, 0.4)))
    assert network.weights(torch.tensor([0.1])).keys() == dict(primary.named_parameters()).keys()


def test_hyper_conditioned_network_owns_the_hypernetwork_alone():
    primary = make_primary()
    shapes = {name: tensor.shape for name, tensor in primary.named_parameters()}
    centre = torch.tensor([0.5, 0.25])
    network = HyperConditionedNetwork(primary, centre=centre, generator=generator())
    assert all(name.startswith("hypernetwork.") for name in network.state_dict())
    assert network.hypernetwork.reference.tolist() == [0.5, 0.25, 0.5, 0.75]
    z = torch.tensor([0.2, 0.7])
    assert {name: tensor.shape for name, tensor in network.weights(z).items()} == shapes


def test_output_of_a_hyper_network_is_the_primary_with_predicted_weights():
    network = HyperConditionedNetwork(
        make_primary(), centre=torch.tensor([0.5]), generator=generator()
    )
    randomise(network)
    z, x = torch.tensor([0.35]), torch.randn(2, 1, 9, 7, generator=generator(1))
    ordinary = make_primary()
    ordinary.load_state_dict(network.hypernetwork(torch.tensor([0.35, 0.65])))
    expected = ordinary(x, (0.35, 0.35))
    torch.testing.assert_close(network(z, x, (0.35, 0.35)), expected, rtol=1e-5, atol=1e-6)


def test_weights_are_predicted_in_full_precision_under_autocast():
    network = HyperConditionedNetwork(
        make_primary(), centre=torch.tensor([0.5]), generator=generator()
    )
    randomise(network)
    z, seen = torch.tensor([0.4]), []
    network.hypernetwork.register_forward_hook(lambda *args: seen.append(args[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(z, torch.ones(1, 1, 8, 8), (0.5, 0.5))
    assert output.dtype == torch.bfloat16
    expected = network.weights(z)
    assert all(torch.equal(seen[0][name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("num_dims", [2, 3])
def test_folded_film_equals_modulation_after_every_convolution(num_dims):
    primary = make_primary(num_dims)
    network = FilmConditionedNetwork(primary, centre=torch.tensor([0.5]), generator=generator())
    randomise(network.modulation)
    for block in (*primary.encoder, *primary.decoder):
        randomise(nn.ParameterList([block.conv0.bias, block.conv1.bias]))
    ordinary, modulation = make_primary(num_dims), network.modulation(torch.tensor([0.6, 0.4]))
    ordinary.load_state_dict(primary.state_dict())
    for name, module in ordinary.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            shape = (1, -1, *[1] * num_dims)
            gamma = 1 + modulation[f"gamma.{name}"].view(shape)
            beta = modulation[f"beta.{name}"].view(shape)
            module.register_forward_hook(lambda _, i, out, g=gamma, b=beta: g * out + b)
    x = torch.randn(2, 1, *(8, 6, 5)[:num_dims], generator=generator(1))
    folded = network(torch.tensor([0.6]), x, (0.6, 0.6))
    expected = ordinary(x, (0.6, 0.6))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(folded, expected, rtol=1e-5, atol=1e-6)


def test_film_modulates_every_convolution_and_starts_as_the_identity():
    primary = make_primary()
    network = FilmConditionedNetwork(primary, centre=torch.tensor([0.5]), generator=generator())
    convolutions = {n for n, m in primary.named_modules() if isinstance(m, nn.Conv2d)}
    assert set(network.convolutions) == convolutions
    weights = network.weights(torch.tensor([0.3]))
    assert all(torch.equal(weights[n], p) for n, p in primary.named_parameters())


# --- initialisation of primary networks


@pytest.mark.parametrize(("fan_out", "fan"), [(False, 30 * 9), (True, 50 * 9)])
def test_kaiming_values_have_the_variance_of_he_et_al(fan_out, fan):
    tensor = kaiming_(torch.empty(50, 30, 3, 3), generator=generator(), fan_out=fan_out)
    assert std_is(tensor, GAIN / math.sqrt(fan))


def test_initialised_primary_has_kaiming_weights_and_zero_biases():
    primary = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Conv2d(64, 32, 3))
    initialise_primary(primary, generator=generator())
    assert std_is(primary[0].weight, GAIN / math.sqrt(8 * 9))
    assert std_is(primary[1].weight, GAIN / math.sqrt(64 * 9))
    assert not primary[0].bias.any()
    assert not primary[1].bias.any()
