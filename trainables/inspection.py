"""Looking into conditioned networks: predicted weights, features, and weights at other settings.

Source: Gonzalez Ortiz, Guttag, Dalca, "Scale-Space Hypernetworks for Efficient Biomedical
Imaging", sections 5.2 and D.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search_spaces.space import Config
from trainables.base import Arrays
from trainables.hypernetwork import ConditionedNetwork
from trainables.scale_space import MaterializedNetwork, ScaleSpace
from trainables.train_loop import evaluate_network

Floats = NDArray[np.float32]
_STAGE = re.compile(r"^\w+\.\d+$")  # what the networks call their blocks


@torch.no_grad()
def predicted_weights(
    trainable: ScaleSpace, module: nn.Module, settings: Sequence[Config]
) -> dict[str, Floats]:
    """Every tensor of the primary network, by name, at n settings: (n, *shape)."""
    assert isinstance(module, ConditionedNetwork)
    device = next(module.parameters()).device
    found = [module.weights(trainable.encoded(own, device)) for own in settings]
    return {name: torch.stack([own[name] for own in found]).cpu().numpy() for name in found[0]}


def coefficients_of_variation(weights: Floats) -> NDArray[np.float64]:
    """Standard deviation over n settings, over the size of the mean, of each number of (n, ...).

    NaN where the mean is zero.
    """
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    sizes = np.abs(flat.mean(axis=0))
    shares: NDArray[np.float64] = np.divide(
        flat.std(axis=0), sizes, out=np.full(len(sizes), np.nan), where=sizes > 0
    )
    return shares


@torch.inference_mode()
def feature_maps(network: MaterializedNetwork, image: Floats) -> dict[str, Floats]:
    """Features (C, *spatial) after every block, in the order of the network, of (C, *spatial)."""
    found: dict[str, Floats] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            found[name] = output[0].float().cpu().numpy()

        return hook

    blocks = [(n, one) for n, one in network.primary.named_modules() if _STAGE.match(n)]
    handles = [one.register_forward_hook(keep(name)) for name, one in blocks]
    try:
        network(torch.from_numpy(image)[None])
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.inference_mode()
def transferred(
    trainable: ScaleSpace,
    module: nn.Module,
    *,
    weights_at: Config,
    run_at: Sequence[Config],
    data: Arrays,
) -> list[dict[str, NDArray[np.float64]]]:
    """Values (n,) of the images at every setting of `run_at`, with the weights of one setting.

    Args:
        trainable: of the module; a conditioning that it settled may be given otherwise here.
        module: trained.
        weights_at: whose weights.
        run_at: whose rescaling factors.
        data: n images.
    """
    assert isinstance(module, ConditionedNetwork)
    device = next(module.parameters()).device
    weights = module.weights(trainable.encoded(weights_at, device))
    networks = (
        MaterializedNetwork(trainable.structure(own), weights, trainable.factors(own))
        for own in run_at
    )
    return [evaluate_network(trainable, own, data, device) for own in networks]
