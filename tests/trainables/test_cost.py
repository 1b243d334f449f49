import random
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from trainables.cost import Operation, costs, rescaled_size
from trainables.networks.architectures import NETWORKS
from trainables.networks.unet import UNet

VARIANTS = NETWORKS | {
    f"{name}, no shortcuts": partial(NETWORKS[name], shortcuts=False) for name in ("unet", "pspnet")
}


def make_network(name, num_dims, rounding):
    with torch.device("meta"):
        return VARIANTS[name](
            in_channels=2,
            out_channels=4,
            encoder_widths=(3, 5, 5),
            decoder_widths=(6, 6) if name == "fpn" else (6, 2),
            num_dims=num_dims,
            rounding=rounding,
        )


class LiveElements(TorchDispatchMode):
    """Records which storages each operation reads and writes, for a count by last use."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {self._key(weight) for weight in weights}
        self.steps, self.sizes, self.kept = [], {}, []

    def _key(self, tensor):
        return tensor.untyped_storage()._cdata

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        flat = torch.utils._pytree.tree_leaves((args, kwargs, output))
        tensors = [t for t in flat if isinstance(t, torch.Tensor)]
        self.kept += tensors  # a freed storage's key could be given to another one
        keys = {self._key(t) for t in tensors} - self.weights
        self.sizes |= {self._key(t): t.untyped_storage().nbytes() // 4 for t in tensors}
        self.steps.append(keys)
        return output

    def peak(self):
        """Largest sum over what a step uses and what was made before it and is read after it."""
        first, last = {}, {}
        for index, keys in enumerate(self.steps):
            for key in keys:
                first.setdefault(key, index)
                last[key] = index
        return max(
            sum(self.sizes[key] for key in first if first[key] <= index <= last[key])
            for index in range(len(self.steps))
        )


def random_cases(count):
    rng = random.Random(0)
    for index in range(count):
        num_dims = 3 if index % 4 == 3 else 2
        size = tuple(rng.randint(1, 12 if num_dims == 3 else 70) for _ in range(num_dims))
        factors = (rng.random(), rng.random()) if index % 2 else (rng.random(),) * 2
        yield pytest.param(
            num_dims, size, factors, ("round", "ceil")[index % 3 == 0], id=str(index)
        )


EXTREMES = [
    pytest.param(2, (33, 20), (0.0, 0.0), "round", id="zero"),
    pytest.param(2, (33, 20), (1.0, 1.0), "round", id="one"),
    pytest.param(3, (6, 5, 1), (1.0, 0.0), "ceil", id="mixed"),
]


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("num_dims", "size", "factors", "rounding"), [*random_cases(20), *EXTREMES]
)
def test_macs_are_half_of_what_torch_counts(name, num_dims, size, factors, rounding):
    network = make_network(name, num_dims, rounding)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 2, *size, device="meta"), factors)
    operations = network.operations(size, factors)
    assert 2 * sum(operation.macs for operation in operations) == counter.get_total_flops()


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("num_dims", "size", "factors", "rounding"), [*random_cases(12), *EXTREMES]
)
def test_live_elements_equal_the_liveness_of_a_recorded_pass(
    name, num_dims, size, factors, rounding
):
    network = make_network(name, num_dims, rounding)
    with LiveElements(list(network.parameters())) as recorded:
        network(torch.empty(1, 2, *size, device="meta"), factors)
    operations = network.operations(size, factors)
    assert max(operation.live_elements for operation in operations) == recorded.peak()


def test_operations_of_a_small_network_match_a_hand_count():
    unet = UNet(in_channels=1, out_channels=2, encoder_widths=(3, 4), decoder_widths=(5,))
    # 8 x 6 = 48 pixels above, 4 x 3 = 12 below
    assert [(o.name, o.macs, o.live_elements, o.size) for o in unet.operations((8, 6), (0.5,))] == [
        ("encoder.0.conv0", 9 * 1 * 3 * 48, (1 + 3) * 48, (8, 6)),
        ("encoder.0.conv1", 9 * 3 * 3 * 48, (3 + 3) * 48, (8, 6)),
        ("encoder.1.rescale", 0, 3 * 48 + 3 * 12, (4, 3)),
        ("encoder.1.conv0", 9 * 3 * 4 * 12, 3 * 48 + (3 + 4) * 12, (4, 3)),
        ("encoder.1.conv1", 9 * 4 * 4 * 12, 3 * 48 + (4 + 4) * 12, (4, 3)),
        ("decoder.0.rescale", 0, 3 * 48 + 4 * 12 + 4 * 48, (8, 6)),
        ("decoder.0.concatenate", 0, 3 * 48 + 4 * 48 + 7 * 48, (8, 6)),
        ("decoder.0.conv0", 9 * 7 * 5 * 48, (7 + 5) * 48, (8, 6)),
        ("decoder.0.conv1", 9 * 5 * 5 * 48, (5 + 5) * 48, (8, 6)),
        ("head", 5 * 2 * 48, (5 + 2) * 48, (8, 6)),
    ]


def test_costs_sum_macs_and_take_the_peak_of_memory():
    operations = [Operation("a", 10, 7, (1, 1)), Operation("b", 5, 9, (1, 1))]
    assert costs(operations, num_parameters=3) == {
        "macs": 15.0,
        "flops": 30.0,
        "parameters": 3.0,
        "activation_bytes": 36.0,
    }


@pytest.mark.parametrize(
    ("size", "factor", "rounding", "expected"),
    [
        ((160, 192), 0.5, "round", (80, 96)),
        ((5, 7), 0.5, "round", (2, 4)),  # halves to even
        ((5, 7), 0.5, "ceil", (3, 4)),
        ((10, 3), 0.0, "round", (1, 1)),
        ((10, 3), 0.0, "ceil", (1, 1)),
        ((10, 3, 1), 1.0, "round", (10, 3, 1)),
        ((10, 3, 1), 1.0, "ceil", (10, 3, 1)),
        ((1,), 0.2, "round", (1,)),
        ((4,), 0.26, "ceil", (2,)),
    ],
)
def test_rescaled_size_rounds_as_asked_and_keeps_one_element(size, factor, rounding, expected):
    assert rescaled_size(size, factor, rounding=rounding) == expected


def test_ceil_ignores_the_rounding_error_of_the_product():
    assert 100 * 0.07 > 7
    for length in range(1, 200):
        for hundredth in range(101):
            expected = max(1, -(-length * hundredth // 100))
            size = rescaled_size((length,), hundredth / 100, rounding="ceil")
            assert size == (expected,)
