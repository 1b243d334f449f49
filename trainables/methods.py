"""The registry of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from search_spaces.space import Config
from trainables.base import Trainable
from trainables.scale_space import ScaleSpaceSegmentation, SegmentationModel

Constructor = Callable[[SegmentationModel, Config | None], Trainable]


@dataclass(frozen=True)
class Method:
    """A way to reach many settings.

    Attributes:
        construct: makes the trainable of a network, and of a setting unless it is amortised.
        is_amortised: one training serves every conditioning; otherwise each takes its own.
    """

    construct: Constructor
    is_amortised: bool = True


TRAINABLES: dict[str, Method] = {
    "sshn": Method(partial(ScaleSpaceSegmentation, "sshn")),
    "fixed": Method(partial(ScaleSpaceSegmentation, "fixed"), is_amortised=False),
    "stochastic": Method(partial(ScaleSpaceSegmentation, "stochastic")),
    "film": Method(partial(ScaleSpaceSegmentation, "film")),
}
