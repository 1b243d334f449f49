import errno
import os
import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError, RunError
from trainables.datasets import cache, files, wbc
from trainables.datasets.files import Listing, Sample
from trainables.mapped import Mapped

SIZE = (8, 8)


@pytest.fixture
def root(tmp_path):
    """Three pictures in each of the two folders."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for number in (1, 2):
        folder = root / f"Dataset {number}"
        folder.mkdir(parents=True)
        for stem in ("001", "002", "003"):
            write_picture(folder / f"{stem}.bmp", rng)
            Image.fromarray(np.full((12, 10), 128, np.uint8)).save(folder / f"{stem}.png")
    return root


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The cache folder, which is not there yet."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded, in any order."""
    names = []

    def noting(path, *arguments, **options):
        names.append(path.name)
        return original(path, *arguments, **options)

    original = files.decode_image
    monkeypatch.setattr(wbc, "decode_image", noting)
    return names


def write_picture(path, rng):
    Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)


def require_equal(one, other):
    assert (one.ids, one.digest, one.labels) == (other.ids, other.digest, other.labels)
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.masks, other.masks)


def test_files_are_decoded_once(root, place, decoded, monkeypatch):
    first = wbc.load(root, size=SIZE)
    assert len(decoded) == 12
    again = wbc.load(root, size=SIZE)
    assert len(decoded) == 12
    assert isinstance(again.images, np.memmap)
    require_equal(first, again)
    monkeypatch.setenv(cache.VARIABLE, "")
    require_equal(again, wbc.load(root, size=SIZE))
    assert len(decoded) == 24
    assert [path.name.rpartition("-")[0] for path in place.iterdir()] == ["wbc"]


def test_what_is_done_to_the_images_stays_in_memory(root, place, decoded):
    first = wbc.load(root, size=SIZE)
    before = np.array(first.images)
    first.images[:] = 0
    np.testing.assert_array_equal(wbc.load(root, size=SIZE).images, before)
    assert len(decoded) == 12


@pytest.mark.parametrize("change", ["content", "time", "another", "fewer", "list"])
def test_changed_files_are_noticed(root, place, decoded, change):
    before = wbc.load(root, size=SIZE)
    path = root / "Dataset 1" / "002.bmp"
    if change == "content":
        state = path.stat()
        write_picture(path, np.random.default_rng(7))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    elif change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "another":
        for suffix in ("bmp", "png"):
            shutil.copy(root / "Dataset 1" / f"001.{suffix}", root / "Dataset 1" / f"009.{suffix}")
    elif change == "fewer":
        for suffix in ("bmp", "png"):
            (root / "Dataset 2" / f"003.{suffix}").unlink()
    else:
        (root / "Class Labels of Dataset 1.csv").write_text("image,class\n1,2\n2,3\n3,4\n")
    after = wbc.load(root, size=SIZE)
    assert len(decoded) > 12
    assert (after.digest == before.digest) == (change == "time")
    assert len(list(place.iterdir())) == 1


