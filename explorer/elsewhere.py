"""Frozen models judged by images of another data set than they were trained on: D' of Eq. 3.

Source: Gonzalez Ortiz, Guttag, Dalca, "Amortized Learning of Flexible Feature Scaling for Image
Segmentation", section 3.1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from explorer.exploring import Chunk, FrozenModels
from explorer.measurements import Columns, columns_of, measurements_table, setting_id
from explorer.models import build_trainable, image_size, method_of
from explorer.places import Place
from explorer.points import Point
from explorer.progress import ProgressReport
from explorer.session import code_version, measurement_of
from explorer.specs import DatasetSpec, ExplorationSpec
from explorer.splits import decoded, whole_of
from explorer.store import measurements_store
from explorer.training import read_record, read_weights
from search_spaces.errors import InputError
from trainables.datasets.base import ImageDataset

FOLDER = "elsewhere"  # of RUNS/ID, with a table for each data set


def judged_elsewhere(
    folder: Place,
    spec: ExplorationSpec,
    points: list[Point],
    dataset: DatasetSpec,
    trained_on: ImageDataset,
    progress: ProgressReport,
) -> tuple[Columns, dict[str, Any]]:
    """The measurements of points by all images of another data set, as those of validation.

    What was measured is kept beside the exploration and not measured again.

    Args:
        folder: RUNS/ID.
        spec: of the exploration.
        points: settings and trainings, of one method.
        dataset: whose images.
        trained_on: the exploration's own images.
        progress: told point by point.

    Returns:
        The columns, and what the images are: data set, their number and digest.

    Raises:
        InputError: missing or damaged data, other labels, channels or size, images that the models
            were trained on, or a task whose models are judged by their own domains.
    """
    if method_of(spec, spec.method).task not in ("segmentation", "registration"):
        raise InputError(
            f"--evaluate-on: models of {spec.method} are judged by images of their own domains; "
            f"leave it out"
        )
    there = spec.model_copy(update={"dataset": dataset}).extended(spec.extensions)
    _require_same_shape(spec, there)
    images = decoded(there)
    _require_unseen(images, trained_on, dataset)
    samples = whole_of(there, images)
    told = {"dataset": dataset.name, "num_samples": len(samples), "digest": images.digest}
    store = measurements_store(folder / FOLDER / images.digest[:16])
    known = columns_of(store.load())
    keys = list(zip(known["trial_id"].tolist(), known["setting_id"].tolist(), strict=True))
    done = set(keys)
    todo = [
        point
        for point in points
        if any((one, setting_id(point.conditioning)) not in done for one in point.trial_ids)
    ]
    if todo:
        trial_ids = sorted({one for point in todo for one in point.trial_ids})
        records = {one: read_record(folder / "trials" / one) for one in trial_ids}
        weights = {
            one: {n: x.numpy() for n, x in read_weights(folder / "trials" / one).items()}
            for one in trial_ids
        }
        trials = {one: record.trial for one, record in records.items()}
        models = FrozenModels(there, trials, weights, {"val": samples})
        version = code_version()
        progress.phase(f"evaluating on {dataset.name}", len(todo))
        for number, point in enumerate(todo):
            setting = dict(point.conditioning)
            chunk = Chunk(f"elsewhere-{setting_id(setting)}", "val", point.trial_ids, (setting,))
            rows = [
                measurement_of(
                    one,
                    records[one.trial_id],
                    samples,
                    exploration_id=folder.name,
                    data_digest=images.digest,
                    version=version,
                )
                for one in models.evaluate(chunk)
            ]
            store.append(measurements_table(rows), part=f"{point.method}-{chunk.name}")
            progress.update(str(number), 1.0)
    return columns_of(store.load()), told


def dataset_of(spec: ExplorationSpec, given: str | Mapping[str, Any]) -> dict[str, Any]:
    """The section `dataset` of what is evaluated on: a name, or keys that differ from the spec's.

    Another data set has its own options and folder; the size is the network's.
    """
    own = {**spec.dataset.model_dump(), "size": image_size(spec)}
    changes = {"name": given} if isinstance(given, str) else dict(given)
    if changes.get("name", spec.dataset.name) != spec.dataset.name:
        own |= {"root": None, "options": {}}
    return own | changes


def _require_same_shape(spec: ExplorationSpec, there: ExplorationSpec) -> None:
    own: Any = build_trainable(spec)
    other: Any = build_trainable(there)
    for name in ("labels", "in_channels", "channels", "size"):
        expected, came = (getattr(one.model, name, None) for one in (own, other))
        if expected != came:
            raise InputError(
                f"--evaluate-on {there.dataset.name}: expected {name} {_listed(expected)} as in "
                f"the exploration, got {_listed(came)}"
            )


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _require_unseen(images: ImageDataset, trained_on: ImageDataset, dataset: DatasetSpec) -> None:
    known = {hashlib.sha256(x.tobytes()).digest() for x in trained_on.images}
    seen = sum(hashlib.sha256(x.tobytes()).digest() in known for x in images.images)
    if seen:
        raise InputError(
            f"--evaluate-on {dataset.name}: {seen} of its {len(images.images)} images are in the "
            f"data set that the exploration was trained on and chose by; give others"
        )
