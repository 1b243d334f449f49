"""What shipped explorations cost, against the numbers that the papers print."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from explorer.models import build_trainable
from explorer.specs import load_spec
from trainables.networks.unet import UNet

# Multiply-adds of the papers' networks at a factor, in 1e9, as many digits as are known:
# Gonzalez Ortiz et al., Scale-Space Hypernetworks and Flexible Feature Scaling (OASIS, Pets).
GIGA_MACS = {
    "sshn-oasis": {
        0.0: "1.166",
        0.15: "1.199",
        0.2: "1.224",
        0.25: "1.260",
        0.3: "1.306",
        0.4: "1.436",
        0.5: "1.633",
        1.0: "5.98",
    },
    "sshn-pets": {0.25: "0.265", 0.3: "0.313", 0.4: "0.524", 0.5: "1.077"},
    "sshn-cub200": {0.25: "0.265", 0.3: "0.313", 0.4: "0.524", 0.5: "1.077"},
}
CASES = [(name, phi) for name, printed in GIGA_MACS.items() for phi in printed]
# of the cost at phi 0.5, the share that a smaller factor saves, in percent
SAVINGS = [
    ("sshn-oasis", 0.25, 22.8),
    ("sshn-oasis", 0.15, 26.6),
    ("sshn-pets", 0.4, 51.3),
    ("sshn-pets", 0.3, 71.0),
    ("sshn-pets", 0.25, 75.4),
]


def macs(name, **factors):
    return build_trainable(load_spec(name)).costs(factors)["macs"]


@pytest.mark.parametrize(("name", "phi"), CASES)
def test_macs_are_the_papers_to_the_printed_digit(name, phi):
    printed = GIGA_MACS[name][phi]
    digits = len(printed.partition(".")[2])
    assert f"{macs(name, phi=phi) / 1e9:.{digits}f}" == printed


@pytest.mark.parametrize(("name", "phi", "percent"), SAVINGS)
def test_savings_are_those_that_the_papers_claim(name, phi, percent):
    saving = 100 * (1 - macs(name, phi=phi) / macs(name, phi=0.5))
    assert round(saving, 1) == percent


def test_half_the_factor_costs_a_quarter_on_pets():
    assert round(macs("sshn-pets", phi=0.5) / macs("sshn-pets", phi=0.25), 2) == 4.07


@torch.no_grad()
@pytest.mark.parametrize("name", GIGA_MACS)
@pytest.mark.parametrize("overrides", [(), ("model.num_factors=4", "model.rounding=ceil")])
def test_costs_are_what_torch_counts_at_random_factors(name, overrides):
    trainable, rng = build_trainable(load_spec(name, overrides)), random.Random(0)
    with torch.device("meta"):
        network = UNet(**trainable.skeleton.arguments)
    x = torch.empty(1, network.in_channels, *trainable.model.size, device="meta")
    for _ in range(20):
        setting = {parameter: rng.random() for parameter in trainable.problem.space.names}
        costs = trainable.costs(setting)
        with FlopCounterMode(display=False) as counter:
            network(x, trainable.factors(setting))
        assert costs["flops"] == 2 * costs["macs"] == counter.get_total_flops()
        assert costs["parameters"] == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", GIGA_MACS)
def test_baselines_cost_what_the_conditioned_model_costs(name):
    spec = load_spec(name)
    expected = build_trainable(spec).costs({"phi": 0.3})
    assert build_trainable(spec, "fixed", {"phi": 0.3}).costs({}) == expected
    for method in ("stochastic", "film"):
        assert build_trainable(spec, method).costs({"phi": 0.3}) == expected


def test_the_registration_network_in_3d_has_the_papers_parameters():
    trainable = build_trainable(load_spec("hypermorph-oasis3d"))
    costs = [trainable.costs({"lambda": value}) for value in (0.0, 0.4, 1.0)]
    assert costs[0]["parameters"] == 313_507
    assert costs[0] == costs[1] == costs[2]
