"""What a forward pass costs, from the sizes of its tensors alone: nothing is run.

Multiply-adds (MACs) are counted for convolutions and matrix products; the scale-space papers call
them FLOPs, while `flops` here is 2 MACs. Resizing, activations and additions count zero, as in
torch's own counter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BYTES_PER_ELEMENT = 4
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
