"""What a primary network must offer to be conditioned, costed and handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from trainables.cost import Operation, Size


class PrimaryNetwork(Protocol):
    """A torch module whose every change of resolution follows a rescaling factor.

    It is constructed with the keywords `in_channels`, `out_channels`, `encoder_widths`,
    `decoder_widths`, `num_dims`, `rounding` and the spec's `model.options`. All its state are
    parameters, so that a function of the conditioning can take their place. A keyword that changes
    neither names nor shapes of them may be chosen after training: the spec's `model.choices`.

    Attributes:
        arguments: keywords that construct the same network again, JSON values only.
        in_channels: C of the input.
        num_rescalings: factors that a forward pass takes.

    A network with an attribute `is_supervised_at_every_level` that is true takes a third argument;
    where it is true, `forward` returns a list of logits of any sizes, whose mean loss is trained.
    """

    @property
    def arguments(self) -> dict[str, Any]: ...

    @property
    def in_channels(self) -> int: ...

    @property
    def num_rescalings(self) -> int: ...

    def forward(self, x: Tensor, factors: Sequence[float]) -> Tensor:
        """Map images (B, C, *spatial) to logits (B, out_channels, *spatial)."""
        ...

    def operations(self, size: Size, factors: Sequence[float]) -> list[Operation]:
        """What a forward pass does on one image of a spatial size, from the sizes alone."""
        ...
