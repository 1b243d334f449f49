"""The images of an exploration: read, split, and given the form in which its methods learn them."""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explorer.grouping import Candidates
from explorer.models import build_trainable, dataset_source, domains_of, image_size, method_of
from explorer.specs import ExplorationSpec
from explorer.training import trials_of
from search_spaces.errors import InputError
from trainables.adaptation import domains_of as domains_of_pair
from trainables.base import Arrays
from trainables.datasets.base import ImageDataset, split_indices
from trainables.datasets.domains import by_domain, folds_of, with_parts
from trainables.datasets.files import read_bytes
from trainables.datasets.pairs import draw_pairs, read_pairs
from trainables.generalization import Generalization
from trainables.mapped import mapped
from trainables.memory import whole_bytes

SHARE_OF_MEMORY = 0.25


def load_data(spec: ExplorationSpec) -> ImageDataset:
    """Decode the data set that a spec names.

    Raises:
        InputError: missing or damaged data, options that the data set does not have, or fewer
            images or pairs than the spec needs.
    """
    dataset = decoded(spec)
    if spec.registration.pairs is not None:
        table = read_bytes(Path(spec.registration.pairs).expanduser())
        digest = hashlib.sha256(dataset.digest.encode() + table).hexdigest()
        dataset = replace(dataset, digest=digest)
    indices, pairs = _chosen(spec, dataset)
    num_samples = len(pairs.get("train", indices["train"]))
    if method_of(spec, spec.method).task == "adaptation":
        names = np.array(dataset.domain_names)[dataset.domains[indices["train"]]]
        wanted = pairs_and_amounts(spec)
        counts = [int((names == name).sum()) for *pair, _ in wanted for name in pair]
        num_samples = min([*counts, *(amount for *_, amount in wanted if amount)])
    if method_of(spec, spec.method).task == "generalization":
        num_samples = _least_sources(spec, dataset, indices["train"])
    if num_samples < spec.train.batch_size and spec.train.steps_per_epoch is None:
        raise InputError(
            f"train.batch_size: expected at most the number of training samples, {num_samples}; "
            f"got {spec.train.batch_size}"
        )
    return dataset


def decoded(spec: ExplorationSpec) -> ImageDataset:
    """The images of a spec's data set, whatever is to be done with them; raises as `load_data`."""
    source = dataset_source(spec)
    if source.needs_root and spec.dataset.root is None:
        raise InputError(
            f"dataset.root: {source.name} needs the folder of its files: "
            f"--set dataset.root=DIR ({source.summary})"
        )
    _, *parameters = inspect.signature(source.load).parameters.values()  # after the root
    known = [one.name for one in parameters if one.name != "size"]
    if not any(one.kind is one.VAR_KEYWORD for one in parameters):
        for name in spec.dataset.options:
            if name not in known:
                raise InputError(
                    f"dataset.options of {source.name}: unknown option {name!r}; known: "
                    f"{', '.join(sorted(known)) or 'none'}"
                )
    return source.load(spec.dataset.root, size=image_size(spec), **spec.dataset.options)


@dataclass(frozen=True)
class Samples:
    """The samples of one split, images or pairs, and their ids.

    `indices` are those of its images in the data set.
    """

    arrays: Arrays
    ids: list[str]
    indices: NDArray[np.int64]


def samples_of(spec: ExplorationSpec, dataset: ImageDataset) -> dict[str, Samples]:
    """What the spec's method is trained on and asked about, by split.

    A pair's id is MOVING>FIXED.

    Raises:
        InputError: a split is empty, or the spec's table of pairs cannot be used.
    """
    indices, pairs = _chosen(spec, dataset)
    task = method_of(spec, spec.method).task
    samples, values, parts = {}, np.empty(0, dtype=np.float32), np.empty(0, dtype=np.int64)
    if task == "generalization":
        values, parts = _whole_images(spec, dataset)
    stays = _stays_in_file(spec, dataset)
    for name, own in indices.items():
        images, masks = (_rows(each, own, stays) for each in (dataset.images, dataset.masks))
        if name in pairs:
            ids = [f"{dataset.ids[a]}>{dataset.ids[b]}" for a, b in pairs[name]]
            arrays = Arrays(images, masks, np.searchsorted(own, pairs[name]))
        else:
            ids, arrays = [dataset.ids[index] for index in own], Arrays(images, masks)
        if task in ("adaptation", "generalization"):
            arrays = replace(arrays, domains=np.array(dataset.domain_names)[dataset.domains[own]])
        if task == "adaptation":
            folds = folds_of([dataset.groups[k] for k in own], dataset.domains[own].tolist())
            arrays = replace(arrays, folds=folds)
        if task == "generalization":
            arrays = replace(arrays, folds=parts[own], values=values[own])
        samples[name] = Samples(arrays, ids, own)
    return samples


def _stays_in_file(spec: ExplorationSpec, dataset: ImageDataset) -> bool:
    """Whether images are read row by row; see `DatasetSpec`."""
    if not isinstance(dataset.images, np.memmap):
        return False
    if method_of(spec, spec.method).task not in ("segmentation", "registration"):
        return False  # the others look at all images at once
    limit = spec.dataset.memory_bytes
    if limit is None:
        whole = whole_bytes(on_gpu=False)
        limit = math.inf if whole is None else SHARE_OF_MEMORY * whole
    return dataset.images.nbytes > limit


