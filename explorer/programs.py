"""A network as one program, for those who run it without this package: pt2 and ONNX.

Weights and conditioning are part of the program, the spatial size is that of the training, and the
batch may be of any size. What was written is read again, run, and compared with the network.

`torch.export.load` unpickles parts of a pt2 file (constants of any kind, and whatever its reader of
plain tensors refuses), so a file that was tampered with can execute code: nothing here ever loads
one that it has not just written itself. An ONNX file holds operators and numbers alone.

Shapes: B batch, C channels, then the spatial axes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from explorer.networks import Network
from search_spaces.errors import InputError, RunError

# Largest difference to the network. Where float32 itself is off by more (logits of several hundred
# have steps of 3e-5), so many times what its rounding costs the network, by double precision.
MAX_DIFFERENCE, ROUNDINGS = 1e-5, 5
_EXAMPLE_BATCH, _CHECKED_BATCHES = 2, (1, 3)
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_NOISY_LOGGER = "torch.onnx._internal.exporter._registration"  # of operators that are not used

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProgramFormat:
    """A kind of file.

    Attributes:
        file_name: in the folder of the export.
        packages: that writing and checking it needs beside torch.
        extra: of this package, which brings them.
        write: writes a program, its input and output named, into a file.
        load: makes a function of that file, from inputs to outputs.
    """

    file_name: str
    packages: Sequence[str]
    extra: str
    write: Callable[[ExportedProgram, tuple[str, str], Path], None]
    load: Callable[[Path], Run]


def require_formats(names: Sequence[str]) -> None:
    """Refuse formats that are unknown or cannot be written here, before any work is done.

    Raises:
        InputError: naming what is known, or how to install what is missing.
    """
    for name in names:
        if name not in PROGRAM_FORMATS:
            known_names = ", ".join(["safetensors", *PROGRAM_FORMATS])
            raise InputError(f"--format {name}: unknown; known: {known_names}")
        known = PROGRAM_FORMATS[name]
        for package in known.packages:
            if find_spec(package) is None:
                raise InputError(
                    f"--format {name}: {package} is missing: pip install "
                    f"'pareto-explorer[{known.extra}]' brings what it needs"
                )


def write_program(
    name: str, network: Network, shape: Sequence[int], folder: Path, *, names: tuple[str, str]
) -> float:
    """Write a network as a program; return the largest difference of its outputs to the network's.

    Args:
        name: of the format, in `PROGRAM_FORMATS`.
        network: on the CPU.
        shape: of one input, (C, *spatial).
        folder: where the file comes to lie.
        names: of the input and the output.

    Raises:
        InputError: the network does something that the format cannot express.
        RunError: the program's outputs are others than the network's.
    """
    known = PROGRAM_FORMATS[name]
    path = folder / known.file_name
    with _quiet(), torch.no_grad():
        try:
            program = torch.export.export(
                _Program(network).eval(),
                (_example(_EXAMPLE_BATCH, shape),),
                dynamic_shapes=({0: Dim("batch", min=1)},),
                strict=False,
            )
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # names this machine's folders
            known.write(program, names, path)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"--format {name}: the network cannot be expressed in it ({reason}); leave it out"
            ) from error
        run = known.load(path)
        return max(
            _difference(name, network, run, _example(batch, shape)) for batch in _CHECKED_BATCHES
        )


def _example(batch: int, shape: Sequence[int]) -> Tensor:
    """Images (batch, *shape) in [-1, 1] that are random, and smooth as images are."""
    generator = torch.Generator().manual_seed(batch)
    channels, *size = shape
    coarse = torch.rand(batch, channels, *(-(-n // 4) for n in size), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return 2 * F.interpolate(coarse, size=tuple(size), mode=mode) - 1


def _difference(name: str, network: Network, run: Run, inputs: Tensor) -> float:
    expected = network(inputs)
    exact = copy.copy(network)
    exact.settled = {own: tensor.double() for own, tensor in network.settled.items()}
    rounding = float((exact(inputs.double()) - expected).abs().max())
    allowed = max(MAX_DIFFERENCE, ROUNDINGS * rounding)
    difference = float((run(inputs) - expected).abs().max())
    if not difference <= allowed:
        raise RunError(
            f"--format {name}: its outputs differ from the network's by {difference:.2g}, expected "
            f"at most {allowed:.2g}; leave it out"
        )
    return difference


class _Program(nn.Module):
    """The network with its weights as parameters, which a program holds by their names."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.primary = copy.deepcopy(network.primary).to_empty(device="cpu")
        self.primary.load_state_dict(network.settled, assign=True)
        self.__dict__["network"] = network  # no sub-module: it holds the same weights again

    def forward(self, inputs: Tensor) -> Tensor:
        network = copy.copy(self.__dict__["network"])
        network.settled = dict(self.primary.named_parameters())
        outputs: Tensor = network(inputs)
        return outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters say about themselves is of no use to a user."""
    logger = logging.getLogger(_NOISY_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_pt2(program: ExportedProgram, names: tuple[str, str], path: Path) -> None:
    torch.export.save(program, path)


def _load_pt2(path: Path) -> Run:
    run: Run = torch.export.load(path).module()
    return run


def _write_onnx(program: ExportedProgram, names: tuple[str, str], path: Path) -> None:
    exported = torch.onnx.export(
        program, dynamo=True, input_names=names[:1], output_names=names[1:], verbose=False
    )
    assert exported is not None
    graph: Any = exported.model.graph
    for value in (*graph.inputs, *graph.outputs):
        value.shape[0] = "batch"
    for node in graph:
        node.metadata_props.clear()
    exported.save(path)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (given.name for given in session.get_inputs())
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


PROGRAM_FORMATS: dict[str, ProgramFormat] = {
    "pt2": ProgramFormat("network.pt2", (), "", _write_pt2, _load_pt2),
    "onnx": ProgramFormat("network.onnx", _ONNX_PACKAGES, "onnx", _write_onnx, _load_onnx),
}