def test_sizes_and_folders_are_kept_apart(root, place, decoded, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    for folder, size in ((root, (8, 8)), (root, (9, 9)), (tmp_path / "copy", (8, 8))):
        assert wbc.load(folder, size=size).images.shape[2:] == size
    assert len(decoded) == 36
    for folder, size in ((root, (8, 8)), (root, (9, 9)), (tmp_path / "copy", (8, 8))):
        wbc.load(folder, size=size)
    assert len(decoded) == 36


def test_ways_of_decoding_are_kept_apart(root, place):
    path = root / "Dataset 1" / "001.bmp"
    listing = Listing(root, (Sample("a", path, path),), ())

    def images(decode):
        loaded = files.load_files("any", listing, decode, size=SIZE, labels=(), domain_names=("a",))
        return loaded.images.mean()

    assert images(partial(grey, 0.25)) == 0.25
    assert images(partial(grey, 0.5)) == 0.5
    assert images(partial(grey, 0.5, scale=0.5)) == 0.25
    assert images(partial(grey, 0.5, scale=2)) == 1
    assert images(partial(grey, 0.25)) == 0.25
    with pytest.raises(ValueError, match="expected a function of a module"):
        images(lambda *_: grey(0.1))


def grey(value, *_, scale=1):
    return np.full((1, *SIZE), scale * value, np.float32), np.zeros(SIZE, np.uint8)


def test_intensities_are_looked_at_before_they_are_kept(root, place):
    path = root / "Dataset 1" / "001.bmp"
    listing = Listing(root, (Sample("a", path, path),), ())
    for value in (1.5, float("nan")):
        with pytest.raises(ValueError, match="finite and in"):
            files.load_files(
                "any", listing, partial(grey, value), size=SIZE, labels=(), domain_names=("a",)
            )
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "files.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "no array"])
def test_a_damaged_cache_is_decoded_again(root, place, decoded, name, damage):
    mapped = wbc.load(root, size=SIZE)
    # who still maps a file that is cut dies
    first = replace(mapped, images=np.array(mapped.images), masks=np.array(mapped.masks))
    del mapped
    (path,) = place.glob(f"wbc-*/{name}")
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text("[]")
    require_equal(first, wbc.load(root, size=SIZE))
    assert len(decoded) == 24
    wbc.load(root, size=SIZE)
    assert len(decoded) == 24


def test_a_failed_decoding_leaves_nothing_and_takes_nothing(root, place, decoded):
    first = wbc.load(root, size=SIZE)
    path = root / "Dataset 2" / "003.bmp"
    whole = path.read_bytes()
    state = path.stat()
    path.write_bytes(whole[:100])
    with pytest.raises(InputError, match=r"003\.bmp: expected a complete"):
        wbc.load(root, size=SIZE)
    assert len(list(place.iterdir())) == 1
    path.write_bytes(whole)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    count = len(decoded)
    require_equal(first, wbc.load(root, size=SIZE))
    assert len(decoded) == count


def test_leftovers_of_killed_processes_are_removed(root, place):
    for name, age_s in (("unfinished_old", 2 * 86400), ("unfinished_new", 0)):
        (place / name).mkdir(parents=True)
        now = (place / name).stat().st_mtime
        os.utime(place / name, (now - age_s, now - age_s))
    wbc.load(root, size=SIZE)
    assert not (place / "unfinished_old").exists()
    assert (place / "unfinished_new").exists()


def test_a_folder_that_cannot_be_written_is_told(root, place, monkeypatch):
    place.write_text("a file")
    with pytest.raises(RunError, match=rf"cache: decoded images cannot .*{cache.VARIABLE}"):
        wbc.load(root, size=SIZE)
    place.unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"\(No space left on device\); set"):
        wbc.load(root, size=SIZE)
    assert list(place.iterdir()) == []


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "pareto-explorer"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "pareto-explorer"


def test_mapped_rows_index_as_an_array_does(root, place):
    whole = wbc.load(root, size=SIZE).images
    rows = np.array([4, 1, 3])
    mapped, array = Mapped(whole, rows), np.array(whole[rows])
    assert (mapped.shape, mapped.ndim, mapped.dtype) == (array.shape, array.ndim, array.dtype)
    assert (len(mapped), mapped.nbytes) == (len(array), array.nbytes)
    for index in (slice(None), slice(1, None, 2), 2, [2, 0], np.array([[0, 1], [2, 2]])):
        np.testing.assert_array_equal(mapped[index], array[index])
    np.testing.assert_array_equal(np.stack(list(mapped)), array)
    np.testing.assert_array_equal(mapped.select(slice(1, None))[:], array[1:])
    np.testing.assert_array_equal(np.asarray(mapped), array)


def test_mapped_rows_are_sent_as_their_place(root, place):
    mapped = Mapped(wbc.load(root, size=SIZE).images, np.arange(6).repeat(1000))
    sent = pickle.dumps(mapped)
    assert len(sent) < mapped.nbytes / 10
    np.testing.assert_array_equal(pickle.loads(sent)[7:9], mapped[7:9])
    write_picture(root / "Dataset 1" / "001.bmp", np.random.default_rng(3))
    wbc.load(root, size=SIZE)
    with pytest.raises(InputError, match=r"images\.npy: was written again since"):
        pickle.loads(sent)
    shutil.rmtree(place)
    with pytest.raises(InputError, match=r"images\.npy: cannot be read \(No such file"):
        pickle.loads(sent)
