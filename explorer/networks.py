"""A network that was handed over, rebuilt: a folder with `network.json` and `weights.safetensors`.

Loading executes nothing of the folder's content. This module needs torch, numpy and safetensors,
and no other part of what the service needs: a model in MLflow's registry loads its network here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from explorer.extensions import Extensions, find
from search_spaces.errors import InputError, unknown_name
from trainables.hypermorph import RegistrationNetwork
from trainables.networks.architectures import NETWORKS
from trainables.networks.voxelmorph import RegistrationUNet
from trainables.scale_space import MaterializedNetwork
from trainables.train_loop import load_tensors, read_tensors

FORMAT_VERSION = 1
WEIGHTS_FILE, NETWORK_FILE = "weights.safetensors", "network.json"
REGISTRATION_NETWORK = "voxelmorph"
# what a network of each task takes and gives
NAMES = {"segmentation": ("image", "logits"), "registration": ("pair", "displacement")}

Network: TypeAlias = MaterializedNetwork | RegistrationNetwork
Loader: TypeAlias = tuple[
    Callable[..., nn.Module], Callable[[nn.Module, dict[str, Tensor]], Network]
]


def load_network(folder: str | Path, *, extensions: Extensions | None = None) -> Network:
    """Rebuild an exported network: maps images (B, C, *spatial) in [-1, 1] to logits.

    Of a registration: maps pairs (B, 2 C, *spatial), moving then fixed, to displacements in voxels.

    Args:
        folder: of the export.
        extensions: has the architecture, where it is neither shipped nor installed.

    Raises:
        InputError: missing or damaged files, another format, or weights of other names or shapes.
    """
    folder = Path(folder)
    description = _described(folder / NETWORK_FILE)
    try:
        if description["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{folder / NETWORK_FILE}: expected format_version {FORMAT_VERSION}, got "
                f"{description['format_version']}; export the network again"
            )
        task = description.get("task", "segmentation")
        if task not in LOADERS:
            raise unknown_name("task", task, LOADERS)
        build, network_of = LOADERS[task](description, extensions or Extensions())
        primary = build(**description["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / NETWORK_FILE}: not a description of a network ({error}); export it again"
        ) from error
    path = folder / WEIGHTS_FILE
    load_tensors(primary, read_tensors(path), str(path))
    weights: dict[str, Tensor] = dict(primary.named_parameters())
    with torch.device("meta"):
        skeleton = build(**description["arguments"])
    return network_of(skeleton, weights)


def _described(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: expected the folder of an exported network"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); export the network again") from error


def _rescaling(description: Mapping[str, Any], extensions: Extensions) -> Loader:
    """What builds the architecture, and what makes the network of it and its weights."""
    build = find("networks", description["architecture"], NETWORKS, extensions)
    factors = tuple(float(factor) for factor in description["factors"])
    return build, lambda primary, weights: MaterializedNetwork(primary, weights, factors)


def _registration(description: Mapping[str, Any], extensions: Extensions) -> Loader:
    if description["architecture"] != REGISTRATION_NETWORK:
        return _rescaling(description, extensions)
    damping, num_steps = float(description["damping"]), int(description["num_integration_steps"])
    return RegistrationUNet, lambda primary, weights: RegistrationNetwork(
        primary,
        {name: tensor.detach() for name, tensor in weights.items()},
        damping=damping,
        num_integration_steps=num_steps,
    )


LOADERS: dict[str, Callable[[Mapping[str, Any], Extensions], Loader]] = {
    "segmentation": _rescaling,
    "registration": _registration,
}
