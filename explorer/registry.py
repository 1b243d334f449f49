"""MLflow's registry: an exported network as a version that `mlflow models serve` can run.

The model is one of MLflow's "models from code": the file `explorer/served.py`, the packages that it
needs of this one, and the exported folder with safetensors. It is logged beside the exploration's
parent run, which is sent first where MLflow does not have it yet.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from explorer.tracking import Tracker, tag_name, tracking_uri

# isort: split
# after tracking, which sets what mlflow reads when it is first imported
import numpy as np
from mlflow import pyfunc
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from explorer.cards import CARD_FILE
from explorer.exporting import Export
from explorer.networks import NETWORK_FILE
from explorer.places import Place
from explorer.projecting import uid_of
from explorer.quantities import format_quantity
from explorer.queries import Bound
from explorer.sending import EXPERIMENT, send
from explorer.store import read_json
from search_spaces.errors import InputError, RunError
from search_spaces.space import Value

MAX_DESCRIPTION = 5000  # characters, that MLflow's databases hold
MAX_ALIAS = 255
_REQUIREMENTS = ("mlflow", "numpy", "safetensors", "torch")
_CODE_DIRS = ("explorer", "search_spaces", "trainables")
_ROOT = Path(__file__).parents[1]
_ARTIFACT = "network"  # as in `explorer.served`, which is a script


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        name: of the registered model.
        version: of it.
        alias: that leads to this version.
    """

    name: str
    version: str
    alias: str

    @property
    def uri(self) -> str:
        """As MLflow's commands take it."""
        return f"models:/{self.name}@{self.alias}"

    def to_json(self) -> dict[str, str]:
        """Plain data, as `explorer export --json` prints it."""
        return {
            "name": self.name,
            "version": self.version,
            "alias": self.alias,
            "uri": self.uri,
        }


def alias_of(bounds: Sequence[Bound], conditioning: Mapping[str, Value]) -> str:
    """The budget, or without one the setting, as MLflow allows it: macs-600M, phi-0_5."""
    parts = [
        f"{bound.name}{'-min' if bound.kind == 'min' else ''}-"
        f"{format_quantity(bound.value, digits=12)}"
        for bound in bounds
    ] or [
        f"{name}-{value:.6g}" if isinstance(value, float) else f"{name}-{value}"
        for name, value in conditioning.items()
    ]
    return re.sub(r"[^\w-]", "_", "__".join(parts), flags=re.ASCII)[:MAX_ALIAS]


def require_name(name: str) -> None:
    """Refuse what MLflow takes for no name of a model.

    Raises:
        InputError: it is one.
    """
    if not re.fullmatch(r"[\w.-]+( [\w.-]+)*", name) or set(name) == {"."}:
        raise InputError(
            f"--register {name!r}: expected letters, digits, dots, dashes and underscores"
        )


def register(
    folder: Place, exported: Export, name: str, *, bounds: Sequence[Bound] = ()
) -> Registered:
    """Make an exported network a version of a registered model.

    Args:
        folder: RUNS/ID of the exploration.
        exported: from it.
        name: of the registered model, made where there is none.
        bounds: that were asked for; the alias names them.

    Raises:
        InputError: the name is none.
        RunError: MLflow is away or refuses; the exported folder stays.
    """
    require_name(name)
    tracker = Tracker(
        tracking_uri(folder.parent),
        experiment=EXPERIMENT,
        artifacts_dir=folder.parent / "mlartifacts",
    )
    uid = uid_of(folder, read_json(folder / "state.json"))
    alias = alias_of(bounds, exported.point.conditioning)
    with tracker.connected() as client:
        run = tracker.parent_run(client, uid)
        if run is None:
            problem = send(folder)
            if problem is not None:
                raise RunError(f"--register {name}: {problem}")
            run = tracker.parent_run(client, uid)
            assert run is not None
        description = read_json(exported.folder / NETWORK_FILE)
        tags = _tags(description)
        model_id, place = _log(client, run, exported.folder, description, name, tags)
        _require_model(client, name)
        made = client.create_model_version(
            name,
            place,  # models:/ID would be looked for where mlflow's global settings point
            run_id=run.info.run_id,
            tags=tags,
            description=_summary(exported.folder / CARD_FILE),
            model_id=model_id,
        )
        client.set_registered_model_alias(name, alias, str(made.version))
    return Registered(name, str(made.version), alias)


def _log(
    client: MlflowClient,
    run: Run,
    folder: Path,
    description: Mapping[str, Any],
    name: str,
    tags: Mapping[str, str],
) -> tuple[str, str]:
    """Log the exported folder as a model of the run; return the model's id and place."""
    run_id = run.info.run_id
    logged = client.create_logged_model(
        run.info.experiment_id, name, source_run_id=run_id, tags=dict(tags), model_type="network"
    )
    model_id = str(logged.model_id)
    with (
        tempfile.TemporaryDirectory(prefix="registering_") as scratch,
        warnings.catch_warnings(record=True),  # advice to those who leave the signature out
    ):
        path = Path(scratch) / "model"
        pyfunc.save_model(
            path,
            python_model=str(_ROOT / "explorer" / "served.py"),
            artifacts={_ARTIFACT: str(folder)},
            code_paths=[str(_ROOT / code_dir) for code_dir in _CODE_DIRS],
            signature=_signature(description),
            pip_requirements=[f"{package}=={_release(package)}" for package in _REQUIREMENTS],
            mlflow_model=Model(
                artifact_path=logged.artifact_location,
                model_uuid=model_id,
                run_id=run_id,
                model_id=model_id,
            ),
        )
        client.log_model_artifacts(model_id, str(path))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id, str(logged.artifact_location)


def _release(package: str) -> str:
    return version(package).partition("+")[0]  # torch's build is for the installer to choose


def _signature(description: Mapping[str, Any]) -> ModelSignature:
    """Any number of images of one size, unnamed, so that `inputs` is what a request holds."""
    takes, gives = description["input"], description["output"]
    size = tuple(takes["size"])
    num_outputs = len(gives["labels"]) if "labels" in gives else len(size)
    shapes = ((-1, takes["channels"], *size), (-1, num_outputs, *size))
    inputs, outputs = (Schema([TensorSpec(np.dtype(np.float32), shape)]) for shape in shapes)
    return ModelSignature(inputs=inputs, outputs=outputs)


def _tags(description: Mapping[str, Any]) -> dict[str, str]:
    own = ("exploration_id", "trial_id", "method", "dataset", "seed")
    told = {name: description[name] for name in own} | description["costs"]
    for prefix, family in (
        ("conditioning/", "conditioning"),
        ("val/", "metrics"),
        ("test/", "test_metrics"),
    ):
        told |= {f"{prefix}{name}": value for name, value in description[family].items()}
    return {tag_name(name): str(value) for name, value in told.items()}


def _require_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _summary(card: Path) -> str:
    """The card without its front matter, as many of its sections as MLflow takes."""
    text = card.read_text(encoding="utf-8").split("---\n", 2)[2].strip()
    if len(text) <= MAX_DESCRIPTION:
        return text
    end = "\n\nThe whole card is in the model's files."
    sections = re.split(r"(?m)^(?=## )", text)
    kept = ""
    for section in sections:
        if len(kept) + len(section) + len(end) > MAX_DESCRIPTION:
            break
        kept += section
    return kept.rstrip() + end
