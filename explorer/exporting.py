"""The hand-over: a primary network with its predicted weights, the hypernetwork left out.

A folder with `weights.safetensors` and `network.json`, which `explorer.networks.load_network` makes
a network of again and executes nothing of; the same network as a program, where one was asked for
(`explorer.programs`); and a model card.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file

from explorer.cards import CARD_FILE, CardFacts, model_card
from explorer.measurements import Columns
from explorer.models import build_trainable, dataset_source, method_of
from explorer.networks import (
    FORMAT_VERSION,
    NAMES,
    NETWORK_FILE,
    REGISTRATION_NETWORK,
    WEIGHTS_FILE,
    Network,
)
from explorer.networks import load_network as load_network
from explorer.places import Place
from explorer.points import Point
from explorer.programs import PROGRAM_FORMATS, require_formats, write_program
from explorer.queries import PointTable
from explorer.specs import ExplorationSpec
from explorer.store import read_json
from explorer.training import read_record, trained_model
from search_spaces.errors import InputError, RunError
from search_spaces.problem import Objective
from search_spaces.space import Value
from trainables.base import Trainable
from trainables.hypermorph import Registration, RegistrationNetwork
from trainables.scale_space import MaterializedNetwork, ScaleSpace

SAFETENSORS = "safetensors"


@dataclass(frozen=True)
class Export:
    """What was handed over, and where.

    Attributes:
        folder: holds `weights.safetensors`, `network.json`, the programs and the model card.
        trial_id: the seed's trial that is best on validation at this point.
        point: the point that was exported.
        differences: largest difference of each program's outputs to the network's, by format.
    """

    folder: Path
    trial_id: str
    point: Point
    differences: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as `explorer export --json` prints it."""
        formats = {SAFETENSORS: [WEIGHTS_FILE, NETWORK_FILE]}
        formats |= {name: [PROGRAM_FORMATS[name].file_name] for name in self.differences}
        paths = {name: [str(self.folder / file) for file in own] for name, own in formats.items()}
        return {
            "output": str(self.folder),
            "files": [path for own in paths.values() for path in own],
            "formats": paths,
            "differences": dict(self.differences),
            "card": str(self.folder / CARD_FILE),
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
    *,
    formats: Sequence[str] = (),
) -> Export:
    """Write the primary network at a point, of the seed that is best on validation.

    Args:
        folder: RUNS/ID.
        spec: of the exploration.
        columns: its measurements.
        objective: by which the best seed is chosen.
        point: to export; without metrics, a setting that was not measured.
        output: a new or empty folder; where something fails, it stays empty.
        formats: `pt2` or `onnx`, beside the safetensors that are always there.

    Raises:
        InputError: `output` holds something else already, weights are missing, or a format is
            unknown, cannot be written here or cannot express the network.
        RunError: `output` cannot be written, or a program's outputs differ from the network's.
    """
    formats = [name for name in dict.fromkeys(formats) if name != SAFETENSORS]
    require_formats(formats)
    trial_id = _best_trial(columns, objective, point)
    network = materialize(folder, spec, trial_id, point.conditioning)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output {output}: expected a new or empty folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=output) as scratch_dir:
            scratch = Path(scratch_dir)
            weights = {name: tensor.contiguous() for name, tensor in network.settled.items()}
            save_file(weights, scratch / WEIGHTS_FILE)
            facts = _facts(folder, spec, columns, point, trial_id, network)
            description = {
                **facts.description,
                "weights_sha256": hashlib.sha256((scratch / WEIGHTS_FILE).read_bytes()).hexdigest(),
            }
            (scratch / NETWORK_FILE).write_text(json.dumps(description, indent=2), "utf-8")
            differences = {
                name: write_program(name, network, facts.shape, scratch, names=facts.names)
                for name in formats
            }
            (scratch / CARD_FILE).write_text(model_card(facts, differences), "utf-8")
            for file in scratch.iterdir():
                file.chmod(0o644)  # safetensors writes for its owner alone
                file.replace(output / file.name)
    except (OSError, SafetensorError) as error:
        problem = getattr(error, "strerror", None) or error
        raise RunError(f"--output {output}: cannot be written ({problem})") from error
    return Export(output, trial_id, point, differences)


