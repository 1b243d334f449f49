"""The registry of methods: name to constructor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from search_spaces.space import Config
from trainables.base import Trainable
from trainables.scale_space import ScaleSpaceSegmentation, SegmentationModel

Constructor = Callable[[SegmentationModel, Config | None], Trainable]

TRAINABLES: dict[str, Constructor] = {
    name: partial(ScaleSpaceSegmentation, name) for name in ("sshn", "fixed", "stochastic", "film")
}
