import numpy as np
import pytest

from search_spaces.errors import InputError
from trainables.datasets.base import ImageDataset
from trainables.datasets.pairs import draw_pairs, read_pairs

WHOLE = "split,moving,fixed\ntrain,a1,b\nval,c,d\ntest,e,f\n"


@pytest.fixture
def dataset():
    """Images a1 and a2 of one person, b to f of one each."""
    ids = ("a1", "a2", "b", "c", "d", "e", "f")
    return ImageDataset(
        name="made",
        images=np.zeros((7, 1, 4, 4), np.float32),
        masks=np.zeros((7, 4, 4), np.uint8),
        labels=("a",),
        ids=ids,
        domains=np.zeros(7, np.int64),
        domain_names=("x",),
        classes=np.full(7, -1),
        targets=np.full(7, np.nan),
        groups=("a", "a", *ids[2:]),
        digest="0" * 64,
    )


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "pairs.csv"
        path.write_text(text)
        return path

    return write


def test_training_pairs_are_all_ordered_pairs():
    indices = {"train": np.array([4, 7, 9])}
    pairs = draw_pairs(indices, num_pairs=1, seed=0)["train"]
    np.testing.assert_array_equal(pairs, [[4, 7], [4, 9], [7, 4], [7, 9], [9, 4], [9, 7]])


def test_other_splits_get_distinct_pairs_of_their_own_images():
    indices = {"train": np.arange(2), "val": np.arange(2, 7), "test": np.arange(7, 20)}
    pairs = draw_pairs(indices, num_pairs=15, seed=3)
    for name in ("val", "test"):
        assert len({tuple(pair) for pair in pairs[name]}) == len(pairs[name]) == 15
        assert set(pairs[name].ravel()) <= set(indices[name])
        assert (pairs[name][:, 0] != pairs[name][:, 1]).all()


def test_few_images_give_all_their_pairs():
    pairs = draw_pairs({"val": np.array([1, 2, 5])}, num_pairs=6, seed=0)
    assert len(pairs["val"]) == 6


def test_drawn_pairs_follow_the_seed_alone():
    indices = {"val": np.arange(20), "test": np.arange(20, 40)}
    first, again, other = (draw_pairs(indices, num_pairs=10, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first["val"], again["val"])
    assert (first["val"] != other["val"]).any()
    assert (first["val"] + 20 != first["test"]).any()
    alone = draw_pairs({"test": indices["test"], "val": indices["val"]}, num_pairs=10, seed=0)
    np.testing.assert_array_equal(alone["test"], first["test"])


def test_an_image_alone_is_no_pair():
    with pytest.raises(InputError, match="split 'val' has 1 image and no pair; give more images"):
        draw_pairs({"train": np.arange(3), "val": np.array([3])}, num_pairs=5, seed=0)


def test_pairs_across_domains_have_two():
    domains = np.array([0, 1, 0, 0, 1])
    pairs = draw_pairs({"train": np.arange(5)}, num_pairs=1, seed=0, domains=domains)["train"]
    assert len(pairs) == 12
    assert (domains[pairs[:, 0]] != domains[pairs[:, 1]]).all()
    with pytest.raises(InputError, match="has 2 images and no pair of two domains"):
        draw_pairs({"val": np.array([0, 2])}, num_pairs=1, seed=0, domains=domains)


def test_of_very_many_pairs_a_million_are_drawn():
    pairs = draw_pairs({"train": np.arange(7, 2007)}, num_pairs=1, seed=0)["train"]
    assert len(np.unique(pairs, axis=0)) == 1_000_000
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert (pairs.min(), pairs.max()) == (7, 2006)


def test_pairs_are_read_by_the_ids_of_their_images(dataset, table):
    pairs = read_pairs(table(WHOLE + "train,b,a2\ntrain,a2,a1\n"), dataset)
    np.testing.assert_array_equal(pairs["train"], [[0, 2], [2, 1], [1, 0]])
    np.testing.assert_array_equal(pairs["val"], [[3, 4]])
    np.testing.assert_array_equal(pairs["test"], [[5, 6]])


def test_a_path_may_begin_at_home(dataset, table, monkeypatch):
    path = table(WHOLE)
    monkeypatch.setenv("HOME", str(path.parent))
    assert set(read_pairs("~/pairs.csv", dataset)) == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the columns split,moving,fixed, got ''"),
        ("moving,fixed\na1,b\n", "line 1: expected the columns split,moving,fixed, got 'moving"),
        (WHOLE + "dev,a1,b\n", "line 5: expected train, val, test, then two ids, got 'dev,a1,b'"),
        (WHOLE + "train,a1\n", "line 5: expected train, val, test, then two ids, got 'train,a1'"),
        (WHOLE + "\n", "line 5: expected train, val, test, then two ids, got ''"),
        (WHOLE + "train,a1,zz\n", "line 5: 'zz' is no image of made; an id is such as a1"),
        (WHOLE + "train,b,b\n", "line 5: an image with itself, b and b; leave it out"),
        (WHOLE + "val,c,d\n", "line 5: a pair that came before, c and d; leave it out"),
        (WHOLE.replace("val,c,d\n", ""), "no pair of split 'val'; every split needs one"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(dataset, table, text, message):
    with pytest.raises(InputError, match=rf"pairs\.csv: {message}"):
        read_pairs(table(text), dataset)


def test_a_person_in_two_splits_is_refused(dataset, table):
    message = (
        r"pairs\.csv: line 5: a2 is of a, who is in train by line 2 and in val by this one;"
        " a person belongs to one split"
    )
    with pytest.raises(InputError, match=message):
        read_pairs(table(WHOLE + "val,a2,c\n"), dataset)


def test_a_missing_table_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read"):
        read_pairs(tmp_path / "gone.csv", dataset)
