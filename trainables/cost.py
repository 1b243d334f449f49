"""What a forward pass costs, from the sizes of its tensors alone: nothing is run.

Multiply-adds (MACs) are counted for convolutions and matrix products; the scale-space papers call
them FLOPs, while `flops` here is 2 MACs. Resizing, activations and additions count zero, as in
torch's own counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

BYTES_PER_ELEMENT = 4
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Rounding = Literal["round", "ceil"]
Size = tuple[int, ...]


@dataclass(frozen=True)
class Operation:
    """One step of a forward pass for a batch of one.

    Attributes:
        name: the module's path, or what happens.
        macs: multiply-adds.
        live_elements: numbers that must be in memory while it runs: its input, its output, and
            every earlier tensor that a later step reads.
        size: spatial size of its output.
    """

    name: str
    macs: int
    live_elements: int
    size: Size


class Ledger:
    """Operations of a forward pass on one image, as they are written down one after the other.

    Attributes:
        operations: so far.
        held: numbers of earlier tensors that a later step reads, beside those of the step itself.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.held = 0

    def convolve(self, name: str, before: int, after: int, size: Size, *, kernel: int) -> None:
        """A convolution between features at one size; `kernel` is the number of its taps."""
        area = math.prod(size)
        self.note(name, (before + after) * area, size, macs=kernel * before * after * area)

    def resize(self, name: str, channels: int, before: Size, after: Size) -> None:
        """Features brought from one size to another."""
        self.note(name, channels * (math.prod(before) + math.prod(after)), after)

    def note(self, name: str, elements: int, size: Size, *, macs: int = 0) -> None:
        """Anything else, with the numbers that it reads and writes."""
        self.operations.append(Operation(name, macs, self.held + elements, size))


def costs(operations: Sequence[Operation], *, num_parameters: int) -> dict[str, float]:
    """Return macs, flops (2 macs), parameters, activation_bytes (peak, float32, batch of one)."""
    macs = sum(operation.macs for operation in operations)
    live_elements = max(operation.live_elements for operation in operations)
    return {
        "macs": float(macs),
        "flops": 2.0 * macs,
        "parameters": float(num_parameters),
        "activation_bytes": float(BYTES_PER_ELEMENT * live_elements),
    }


def rescaled_size(size: Sequence[int], factor: float, *, rounding: Rounding = "round") -> Size:
    """Spatial size after rescaling by `factor`; every axis keeps at least one element.

    `round` is to the nearest integer, halves to even (the papers' section 4.4); `ceil` is the
    rule written in their section 3.
    """
    if rounding == "round":
        return tuple(max(1, round(length * factor)) for length in size)
    # 100 * 0.07 is 7.000000000000001: without the inner rounding it would become 8
    return tuple(max(1, math.ceil(round(length * factor, 9))) for length in size)


def traced(module: nn.Module, image_shape: Sequence[int]) -> list[Operation]:
    """The convolutions and linear layers of a module without storage, as it runs through them.

    Nothing is computed: the tensors have sizes alone. What a layer needs in memory is taken to be
    its input, its output and the image, which is right for modules that go from layer to layer.

    Args:
        module: on the device `meta`.
        image_shape: (C, *spatial).
    """
    found: list[Operation] = []
    num_pixels = math.prod(image_shape)

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            taken = sum(x.numel() for x in inputs)
            own = getattr(layer, "macs", None) or output[0, 0].numel() * _weights(layer)
            live = taken + output.numel() + (num_pixels if taken != num_pixels else 0)
            found.append(Operation(name, own, live, tuple(output.shape[2:])))

        return hook

    handles = [
        layer.register_forward_hook(note(name))
        for name, layer in module.named_modules()
        if isinstance(layer, LAYERS) or hasattr(layer, "macs")
    ]
    try:
        module.eval()(torch.empty(1, *image_shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _weights(layer: nn.Module) -> int:
    """Multiply-adds for one position of the output: a use of every weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.numel()
