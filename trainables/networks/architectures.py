"""The primary networks that a specification can name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trainables.networks.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet}
