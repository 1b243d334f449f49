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
from explorer.models import build_trainable, dataset_source, image_size, method_of
from explorer.places import Place
from explorer.points import Point
from explorer.progress import ProgressReport
from explorer.session import code_version, measurement_of
from explorer.specs import DatasetSpec, ExplorationSpec
from explorer.splits import decoded, whole_of
from explorer.store import measurements_store
from explorer.training import read_record, read_weights
from search_spaces.errors import InputError
from search_spaces.space import Config
from trainables.datasets.base import ImageDataset

CHUNK_SIZE = 64  # settings that are written together
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
    exactly = spec.explore.model_copy(update={"precision": "float32"})
    there = spec.model_copy(update={"dataset": dataset, "explore": exactly})
    there = there.extended(spec.extensions)
    if dataset.root is not None and not dataset_source(there).needs_root:
        raise InputError(
            f"--evaluate-on: {dataset.name} has no files and so no root; name its options, such as "
            f"'{{options: {{seed: 7}}}}'"
        )
    _require_same_shape(spec, there)
    images = decoded(there)
    _require_unseen(images, trained_on, dataset)
    samples = whole_of(there, images)
    told = {"dataset": dataset.name, "num_samples": len(samples), "digest": images.digest}
    # of pairs: which ones were drawn, too
    drawn = b"" if samples.pairs is None else samples.pairs.tobytes()
    key = hashlib.sha256(images.digest.encode() + drawn).hexdigest()[:16]
    store = measurements_store(folder / FOLDER / key)
    known = columns_of(store.load())
    done = set(zip(known["trial_id"].tolist(), known["setting_id"].tolist(), strict=True))
    todo: dict[tuple[str, ...], list[Config]] = {}
    for point in points:
        own = setting_id(point.conditioning)
        missing = tuple(one for one in point.trial_ids if (one, own) not in done)
        if missing:
            todo.setdefault(missing, []).append(dict(point.conditioning))
    chunks = [
        (trial_ids, tuple(settings[first : first + CHUNK_SIZE]))
        for trial_ids, settings in todo.items()
        for first in range(0, len(settings), CHUNK_SIZE)
    ]
    if chunks:
        trial_ids = sorted({one for own, _ in chunks for one in own})
        records = {one: read_record(folder / "trials" / one) for one in trial_ids}
        weights = {
            one: {n: x.numpy() for n, x in read_weights(folder / "trials" / one).items()}
            for one in trial_ids
        }
        trials = {one: record.trial for one, record in records.items()}
        models = FrozenModels(there, trials, weights, {"val": samples})
        version = code_version()
        progress.phase(f"evaluating on {dataset.name}", len(chunks))
        for own_ids, settings in chunks:
            told_apart = [*own_ids, *map(setting_id, settings)]
            name = hashlib.sha256(" ".join(told_apart).encode()).hexdigest()[:16]
            chunk = Chunk(f"elsewhere-{name}", "val", own_ids, settings)
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
            store.append(measurements_table(rows), part=chunk.name)
            progress.update(chunk.name, 1.0)
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