def _rows(array: Any, rows: NDArray[np.int64], stays: bool) -> Any:
    in_file = mapped(array, rows) if stays else None
    return array[rows] if in_file is None else in_file


def whole_of(spec: ExplorationSpec, dataset: ImageDataset) -> Arrays:
    """All images of a data set, or pairs of them, as one part."""
    every = {"val": np.arange(len(dataset.images))}
    images, masks = (
        _rows(own, every["val"], stays=isinstance(own, np.memmap))  # not to be written to
        for own in (dataset.images, dataset.masks)
    )
    if method_of(spec, spec.method).task != "registration":
        return Arrays(images, masks)
    section = spec.registration
    domains = dataset.domains if section.across_domains else None
    pairs = draw_pairs(
        every, num_pairs=section.num_pairs, seed=spec.dataset.split_seed, domains=domains
    )
    return Arrays(images, masks, pairs["val"])


def candidates_of(spec: ExplorationSpec, dataset: ImageDataset) -> Candidates:
    """The samples of validation as `explorer optimize` groups them."""
    samples = samples_of(spec, dataset)["val"]
    attributes: dict[str, Any] = getattr(dataset, "attributes", {})
    return Candidates(
        samples.arrays,
        people=[dataset.groups[index] for index in samples.indices],
        labels=dataset.labels,
        attributes={name: np.asarray(own)[samples.indices] for name, own in attributes.items()},
        is_closed=spec.registration.pairs is not None or spec.registration.across_domains,
    )


def _chosen(
    spec: ExplorationSpec, dataset: ImageDataset
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """Indices of each split's images, and its pairs if the method registers them."""
    section, seed = spec.registration, spec.dataset.split_seed
    task = method_of(spec, spec.method).task
    if task == "adaptation":
        return by_domain(dataset, pairs_and_amounts(spec), seed=seed), {}
    if task == "generalization":
        is_known = _is_known(_predicted(spec, dataset))
        return with_parts(dataset, domains_of(spec), is_known, seed=seed)[0], {}
    if task != "registration":
        return split_indices(dataset, seed=seed), {}
    if section.pairs is not None:
        pairs = read_pairs(section.pairs, dataset)
        return {name: np.unique(own) for name, own in pairs.items()}, pairs
    indices = split_indices(dataset, seed=seed)
    domains = dataset.domains if section.across_domains else None
    return indices, draw_pairs(indices, num_pairs=section.num_pairs, seed=seed, domains=domains)


def _predicted(spec: ExplorationSpec, dataset: ImageDataset) -> NDArray[np.float64]:
    """What is predicted of each image, (n, v), NaN unknown."""
    trainable = build_trainable(spec)
    assert isinstance(trainable, Generalization)
    if trainable.model.predicts == "findings":
        return dataset.findings
    if trainable.model.predicts == "target":
        return dataset.targets[:, None]
    return np.where(dataset.classes < 0, np.nan, dataset.classes)[:, None]


def _is_known(predicted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Images (n,) of which anything is known that is predicted."""
    return np.asarray(np.isfinite(predicted).any(axis=1))


def _whole_images(
    spec: ExplorationSpec, dataset: ImageDataset
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of each image the values that are learned, see `Arrays`, and the part that it is in."""
    predicted, domains = _predicted(spec, dataset), domains_of(spec)
    seed = spec.dataset.split_seed
    _, parts = with_parts(dataset, domains, _is_known(predicted), seed=seed)
    positions = [domains.index(n) if n in domains else -1 for n in dataset.domain_names]
    columns = [np.array(positions, dtype=np.float64)[dataset.domains, None], predicted]
    return np.concatenate(columns, axis=1).astype(np.float32), parts


def _least_sources(spec: ExplorationSpec, dataset: ImageDataset, train: NDArray[np.int64]) -> int:
    """Images to train on, with the domain held out that leaves fewest.

    Raises:
        InputError: no source has a class, or a finding that is both there and not.
    """
    names = np.array(dataset.domain_names)[dataset.domains[train]]
    values = _predicted(spec, dataset)[train]
    trainable = build_trainable(spec)
    assert isinstance(trainable, Generalization)
    model = trainable.model
    counts = []
    for held_out in spec.train.grid["held_out"]:
        own = values[names != held_out]
        counts.append(len(own))
        for k, name in enumerate(model.names):
            if model.predicts == "target":
                continue
            is_class = model.predicts == "class"
            is_there = own[:, 0] == k if is_class else own[:, k] == 1
            if not is_there.any() or (not is_class and not (own[:, k] == 0).any()):
                raise InputError(
                    f"train.grid: held_out: without {held_out} no image to train on tells "
                    f"{name!r}{'' if is_class else ' from its absence'}; leave it out, or take "
                    f"domains that have it"
                )
    return min(counts)


def pairs_and_amounts(spec: ExplorationSpec) -> list[tuple[str, str, int]]:
    """Source, target and images to train on, 0 for all, of every training of an adaptation."""
    methods = [spec.method, *(baseline.method for baseline in spec.baselines)]
    trials = trials_of(spec, seeds=(0,), rates=dict.fromkeys(methods, (0.0,)))
    found = [(*domains_of_pair(t.settled["pair"]), int(t.settled.get("amount", 0))) for t in trials]
    return list(dict.fromkeys(found))
