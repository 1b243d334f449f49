"""The memory of a training step, predicted and taken."""

import json
import os
import subprocess
import sys

import pytest

from tests.trainables.test_scale_space import make
from trainables.memory import MARGIN, step_memory, whole_bytes
from trainables.networks.architectures import NETWORKS

# a step of training in a process of its own: prints how far the peak of its memory rises
STEP = """
import json, sys, torch
from trainables.networks.architectures import NETWORKS
from trainables.scale_space import ScaleSpaceSegmentation, SegmentationModel
network, method, phi, batch_size = json.loads(sys.argv[1])
model = SegmentationModel(
    in_channels=1, labels=("a", "b", "c"), size=(192, 192), encoder_widths=(24,) * 4,
    decoder_widths=(24,) * 3, hidden_sizes=(10, 16), network=NETWORKS[network],
)
trainable = ScaleSpaceSegmentation(method, model)
torch.set_num_threads(1)
module = trainable.build(0)
optimizer = torch.optim.Adam(module.parameters(), fused=True)
def step(n, size):
    x = torch.randn(n, 1, *size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 4, (n, *size))
    for stage in trainable.stages:
        loss = trainable.loss(module, x, y, {"phi": phi}, stage.name)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
def told(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))
step(1, (32, 32))  # loads what is loaded once
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = told("VmRSS")
step(batch_size, (192, 192))
print(told("VmHWM") - before)
"""


CASES = [("unet", "sshn", 0.5), ("unet", "film", 1.0), ("residual_unet", "stochastic", 0.5)]


def of_steps(network, method):
    """The trainable whose steps STEP makes."""
    return make(
        method,
        network=NETWORKS[network],
        network_name=network,
        labels=("a", "b", "c"),
        size=(192, 192),
        encoder_widths=(24,) * 4,
        decoder_widths=(24,) * 3,
        hidden_sizes=(10, 16),
    )


@pytest.mark.parametrize(("network", "method", "phi"), CASES)
@pytest.mark.timeout(120)
def test_a_step_takes_what_is_predicted_up_to_the_memory_of_convolutions(network, method, phi):
    predicted = step_memory(of_steps(network, method), 8, {"phi": phi})
    command = [sys.executable, "-c", STEP, json.dumps([network, method, phi, 8])]
    # tensors in pages of their own: what the heap keeps of freed ones differs from run to run
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert 0.9 < int(done.stdout) / predicted.features < MARGIN


def test_features_grow_with_the_batch_and_the_factor_and_parameters_do_not():
    trainable = make(size=(64, 64))
    small, large, wide = (
        step_memory(trainable, n, {"phi": phi}) for n, phi in ((2, 0.5), (4, 0.5), (2, 1.0))
    )
    assert small.parameters == large.parameters == wide.parameters
    predicted = 4 * trainable.num_parameters  # of the network, which every step predicts again
    assert large.features - predicted == pytest.approx(2 * (small.features - predicted), rel=0.05)
    assert wide.features > 1.5 * small.features


def test_the_machine_has_memory():
    assert whole_bytes(on_gpu=False) > 1e8
