"""The primary networks that a specification can name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from trainables.networks.pyramids import FPN
from trainables.networks.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "unet": UNet,
    "residual_unet": partial(UNet, block="residual"),
    "senet": partial(UNet, block="squeeze"),
    "fpn": FPN,
    "pspnet": partial(UNet, decoder_block="pooling"),
}
