"""Training on a CUDA device against training on the CPU."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.trainables.test_memory import CASES, of_steps
from tests.trainables.test_scale_space import make
from tests.trainables.test_train_loop import CONFIG, DATA, MODEL, KilledContext, KilledError
from trainables.memory import MARGIN, step_memory
from trainables.networks.architectures import NETWORKS
from trainables.scale_space import ScaleSpaceSegmentation
from trainables.train_loop import PlainContext, evaluate_setting, train

pytestmark = pytest.mark.gpu
METHODS = ("sshn", "fixed", "stochastic", "film")


@pytest.fixture(autouse=True)
def whole_float32() -> Iterator[None]:
    """Convolutions of float32 are computed in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_the_cpus(method, network):
    settled = {"phi": 0.4} if method == "fixed" else None
    trainable = make(
        method,
        settled=settled,
        network=NETWORKS[network],
        network_name=network,
        size=(32, 32),
        decoder_widths=(4, 4),
    )
    source = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 32, 32, generator=source)
    y = torch.randint(0, 3, (3, 32, 32), generator=source)
    found = {}
    for device in ("cpu", "cuda"):
        module = trainable.build(0).to(device)
        loss = trainable.loss(
            module, x.to(device), y.to(device), {"phi": 0.4}, trainable.stages[0].name
        )
        loss.backward()
        gradients = [p.grad.cpu().flatten() for p in module.parameters() if p.grad is not None]
        found[device] = loss.detach().cpu(), torch.cat(gradients)
    (loss, gradient), (own_loss, own_gradient) = found["cpu"], found["cuda"]
    torch.testing.assert_close(own_loss, loss, rtol=1e-5, atol=1e-6)
    assert len(own_gradient) == len(gradient) > 100
    assert (own_gradient - gradient).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_training_is_the_cpus_and_goes_on_after_an_interruption(method, tmp_path):
    trainable = ScaleSpaceSegmentation(method, MODEL, {"phi": 0.4} if method == "fixed" else None)
    results = {
        device: train(trainable, DATA, CONFIG, PlainContext(tmp_path / device, device=device))
        for device in ("cpu", "cuda")
    }
    with pytest.raises(KilledError):
        train(trainable, DATA, CONFIG, KilledContext(tmp_path / "killed", 5, device="cuda"))
    resumed = train(trainable, DATA, CONFIG, PlainContext(tmp_path / "killed", device="cuda"))
    for result in (results["cuda"], resumed):
        losses = [row["train_loss"] for row in result.history]
        expected = [row["train_loss"] for row in results["cpu"].history]
        np.testing.assert_allclose(losses, expected, rtol=1e-2)
        assert all(tensor.device.type == "cpu" for tensor in result.best.values())
    assert 0 < results["cuda"].wall_s == pytest.approx(results["cuda"].train_s)


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.5])
def test_a_materialised_network_is_evaluated_as_on_the_cpu(phi):
    trainable = ScaleSpaceSegmentation("sshn", MODEL)
    values = [
        evaluate_setting(trainable, trainable.build(0).to(device), DATA["val"], {"phi": phi})
        for device in ("cpu", "cuda")
    ]
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        np.testing.assert_allclose(values[1][name], value, atol=0.02)  # of 64 pixels


@pytest.mark.parametrize(("network", "method", "phi"), CASES)
def test_a_step_takes_what_is_predicted(network, method, phi):
    trainable = of_steps(network, method)
    predicted = step_memory(trainable, 8, {"phi": phi})
    module = trainable.build(0).to("cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    x = torch.randn(8, 1, 192, 192, device="cuda").contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 4, (8, 192, 192), device="cuda")
    for stage in trainable.stages:
        trainable.loss(module, x, y, {"phi": phi}, stage.name).backward()
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.8 < taken / predicted.features < MARGIN, taken / predicted.features