def _facts(
    folder: Place,
    spec: ExplorationSpec,
    columns: Columns,
    point: Point,
    trial_id: str,
    network: Network,
) -> CardFacts:
    """All that is told of the network: its description, and what its card says beside it."""
    trial = read_record(folder / "trials" / trial_id).trial
    own, tested = (_point_of(columns, point, trial.seed, split) for split in ("val", "test"))
    description = {
        "format_version": FORMAT_VERSION,
        **_architecture(spec, build_trainable(spec), network),
        "exploration_id": folder.name,
        "trial_id": trial_id,
        "method": point.method,
        "conditioning": dict(point.conditioning),
        "dataset": spec.dataset.name,
        "seed": trial.seed,
        "metrics": dict(own.metrics) if own else {},
        "test_metrics": dict(tested.metrics) if tested else {},
        "costs": dict(point.costs),
    }
    return CardFacts(
        description=description,
        names=NAMES[description.get("task", "segmentation")],
        spec=spec,
        source=dataset_source(spec),
        num_images=read_json(folder / "state.json").get("num_images"),
        learning_rate=trial.learning_rate,
        validated=own,
        tested=tested,
        mean=point,
    )


def _architecture(spec: ExplorationSpec, trainable: Trainable, network: Network) -> dict[str, Any]:
    """What the network is built from again, takes and gives."""
    assert isinstance(trainable, ScaleSpace | Registration)
    primary: Any = network.primary
    is_registration = method_of(spec, trainable.method).task == "registration"
    takes = {
        "channels": primary.in_channels,
        "size": list(trainable.model.size),
        "intensities": "float32 in [-1, 1]: 8-bit values / 127.5 - 1, or 2 x - 1 of x in [0, 1]",
    }
    told: dict[str, Any] = {"input": takes}
    told["output"] = {"labels": ["background", *trainable.model.labels]}
    if is_registration:
        output = "voxels along each axis, at which the moving image is read"
        told = {"task": "registration", "input": {**takes, "order": "moving then fixed"}}
        told["output"] = {"displacement": output}
    if isinstance(network, MaterializedNetwork):
        own: dict[str, Any] = {"architecture": spec.model.network}
        own["factors"] = list(network.factors)
    else:
        own = {
            "architecture": REGISTRATION_NETWORK,
            "damping": float(network.damping),
            "num_integration_steps": network.num_integration_steps,
        }
    return {**own, "arguments": primary.arguments, **told}


def _point_of(columns: Columns, point: Point, seed: int, split: str = "val") -> Point | None:
    """The same setting of one seed alone: the weights are that seed's, and so are the metrics.

    None where the split was not measured there.
    """
    if not (columns["split"] == split).any():
        return None
    table = PointTable.of(columns, method=point.method, split=split)
    if seed not in table.seeds:
        return None
    return PointTable.of(columns, method=point.method, split=split, seeds=(seed,)).find(
        point.conditioning
    )


def _best_trial(columns: Columns, objective: Objective, point: Point) -> str:
    """The trial of a point that is best on validation; the first of equals.

    Of a setting that was not measured, the one that is best on average over those that were.
    """
    rows = (columns["split"] == "val") & np.isin(columns["trial_id"], point.trial_ids)
    there = rows.copy()
    for name, value in point.conditioning.items():
        there &= columns[f"conditioning/{name}"] == value
    rows = there if there.any() else rows
    losses = objective.to_loss(columns[f"metric/{objective.name}"][rows])
    trials = columns["trial_id"][rows]
    means = {str(trial): losses[trials == trial].mean() for trial in dict.fromkeys(trials.tolist())}
    return min(means, key=means.__getitem__)
