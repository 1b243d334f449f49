"""Which images of which domains a network is trained on, adapted to and judged by.

A pair is (source, target), two domains of the data set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, unknown_name
from trainables.datasets.base import SPLIT_PERCENTAGES, ImageDataset, split_indices

NUM_FOLDS = 3  # of a cross-validation


def by_domain(
    dataset: ImageDataset, wanted: Sequence[tuple[str, str, int]], *, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Indices of the images of each split that are of a wanted domain.

    Those to train on are in a random order within each domain that keeps people together, so that
    fewer are some of more.

    Args:
        dataset: with domains.
        wanted: source, target, and how many images of the target to train on, 0 for all.
        seed: of the split and the order.

    Raises:
        InputError: a domain that there is not, a split without an image of one, or more images
            wanted than there are.
    """
    names = list(dataset.domain_names)
    for name in (name for *pair, _ in wanted for name in pair):
        if name not in names:
            raise unknown_name("train.grid: pair: domain", name, names)
    used = {name: names.index(name) for *pair, _ in wanted for name in pair}
    targets = {target for _, target, _ in wanted}
    splits = split_indices(dataset, seed=seed)
    for name, number in used.items():
        for split, own in splits.items():
            is_needed = name in targets or split != "test"
            if is_needed and not (dataset.domains[own] == number).any():
                raise InputError(f"train.grid: pair: {name} has no image of split {split!r}")
    for _, target, amount in wanted:
        count = int((dataset.domains[splits["train"]] == used[target]).sum())
        if amount > count:
            raise InputError(
                f"train.grid: amount: {target} has {count} images to train on, not {amount}"
            )
    found = {
        name: own[np.isin(dataset.domains[own], list(used.values()))]
        for name, own in splits.items()
    }
    train = [found["train"][dataset.domains[found["train"]] == k] for k in used.values()]
    orders = [_shuffled([dataset.groups[k] for k in own], seed) for own in train]
    shuffled = [own[order] for own, order in zip(train, orders, strict=True)]
    return {**found, "train": np.concatenate(shuffled)}


def _shuffled(groups: Sequence[str], seed: int) -> NDArray[np.int64]:
    """A random order of images in which those of one group lie together."""
    rng = np.random.default_rng((seed, 5))
    names = list(dict.fromkeys(groups))
    place = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
    keys = [(place[name], key) for name, key in zip(groups, rng.random(len(groups)), strict=True)]
    return np.array(sorted(range(len(groups)), key=keys.__getitem__), dtype=np.int64)


def folds_of(groups: Sequence[str], domains: Sequence[int]) -> NDArray[np.int64]:
    """Folds 0, 1, 2 in turn, by group within its domain: no fold cuts one, and every domain has
    all three.
    """  # noqa: D205
    keys = list(zip(domains, groups, strict=True))
    numbers: dict[tuple[int, str], int] = {}
    counts: dict[int, int] = {}
    for key in dict.fromkeys(keys):
        numbers[key] = counts.get(key[0], 0) % NUM_FOLDS
        counts[key[0]] = counts.get(key[0], 0) + 1
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def with_parts(
    dataset: ImageDataset, names: Sequence[str], is_known: NDArray[np.bool_], *, seed: int
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Indices of the images of each split that are of the domains named, and each image's part.

    The split `test` has all of them, in a random order: of a domain that is held out, those that
    would have been trained on are as unseen as the others.

    Args:
        dataset: with domains.
        names: of the domains that take part.
        is_known: (n,) images of which it is known what is predicted; others are left out.
        seed: of the split and the order.

    Returns:
        Indices by split, and for each of the n images the position of its split among them.

    Raises:
        InputError: a domain that there is not, or that a split has no image of.
    """
    known = list(dataset.domain_names)
    for name in names:
        if name not in known:
            raise unknown_name("generalization.domains", name, known)
    numbers = [known.index(name) for name in names]
    is_used = is_known & np.isin(dataset.domains, numbers)
    splits = split_indices(dataset, seed=seed)
    parts = np.zeros(len(dataset), dtype=np.int64)
    chosen = {}
    for number, split in enumerate(SPLIT_PERCENTAGES):
        parts[splits[split]] = number
        chosen[split] = own = splits[split][is_used[splits[split]]]
        for name, domain in zip(names, numbers, strict=True):
            if not (dataset.domains[own] == domain).any():
                raise InputError(
                    f"generalization.domains: {name} has no image of split {split!r}; leave it out"
                )
    everything = np.concatenate(list(chosen.values()))
    return {**chosen, "test": np.random.default_rng((seed, 6)).permutation(everything)}, parts
