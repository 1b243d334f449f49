"""The hand-over: a primary network with its predicted weights, the hypernetwork left out.

A folder with `weights.safetensors` and `network.json`; loading it executes nothing of its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from explorer.extensions import Extensions, find
from explorer.measurements import Columns
from explorer.models import build_trainable
from explorer.places import Place
from explorer.points import Point
from explorer.queries import PointTable
from explorer.specs import ExplorationSpec
from explorer.store import read_json
from explorer.training import trained_model
from search_spaces.errors import InputError, RunError, unknown_name
from search_spaces.problem import Objective
from search_spaces.space import Value
from trainables.base import Trainable
from trainables.hypermorph import Registration, RegistrationNetwork
from trainables.networks.architectures import NETWORKS
from trainables.networks.voxelmorph import RegistrationUNet
from trainables.scale_space import MaterializedNetwork, ScaleSpaceSegmentation
from trainables.train_loop import load_tensors, read_tensors

FORMAT_VERSION = 1
WEIGHTS_FILE, NETWORK_FILE = "weights.safetensors", "network.json"
REGISTRATION_NETWORK = "voxelmorph"

Network: TypeAlias = MaterializedNetwork | RegistrationNetwork


@dataclass(frozen=True)
class Export:
    """What was handed over, and where.

    Attributes:
        folder: holds `weights.safetensors` and `network.json`.
        trial_id: the seed's trial that is best on validation at this point.
        point: the point that was exported.
    """

    folder: Path
    trial_id: str
    point: Point

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `explorer export --json` prints it."""
        return {
            "output": str(self.folder),
            "files": [str(self.folder / name) for name in (WEIGHTS_FILE, NETWORK_FILE)],
            "trial_id": self.trial_id,
            "point": self.point.to_json(),
        }


def materialize(
    folder: Place, spec: ExplorationSpec, trial_id: str, conditioning: Mapping[str, Value]
) -> Network:
    """The primary network of a trial at a conditioning.

    Raises:
        InputError: the trial's weights are missing or damaged.
    """
    trainable, module = trained_model(folder / "trials" / trial_id, spec)
    names = trainable.problem.space.conditioning.names
    network = trainable.materialize(module, {name: conditioning[name] for name in names})
    if not isinstance(network, MaterializedNetwork | RegistrationNetwork):
        raise InputError(f"method {trainable.method}: its networks cannot be handed over")
    return network


def export(
    folder: Place,
    spec: ExplorationSpec,
    columns: Columns,
    objective: Objective,
    point: Point,
    output: Path,
) -> Export:
    """Write the primary network at a point, of the seed that is best on validation.

    Args:
        folder: RUNS/ID.
        spec: of the exploration.
        columns: its measurements.
        objective: by which the best seed is chosen.
        point: to export.
        output: a new or empty folder.

    Raises:
        InputError: `output` holds something else already, or weights are missing.
        RunError: `output` cannot be written.
    """
    trial_id = _best_trial(columns, objective, point)
    seed = int(columns["seed"][columns["trial_id"] == trial_id][0])
    own = _point_of(columns, point, seed)
    network = materialize(folder, spec, trial_id, point.conditioning)
    weights = {name: tensor.detach().contiguous() for name, tensor in network.settled.items()}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output}: expected a new or empty folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        save_file(weights, output / WEIGHTS_FILE)
        description = {
            "format_version": FORMAT_VERSION,
            **_architecture(spec, build_trainable(spec), network),
            "exploration_id": folder.name,
            "trial_id": trial_id,
            "method": point.method,
            "conditioning": dict(point.conditioning),
            "dataset": spec.dataset.name,
            "seed": seed,
            "metrics": dict(own.metrics),
            "test_metrics": dict(own.test_metrics),
            "costs": dict(point.costs),
            "weights_sha256": hashlib.sha256((output / WEIGHTS_FILE).read_bytes()).hexdigest(),
        }
        (output / NETWORK_FILE).write_text(json.dumps(description, indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        problem = getattr(error, "strerror", None) or error
        raise RunError(f"--output {output}: cannot be written ({problem})") from error
    return Export(output, trial_id, point)


def _architecture(spec: ExplorationSpec, trainable: Trainable, network: Network) -> dict[str, Any]:
    """What the network is built from again, takes and gives."""
    assert isinstance(trainable, ScaleSpaceSegmentation | Registration)
    primary: Any = network.primary
    takes = {
        "channels": primary.in_channels,
        "size": list(trainable.model.size),
        "intensities": "float32 in [-1, 1]: 8-bit values / 127.5 - 1, or 2 x - 1 of x in [0, 1]",
    }
    if isinstance(network, MaterializedNetwork):
        return {
            "architecture": spec.model.network,
            "arguments": primary.arguments,
            "factors": list(network.factors),
            "input": takes,
            "output": {"labels": ["background", *trainable.model.labels]},
        }
    return {
        "task": "registration",
        "architecture": REGISTRATION_NETWORK,
        "arguments": primary.arguments,
        "damping": float(network.damping),
        "num_integration_steps": network.num_integration_steps,
        "input": {**takes, "order": "moving then fixed"},
        "output": {"displacement": "voxels along each axis, at which the moving image is read"},
    }


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
    description = read_json(folder / NETWORK_FILE)
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


Loader: TypeAlias = tuple[
    Callable[..., nn.Module], Callable[[nn.Module, dict[str, Tensor]], Network]
]


def _segmentation(description: Mapping[str, Any], extensions: Extensions) -> Loader:
    """What builds the architecture, and what makes the network of it and its weights."""
    factors = tuple(float(factor) for factor in description["factors"])
    return (
        find("networks", description["architecture"], NETWORKS, extensions),
        lambda primary, weights: MaterializedNetwork(primary, weights, factors),
    )


def _registration(description: Mapping[str, Any], extensions: Extensions) -> Loader:
    if description["architecture"] != REGISTRATION_NETWORK:
        raise unknown_name("network", description["architecture"], [REGISTRATION_NETWORK])
    damping, num_steps = float(description["damping"]), int(description["num_integration_steps"])
    return RegistrationUNet, lambda primary, weights: RegistrationNetwork(
        primary,
        {name: tensor.detach() for name, tensor in weights.items()},
        damping=damping,
        num_integration_steps=num_steps,
    )


LOADERS: dict[str, Callable[[Mapping[str, Any], Extensions], Loader]] = {
    "segmentation": _segmentation,
    "registration": _registration,
}


def _point_of(columns: Columns, point: Point, seed: int) -> Point:
    """The same setting of one seed alone: the weights are that seed's, and so are the metrics."""
    table = PointTable.of(columns, method=point.method, seeds=(seed,))
    points = (table.point(index) for index in range(len(table)))
    return next(one for one in points if one.conditioning == point.conditioning)


def _best_trial(columns: Columns, objective: Objective, point: Point) -> str:
    """The trial of a point that is best on validation; the first of equals."""
    rows = (columns["split"] == "val") & np.isin(columns["trial_id"], point.trial_ids)
    for name, value in point.conditioning.items():
        rows &= columns[f"conditioning/{name}"] == value
    losses = objective.to_loss(columns[f"metric/{objective.name}"][rows])
    return str(columns["trial_id"][rows][losses.argmin()])
