import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets import base
from trainables.datasets.base import ImageDataset, split_indices


def make_dataset(n=50, domains=None, groups=(), **changes):
    fields = {
        "name": "made",
        "images": np.linspace(-1, 1, n * 16, dtype=np.float32).reshape(n, 1, 4, 4),
        "masks": (np.arange(n * 16, dtype=np.uint8) % 3).reshape(n, 4, 4),
        "labels": ("a", "b"),
        "ids": tuple(f"id{index}" for index in range(n)),
        "domains": np.zeros(n, np.int64) if domains is None else np.asarray(domains),
        "domain_names": ("x", "y", "z"),
        "classes": np.arange(n),
        "targets": np.arange(n) / 2,
        "groups": groups,
        "digest": "0" * 64,
    }
    return ImageDataset(**{**fields, **changes})


def test_groups_default_to_ids_and_repr_is_one_line():
    dataset = make_dataset(n=5)
    assert dataset.groups == dataset.ids
    assert len(dataset) == 5
    expected = (
        "ImageDataset('made', images=(5, 1, 4, 4), labels=2, domains=3, digest='000000000000')"
    )
    assert repr(dataset) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((4, 4, 4), np.uint8)}, "masks: expected one row per id"),
        ({"groups": ("one",)}, "groups: expected one row per id"),
        ({"attributes": {"sex": ("F",)}}, r"attributes\['sex'\]: expected one row per id"),
        ({"masks": np.zeros((5, 4, 3), np.uint8)}, r"expected images \(n, C, \*spatial\)"),
        ({"ids": ("same",) * 5}, "ids must differ"),
        ({"images": np.full((5, 1, 4, 4), np.nan, np.float32)}, "finite and in"),
        ({"images": np.full((5, 1, 4, 4), 1.5, np.float32)}, "finite and in"),
        ({"masks": np.full((5, 4, 4), 3, np.uint8)}, "masks hold 3, but 2 labels"),
        ({"domains": np.full(5, 3)}, "indices into domain_names"),
    ],
)
def test_broken_invariants_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(n=5, **changes)


def test_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        make_dataset(n=0)


def test_splits_are_sorted_disjoint_complete_and_of_the_right_share():
    splits = split_indices(make_dataset(n=100), seed=0)
    assert {name: len(indices) for name, indices in splits.items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    np.testing.assert_array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(100))
    assert all((np.diff(indices) > 0).all() for indices in splits.values())


def test_split_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (split_indices(make_dataset(), seed=seed) for seed in (3, 3, 4))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("seed", range(5))
def test_split_shares_hold_in_every_domain_to_within_two_images(seed):
    domains = np.repeat([0, 1, 2], [70, 13, 37])
    dataset = make_dataset(n=120, domains=domains)
    for name, indices in split_indices(dataset, seed=seed).items():
        counts = np.bincount(domains[indices], minlength=3)
        shares = base.SPLIT_PERCENTAGES[name] / 100 * np.array([70, 13, 37])
        assert (np.abs(counts - shares) < 2).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_split_cuts_a_group(seed):
    groups = tuple(f"person{index // 3}" for index in range(50))
    dataset = make_dataset(n=50, groups=groups)
    people = [
        {groups[i] for i in indices} for indices in split_indices(dataset, seed=seed).values()
    ]
    assert sum(map(len, people)) == len(set(groups))


def test_too_few_groups_for_three_splits_are_refused():
    dataset = make_dataset(n=50, groups=("one", "two") * 25)
    with pytest.raises(InputError, match="split 'val' would be empty, 50 images in 2 groups"):
        split_indices(dataset, seed=0)


@pytest.mark.parametrize("size", [(64,), (64, 64, 64), (64, 3), (64.0, 64), ("64", "64")])
def test_sizes_of_another_kind_are_refused(size):
    with pytest.raises(InputError, match="size must be 2 whole numbers of at least 4"):
        base.require_size("made", size)


def test_gigantic_size_is_refused():
    with pytest.raises(InputError, match="above 64000000 pixels"):
        base.require_size("made", (10_000, 10_000))


def test_names_of_an_option_keep_their_order():
    assert base.require_names("made", "parts", "b, a", known=("a", "b", "c")) == ("b", "a")


@pytest.mark.parametrize("value", ["", "a,,b", "a,a", "d", 1, None])
def test_names_of_an_option_are_known_and_differ(value):
    message = rf"options\.parts of made: expected one or more of a,b, separated .*got {value!r}"
    with pytest.raises(InputError, match=message):
        base.require_names("made", "parts", value, known=("a", "b"))
