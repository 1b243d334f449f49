"""The residual U-Net: its blocks, where they lie, and what they cost."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.networks.residual_unet import ResidualUNet


def network(**changes):
    return ResidualUNet(**{"in_channels": 2, "out_channels": 3, "width": 4, **changes})


def test_paper_s_network_has_29_blocks_on_the_path_and_three_shortcuts():
    names = list(network(width=16).blocks)
    shortcuts = [name for name in names if name.startswith("shortcut")]
    assert (len(names), shortcuts) == (32, ["shortcut0", "shortcut1", "shortcut2"])
    assert (names[:2], names[-2:]) == (["init_0", "init_1"], ["up0_3", "out"])


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_multiply_adds_are_those_that_torch_counts(num_dims, num_levels):
    size = (16, 24, 8)[:num_dims]
    one = network(num_dims=num_dims, num_levels=num_levels).eval()
    with FlopCounterMode(display=False) as counter:
        logits = one(torch.zeros(1, 2, *size))
    assert logits.shape == (1, 3, *size)
    assert 2 * sum(operation.macs for operation in one.operations(size)) == (
        counter.get_total_flops()
    )


def test_every_block_is_run_once_at_the_size_that_it_says():
    one, seen = network(), {}

    def run(name, x):
        seen[name] = tuple(one.blocks[name](x).shape[2:])
        return one.blocks[name](x)

    one.route(torch.zeros(1, 2, 16, 32), run, lambda a, b: a + b)
    assert list(seen) == list(one.blocks)
    assert seen == {operation.name: operation.size for operation in one.operations((16, 32))}


def test_every_block_matters():
    torch.manual_seed(0)
    one = network().eval()
    images = torch.randn(1, 2, 16, 16)
    before = one(images)
    for name, block in one.blocks.items():
        kept = {key: value.clone() for key, value in block.state_dict().items()}
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.5)
        assert not torch.allclose(one(images), before), name
        block.load_state_dict(kept)
    assert torch.equal(one(images), before)


@pytest.mark.parametrize("changes", [{"num_dims": 1}, {"num_levels": 0}])
def test_what_is_no_network_is_refused(changes):
    with pytest.raises(ValueError, match="2 or 3 axes and at least one halving"):
        network(**changes)
