"""Networks as programs: what other runtimes compute is what the network computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from explorer.exporting import load_network
from explorer.programs import PROGRAM_FORMATS, require_formats, write_program
from explorer.splits import load_data, samples_of
from search_spaces.errors import InputError, RunError
from trainables.hypermorph import Registration, RegistrationModel
from trainables.scale_space import MaterializedNetwork

pytestmark = pytest.mark.timeout(60)  # exporting takes seconds


def run_pt2(path: Path, inputs: Tensor) -> Tensor:
    outputs: Tensor = torch.export.load(path).module()(inputs)
    return outputs


def run_onnx(path: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return torch.from_numpy(outputs)


@pytest.mark.parametrize("phi", [0.0, 0.23, 0.5])
def test_programs_give_the_logits_of_the_network(trained: Any, tmp_path: Path, phi: float) -> None:
    assert_programs_equal(trained("demo"), {"phi": phi}, tmp_path / "out")


@pytest.mark.parametrize("weight", [0.0, 0.4, 0.9])
def test_programs_give_the_displacements_of_the_network(
    registered: Any, tmp_path: Path, weight: float
) -> None:
    displacement = assert_programs_equal(registered, {"lambda": weight}, tmp_path / "out")
    assert displacement.abs().max() > 0.02


def assert_programs_equal(exploration: Any, setting: dict[str, float], output: Path) -> Tensor:
    """Both programs equal the network to 1e-5, on images, in a batch unlike the example's."""
    exported = exploration.export(exploration.at(setting), output, formats=["pt2", "onnx"])
    samples = samples_of(exploration.spec, load_data(exploration.spec))["val"].arrays
    inputs = torch.from_numpy(samples.batch(slice(0, 4))[0])
    assert len(inputs) == 4
    with torch.inference_mode():
        expected: Tensor = load_network(output)(inputs)
    for run, name in ((run_pt2, "network.pt2"), (run_onnx, "network.onnx")):
        for batch in (4, 1):
            own = run(output / name, inputs[:batch])
            torch.testing.assert_close(own, expected[:batch], rtol=0, atol=1e-5)
    assert set(exported.differences) == {"pt2", "onnx"}
    assert max(exported.differences.values()) <= 1e-5
    return expected


def test_programs_register_volumes(tmp_path: Path) -> None:
    model = RegistrationModel(
        channels=1,
        labels=("a",),
        size=(16, 12, 17),
        encoder_widths=(4, 4),
        decoder_widths=(4, 4),
        final_widths=(4,),
        num_integration_steps=3,
    )
    trainable = Registration("hypermorph", model)
    network = trainable.materialize(trainable.build(0), {"lambda": 0.5})
    network.settled["flow.weight"] = network.settled["flow.weight"] * 1e5
    inputs = 2 * torch.rand(3, 2, *model.size, generator=torch.Generator().manual_seed(1)) - 1
    expected = network(inputs).detach()
    assert expected.abs().max() > 1
    for name, run in (("pt2", run_pt2), ("onnx", run_onnx)):
        write_program(name, network, (2, *model.size), tmp_path, names=("pair", "displacement"))
        own = run(tmp_path / PROGRAM_FORMATS[name].file_name, inputs)
        torch.testing.assert_close(own.detach(), expected, rtol=0, atol=1e-5)


def test_onnx_names_its_ends_and_nothing_of_this_machine(trained: Any, tmp_path: Path) -> None:
    exploration = trained("demo")
    exploration.export(exploration.at({"phi": 0.3}), tmp_path / "out", formats=["onnx", "pt2"])
    session = onnxruntime.InferenceSession(tmp_path / "out" / "network.onnx")
    given, result = session.get_inputs()[0], session.get_outputs()[0]
    assert (given.name, given.shape) == ("image", ["batch", 1, 16, 16])
    assert (result.name, result.shape) == ("logits", ["batch", 5, 16, 16])
    for name in ("network.onnx", "network.pt2"):
        assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "out" / name).read_bytes()


class Odd(nn.Module):
    """A network that is another one when it is exported, or looks at its images."""

    def __init__(self, oddity: str) -> None:
        super().__init__()
        self.oddity = oddity
        self.conv = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor, factors: Any) -> Tensor:
        if self.oddity == "looks" and x.mean() > 0:
            x = -x
        if self.oddity == "changes" and torch.compiler.is_exporting():
            x = x + 1e-3
        outputs: Tensor = self.conv(x)
        return outputs


@pytest.mark.parametrize(
    ("oddity", "error", "message"),
    [
        ("looks", InputError, "--format pt2: the network cannot be expressed in it"),
        ("changes", RunError, r"--format pt2: its outputs differ from the network's by 0\.00"),
    ],
)
def test_program_that_is_not_the_network_is_refused(
    tmp_path: Path, oddity: str, error: type[Exception], message: str
) -> None:
    odd = Odd(oddity)
    nn.init.constant_(odd.conv.weight, 1.0)
    network = MaterializedNetwork(odd, dict(odd.named_parameters()), ())
    with pytest.raises(error, match=message) as raised:
        write_program("pt2", network, (1, 8, 8), tmp_path, names=("image", "logits"))
    assert "\n" not in str(raised.value)


def test_formats_are_refused_before_anything_is_written(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exploration = trained("demo")
    point = exploration.at({"phi": 0.3})
    with pytest.raises(InputError, match="--format h5: unknown; known: safetensors, pt2, onnx"):
        exploration.export(point, tmp_path / "out", formats=["pt2", "h5"])
    lacking = replace(PROGRAM_FORMATS["onnx"], packages=("onnx", "not_installed"))
    monkeypatch.setitem(PROGRAM_FORMATS, "onnx", lacking)
    with pytest.raises(
        InputError, match=r"not_installed is missing: pip install 'pareto-explorer\[onnx\]'"
    ):
        exploration.export(point, tmp_path / "out", formats=["onnx"])
    assert not (tmp_path / "out").exists()
    require_formats(["pt2"])
