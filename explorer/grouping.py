"""Which samples ask for a setting of their own: by label, by subject, by what is known of people.

Shapes: m images, n samples, pairs of images or single ones, as rows of image indices.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, unknown_name
from trainables.base import Arrays

MAX_VALUES = 10  # of a column: 55 combinations

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """Samples that share an optimum, and the metric that they are asked for.

    Attributes:
        by: `label`, `subject`, a column, or None: all of them.
        name: within `by`.
        metric: `dice`, or one label of it where grouped by labels.
        samples: (n,) of them; none where no sample belongs to the group.
        rows: (n, 1 or 2) their images among the split's.
        num_people: whose images they are.
    """

    by: str | None
    name: str
    metric: str
    samples: Arrays
    rows: Rows
    num_people: int


class Candidates:
    """The samples of a split in the order in which groups take them.

    They come in an order that a seed alone decides: those of the split first. Other pairs of its
    images follow where groups look for pairs of a kind that the drawing may have missed, and where
    no table says which images belong together.

    Args:
        split: its samples.
        people: (m,) person of each image.
        labels: of the masks, from 1 on.
        attributes: name to (m,) values of each image.
        is_closed: whether the spec says which pairs there are.
    """

    def __init__(
        self,
        split: Arrays,
        people: Sequence[str],
        labels: Sequence[str],
        attributes: Mapping[str, Any],
        *,
        is_closed: bool,
    ) -> None:
        self.split, self.people, self.labels = split, np.array(people), list(labels)
        self.attributes = attributes
        singles = np.arange(len(split.images), dtype=np.int64)[:, None]
        own = singles if split.pairs is None else split.pairs
        self.own = np.random.default_rng(0).permutation(own)
        self.is_closed = is_closed or split.pairs is None

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """Which labels (m, K) each image has."""
        size = len(self.labels) + 1
        counts = [np.bincount(mask.ravel(), minlength=size)[1:] for mask in self.split.masks]
        return np.array(counts) > 0

    def everything(self, metric: str, num_samples: int) -> Group:
        """At most so many samples of the split, in which the metric is defined."""
        return self._group(None, "all", metric, self.own, num_samples)

    def groups(self, by: str, metric: str, num_samples: int) -> list[Group]:
        """The groups of a kind, each with at most so many samples.

        Raises:
            InputError: an unknown kind, one that these samples or this metric do not have, or a
                column of many values.
        """
        if by == "label":
            return self._by_label(metric, num_samples)
        if by != "subject" and by not in self.attributes:
            raise unknown_name("--by", by, {"label", "subject", *self.attributes})
        found = self._by_subject() if by == "subject" else self._by_column(by)
        return [self._group(by, name, metric, rows, num_samples) for name, rows in found.items()]

    def _by_label(self, metric: str, num_samples: int) -> list[Group]:
        family, _, part = metric.partition("/")
        if part:
            raise InputError(f"--by label: expected a metric of all labels, {family}; got {metric}")
        return [
            self._group("label", label, f"{metric}/{label}", self.own, num_samples)
            for label in self.labels
        ]

    def _by_subject(self) -> dict[str, Rows]:
        if self.split.pairs is None:
            raise InputError("--by subject: expected a method that registers pairs of images")
        rows = self._rows()
        moving, fixed = self.people[rows].T
        return {"within": rows[moving == fixed], "across": rows[moving != fixed]}

    def _by_column(self, name: str) -> dict[str, Rows]:
        values, names = _categories(name, self.attributes[name])
        rows = self._rows()
        own = np.sort(values[rows], axis=1)  # moving and fixed are no different here
        combinations = itertools.combinations_with_replacement(range(len(names)), rows.shape[1])
        return {
            "-".join(names[k] for k in one): rows[(own == np.array(one)).all(axis=1)]
            for one in combinations
        }

    def _rows(self) -> Rows:
        if self.is_closed:
            return self.own
        m = len(self.split.images)
        is_new = ~np.eye(m, dtype=np.bool_)
        is_new[tuple(self.own.T)] = False
        return np.concatenate([self.own, np.random.default_rng(1).permutation(np.argwhere(is_new))])

    def _group(self, by: str | None, name: str, metric: str, rows: Rows, num_samples: int) -> Group:
        label = metric.partition("/")[2]
        if label in self.labels and self.split.pairs is not None:
            # a label that neither image has cannot overlap
            rows = rows[self.present[rows, self.labels.index(label)].any(axis=1)]
        rows = rows[:num_samples]
        images, masks = self.split.images, self.split.masks
        samples = (
            Arrays(images[rows[:, 0]], masks[rows[:, 0]])
            if self.split.pairs is None
            else Arrays(images, masks, rows)
        )
        num_people = len(set(self.people[rows].ravel().tolist()))
        return Group(by, name, metric, samples, rows, num_people)


def _categories(name: str, values: Any) -> tuple[Rows, list[str]]:
    """Category of each image, -1 where it is not known, and names; numbers are cut in two."""
    column = np.asarray(values)
    if column.dtype.kind in "iuf":
        known = np.isfinite(column)
        if not known.any():
            raise InputError(f"--by {name}: no image has a value")
        cut = float(np.median(column[known]))
        codes = np.where(known, (column >= cut).astype(np.int64), -1)
        return codes, [f"<{cut:g}", f"≥{cut:g}"]
    texts = ["" if value is None else str(value) for value in column.tolist()]
    names = sorted({text for text in texts if text not in ("", "nan")})
    if not 1 <= len(names) <= MAX_VALUES:
        raise InputError(
            f"--by {name}: expected a column of 1 to {MAX_VALUES} different values, got "
            f"{len(names)}"
        )
    places = {text: index for index, text in enumerate(names)}
    return np.array([places.get(text, -1) for text in texts], dtype=np.int64), names
