"""Policies: decisions, their gradients, and what the network costs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.base import Draws
from trainables.policies import PolicyNetwork, decide


def policy(**changes):
    generator = torch.Generator().manual_seed(0)
    given = {"in_channels": 2, "num_blocks": 5, "widths": (4, 6, 8), "generator": generator}
    return PolicyNetwork(**{**given, **changes})


def test_decisions_are_ones_and_zeros_and_without_noise_the_larger_logit():
    logits = torch.tensor([[[2.0, 1.0], [0.3, 0.4], [-1.0, -1.5]]])
    assert decide(logits, temperature=0.1).tolist() == [[1, 0, 1]]


def test_gradient_is_that_of_the_softmax_at_the_temperature():
    logits = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * decide(logits, temperature=0.7)).sum(), logits)
    soft = (logits / 0.7).softmax(-1)[..., 0]
    (expected,) = torch.autograd.grad((weights * soft).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_noise_decides_as_often_as_the_softmax_says():
    """The Gumbel trick: the larger perturbed logit is a draw from the softmax of the logits."""
    n = 200_000
    logits = torch.tensor([0.4, -0.7]).expand(n, 1, 2)
    uniform = Draws((0, 0), n).uniform(1, 2)
    share = decide(logits, temperature=0.1, uniform=uniform).mean().item()
    expected = torch.tensor([0.4, -0.7]).softmax(0)[0].item()
    assert share == pytest.approx(expected, abs=5 * (expected * (1 - expected) / n) ** 0.5)


def test_logit_that_is_no_number_is_not_decided_silently():
    logits = torch.tensor([[[torch.nan, 0.0]]])
    assert torch.isnan(decide(logits, temperature=0.1)).all()


def test_draws_of_two_workers_are_those_of_one():
    whole = Draws((3, 7), 5).uniform(2)
    parts = [Draws((3, 7), 5, rank, 2).uniform(2) for rank in (0, 1)]
    assert torch.equal(whole[0::2], parts[0])
    assert torch.equal(whole[1::2], parts[1])
    assert not torch.equal(whole, Draws((3, 8), 5).uniform(2))
    assert 0 < whole.min() <= whole.max() < 1


@pytest.mark.parametrize(("num_dims", "size"), [(2, (12, 9)), (3, (8, 6, 5))])
def test_multiply_adds_are_those_that_torch_counts(num_dims, size):
    one = policy(num_dims=num_dims).eval()
    with FlopCounterMode(display=False) as counter:
        assert one(torch.zeros(1, 2, *size)).shape == (1, 5, 2)
    assert 2 * sum(operation.macs for operation in one.operations(size)) == (
        counter.get_total_flops()
    )


@pytest.mark.parametrize("conditioner", ["film", "hyper"])
def test_conditioning_moves_the_logits(conditioner):
    one = policy(conditioner=conditioner).eval()
    with torch.no_grad():
        one.modulation.weight.normal_(generator=torch.Generator().manual_seed(1))
    images = torch.randn(3, 2, 12, 12)
    low, high = (one(images, torch.tensor([z])) for z in (0.0, 1.0))
    assert not torch.allclose(low, high)
    (gradient,) = torch.autograd.grad(high.sum(), one.modulation.weight)
    assert gradient.abs().sum() > 0


def test_monotone_price_freezes_more_blocks_the_larger_it_is():
    one = policy(conditioner="monotone", ends=(0.2, 0.6)).eval()
    images = torch.randn(6, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gaps = [one(images, torch.tensor([z])) for z in (0.0, 0.2, 0.4, 0.6, 1.0)]
    gaps = torch.stack([logits[..., 0] - logits[..., 1] for logits in gaps])
    assert (gaps.diff(dim=0) > 0).all()
    torch.testing.assert_close(gaps[3] - gaps[2], gaps[2] - gaps[1])
