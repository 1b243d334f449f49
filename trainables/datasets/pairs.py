"""Which images of a data set are registered with which.

A pair is (moving, fixed); the same two images the other way round are another pair.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from trainables.datasets.base import SPLIT_PERCENTAGES, ImageDataset
from trainables.datasets.files import read_rows

PAIR_COLUMNS = ["split", "moving", "fixed"]
MAX_PAIRS = 1_000_000

Pairs = NDArray[np.int64]


def draw_pairs(
    indices: Mapping[str, NDArray[np.int64]],
    *,
    num_pairs: int,
    seed: int,
    domains: NDArray[np.int64] | None = None,
) -> dict[str, Pairs]:
    """Pairs (n, 2) of images of each split: all for training, else at most `num_pairs` drawn.

    Of more than a million pairs for training, a million are drawn.

    Args:
        indices: images of each split.
        num_pairs: on every split but `train`; all where there are no more.
        seed: of the choice.
        domains: of all images; when given, those of a pair differ.

    Raises:
        InputError: a split has no pair.
    """
    pairs = {}
    for number, (name, own) in enumerate(sorted(indices.items())):
        rng = np.random.default_rng((seed, number))
        count = len(own) * (len(own) - 1)
        codes = np.arange(min(count, MAX_PAIRS))
        if count > MAX_PAIRS:
            codes = np.sort(rng.choice(count, MAX_PAIRS, replace=False, shuffle=False))
        first, second = np.divmod(codes, max(1, len(own) - 1))
        second += second >= first  # never the same image twice
        every = np.stack([own[first], own[second]], axis=1)
        if domains is not None:
            every = every[domains[every[:, 0]] != domains[every[:, 1]]]
        if not len(every):
            of = "" if domains is None else " of two domains"
            raise InputError(
                f"dataset: split {name!r} has {len(own)} image{'s' * (len(own) != 1)} and no "
                f"pair{of}; give more images"
            )
        if name != "train" and len(every) > num_pairs:
            every = every[np.sort(rng.choice(len(every), num_pairs, replace=False))]
        pairs[name] = every
    return pairs


def read_pairs(path: str | os.PathLike[str], dataset: ImageDataset) -> dict[str, Pairs]:
    """The pairs of a comma-separated table with the columns split, moving and fixed.

    Args:
        path: of the table; images are named by their ids.
        dataset: whose images they are.

    Raises:
        InputError: no such table or image, a split without pairs, an image with itself, a pair
            that comes twice, or images of one person in several splits.
    """
    place = Path(path).expanduser()
    header, *rows = read_rows(place) or [[]]
    if header != PAIR_COLUMNS:
        raise InputError(
            f"{place}: line 1: expected the columns {','.join(PAIR_COLUMNS)}, got "
            f"{','.join(header)[:80]!r}"
        )
    index = {name: k for k, name in enumerate(dataset.ids)}
    # in order, and quick to ask
    found: dict[str, dict[tuple[int, int], None]] = {name: {} for name in SPLIT_PERCENTAGES}
    split_of: dict[str, tuple[str, int]] = {}
    for line, row in enumerate(rows, start=2):
        where = f"{place}: line {line}"
        if len(row) != len(PAIR_COLUMNS) or row[0] not in found:
            raise InputError(
                f"{where}: expected {', '.join(found)}, then two ids, got {','.join(row)[:80]!r}"
            )
        split, *names = row
        for name in names:
            if name not in index:
                raise InputError(
                    f"{where}: {name!r} is no image of {dataset.name}; an id is such as "
                    f"{dataset.ids[0]}"
                )
            person = dataset.groups[index[name]]
            other, first = split_of.setdefault(person, (split, line))
            if other != split:
                raise InputError(
                    f"{where}: {name} is of {person}, who is in {other} by line {first} and in "
                    f"{split} by this one; a person belongs to one split"
                )
        pair = index[names[0]], index[names[1]]
        if pair[0] == pair[1] or pair in found[split]:
            problem = "an image with itself" if pair[0] == pair[1] else "a pair that came before"
            raise InputError(f"{where}: {problem}, {names[0]} and {names[1]}; leave it out")
        found[split][pair] = None
    for split, own in found.items():
        if not own:
            raise InputError(f"{place}: no pair of split {split!r}; every split needs one")
    return {split: np.array(list(own), dtype=np.int64) for split, own in found.items()}
