"""Which samples belong to a group, and in which order they are taken."""

from typing import Any

import numpy as np
import pytest

from explorer.grouping import Candidates
from search_spaces.errors import InputError
from trainables.base import Arrays

PEOPLE = ["ann", "ann", "bob", "bob", "eve", "eve"]
ATTRIBUTES = {
    "sex": np.array(["F", "F", "M", "M", "", ""], dtype=object),
    "age": np.array([70.0, 71.0, 80.0, 82.0, np.nan, 90.0]),
    "id": np.array([f"p{k}" for k in range(6)]),
    "site": np.array(["A"] * 6),
}
PAIRS = [(0, 2), (2, 0), (0, 1), (4, 5), (2, 5)]


def candidates(pairs: Any = PAIRS, **changes: Any) -> Candidates:
    masks = np.ones((6, 4, 4), dtype=np.uint8)
    masks[4:, :2] = 2  # the second label is eve's alone
    images = np.zeros((6, 1, 4, 4), dtype=np.float32)
    split = Arrays(images, masks, None if pairs is None else np.array(pairs))
    options = {"labels": ["core", "rim"], "attributes": ATTRIBUTES, "is_closed": True}
    return Candidates(split, PEOPLE, **(options | changes))


def pairs_of(group: Any) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in group.samples.pairs}


def test_all_are_pairs_of_the_split_in_a_settled_order_up_to_a_number() -> None:
    group = candidates().everything("dice", 20)
    assert (group.by, group.name, group.num_people) == (None, "all", 3)
    assert pairs_of(group) == set(PAIRS)
    fewer = candidates().everything("dice", 3)
    np.testing.assert_array_equal(fewer.samples.pairs, group.samples.pairs[:3])


def test_labels_have_the_pairs_in_which_they_are() -> None:
    core, rim = candidates().groups("label", "dice", 20)
    assert (core.name, core.metric, pairs_of(core)) == ("core", "dice/core", set(PAIRS))
    assert (rim.name, rim.metric, pairs_of(rim)) == ("rim", "dice/rim", {(4, 5), (2, 5)})
    assert pairs_of(candidates().everything("dice/rim", 20)) == pairs_of(rim)
    assert len(candidates([(0, 1)]).groups("label", "dice", 20)[1].samples) == 0


def test_subjects_are_within_or_across() -> None:
    within, across = candidates().groups("subject", "dice", 20)
    assert (within.name, pairs_of(within), within.num_people) == ("within", {(0, 1), (4, 5)}, 2)
    assert (across.name, pairs_of(across)) == ("across", {(0, 2), (2, 0), (2, 5)})


def test_without_a_table_other_pairs_follow_those_of_the_split() -> None:
    within, across = candidates(is_closed=False).groups("subject", "dice", 100)
    everyone = {(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)}
    assert pairs_of(within) == everyone
    assert {tuple(pair) for pair in within.samples.pairs[:2].tolist()} == {(0, 1), (4, 5)}
    assert len(across.samples) == 30 - len(everyone)


def test_columns_combine_categories_whichever_moves() -> None:
    found = {one.name: pairs_of(one) for one in candidates().groups("sex", "dice", 20)}
    # eve's is not known
    assert found == {"F-F": {(0, 1)}, "F-M": {(0, 2), (2, 0)}, "M-M": set()}


def test_numbers_are_cut_at_their_median() -> None:
    found = {one.name: pairs_of(one) for one in candidates().groups("age", "dice", 20)}
    assert found == {"<80-<80": {(0, 1)}, "<80-≥80": {(0, 2), (2, 0)}, "≥80-≥80": {(2, 5)}}


def test_images_are_grouped_by_what_they_are() -> None:
    women, men = candidates(None).groups("sex", "dice", 20)
    assert [(one.name, len(one.samples), one.num_people) for one in (women, men)] == [
        ("F", 2, 1),
        ("M", 2, 1),
    ]
    assert women.samples.pairs is None
    with pytest.raises(InputError, match="--by subject: expected a method that registers pairs"):
        candidates(None).groups("subject", "dice", 20)


@pytest.mark.parametrize(
    ("by", "metric", "message"),
    [
        ("scanner", "dice", "unknown --by 'scanner'; known: age, id, label, sex, site, subject"),
        ("label", "dice/rim", "--by label: expected a metric of all labels, dice; got dice/rim"),
        ("id", "dice", "--by id: expected a column of 1 to 5 different values, got 6"),
        ("empty", "dice", "--by empty: no image has a value"),
    ],
)
def test_what_cannot_be_grouped_is_refused(
    by: str, metric: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("explorer.grouping.MAX_VALUES", 5)
    attributes = ATTRIBUTES | ({"empty": np.full(6, np.nan)} if by == "empty" else {})
    with pytest.raises(InputError, match=message):
        candidates(attributes=attributes).groups(by, metric, 20)
