import errno
import os
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import InputError, RunError
from trainables.datasets import cache, files, wbc
from trainables.datasets.files import Listing, Sample
from trainables.mapped import mapped

ROOT = Path(__file__).parents[3]
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


def test_kept_images_cannot_be_written_to(root, place):
    first = wbc.load(root, size=SIZE)
    with pytest.raises(ValueError, match="read-only"):
        first.images[:] = 0


@pytest.mark.parametrize("change", ["content", "time", "replaced", "another", "fewer", "list"])
def test_changed_files_are_noticed(root, place, decoded, change):
    before = wbc.load(root, size=SIZE)
    path = root / "Dataset 1" / "002.bmp"
    state = path.stat()
    if change == "content":
        write_picture(path, np.random.default_rng(7))
    elif change == "time":
        os.utime(path, ns=(0, 0))
    elif change == "replaced":  # by one of the same size, with its times, as rsync does
        write_picture(path, np.random.default_rng(7))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
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
    count = len(decoded)
    require_equal(after, wbc.load(root, size=SIZE))
    assert len(decoded) == count
    for folder in place.iterdir():  # of every choice of files one content
        assert len([path for path in folder.iterdir() if path.is_dir()]) == 1


def test_choices_of_files_are_kept_apart(root, place, decoded):
    wbc.load(root, size=SIZE)
    pictures = root / "Dataset 2" / "003.bmp", root / "Dataset 2" / "003.png"
    for path in pictures:
        path.rename(root / path.name)
    wbc.load(root, size=SIZE)
    assert len(decoded) == 22
    assert len(list(place.iterdir())) == 2


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
    assert not list(place.glob("*/*/*"))


@pytest.mark.parametrize("name", ["images.npy", "masks.npy", "files.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "no array"])
def test_a_damaged_cache_is_decoded_again(root, place, decoded, name, damage):
    mapped = wbc.load(root, size=SIZE)
    # who still maps a file that is cut dies
    first = replace(mapped, images=np.array(mapped.images), masks=np.array(mapped.masks))
    del mapped
    (path,) = place.glob(f"wbc-*/**/{name}")
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
    wbc.load(root, size=SIZE)
    before = sorted(place.glob("**/*.npy"))
    path = root / "Dataset 2" / "003.bmp"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"003\.bmp: expected a complete"):
        wbc.load(root, size=SIZE)
    assert sorted(place.glob("**/*.npy")) == before
    assert not list(place.glob("*/unfinished_*"))


def test_what_nobody_uses_is_removed(root, place):
    wbc.load(root, size=SIZE)
    (used,) = place.iterdir()
    for name, age_s in (("wbc-old", 31), ("wbc-new", 29)):
        (place / name).mkdir()
        (place / name / "files.json").write_text("{}")
        then = time.time() - 86400 * age_s
        os.utime(place / name / "files.json", (then, then))
    for name, age_s in (("unfinished_old", 2 * 86400), ("unfinished_new", 0)):
        (used / name).mkdir()
        then = time.time() - age_s
        os.utime(used / name, (then, then))
    then = time.time() - 86400 * 31
    os.utime(used / "files.json", (then, then))
    wbc.load(root, size=SIZE)  # is a use
    wbc.load(root, size=(9, 9))
    assert used.exists()
    assert not (place / "wbc-old").exists()
    assert (place / "wbc-new").exists()
    assert not (used / "unfinished_old").exists()
    assert (used / "unfinished_new").exists()


def test_processes_that_want_the_same_decode_once(root, place):
    """Others wait for the first and read what it has kept."""
    script = (
        "import sys\n"
        "from trainables.datasets import files, wbc\n"
        "decode = wbc.decode_image\n"
        "names = []\n"
        "wbc.decode_image = lambda path, *a, **o: (names.append(path), decode(path, *a, **o))[1]\n"
        f"wbc.load({str(root)!r}, size={SIZE})\n"
        "print(len(names))\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(2)
    ]
    assert sorted(one.communicate()[0].strip() for one in started) == ["0", "12"]


def test_a_folder_that_cannot_be_written_is_told(root, place, monkeypatch):
    place.write_text("a file")
    with pytest.raises(RunError, match=rf"wbc-\w+: decoded images cannot .*{cache.VARIABLE}"):
        wbc.load(root, size=SIZE)
    place.unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"\(No space left on device\); set"):
        wbc.load(root, size=SIZE)
    assert not list(place.glob("**/*.npy"))


def test_memory_that_cannot_be_mapped_is_told(root, place, monkeypatch):
    wbc.load(root, size=SIZE)

    def refused(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(np, "load", refused)
    with pytest.raises(RunError, match=r"\(Cannot allocate memory\)"):
        wbc.load(root, size=SIZE)


def test_the_default_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "pareto-explorer"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "pareto-explorer"

    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(type(tmp_path), "expanduser", nobody)
    assert cache.cache_folder() is None


def test_mapped_rows_index_as_an_array_does(root, place):
    whole = wbc.load(root, size=SIZE).images
    rows = np.array([4, 1, 3])
    own, array = mapped(whole, rows), np.array(whole[rows])
    assert (own.shape, own.ndim, own.dtype) == (array.shape, array.ndim, array.dtype)
    assert (len(own), own.nbytes) == (len(array), array.nbytes)
    for index in (slice(None), slice(1, None, 2), 2, [2, 0], np.array([[0, 1], [2, 2]])):
        np.testing.assert_array_equal(own[index], array[index])
        assert own[index].flags.writeable
    np.testing.assert_array_equal(np.stack(list(own)), array)
    np.testing.assert_array_equal(own.select(slice(1, None))[:], array[1:])
    np.testing.assert_array_equal(np.asarray(own), array)
    assert mapped(array, rows) is None
    assert mapped(whole[1:], rows) is None


def test_mapped_rows_are_sent_as_their_place(root, place):
    whole = wbc.load(root, size=SIZE).images
    own = mapped(whole, np.arange(6).repeat(1000))
    expected = own[7:9]
    sent = pickle.dumps(own)
    assert len(sent) < own.nbytes / 10
    np.testing.assert_array_equal(pickle.loads(sent)[7:9], expected)
    write_picture(root / "Dataset 1" / "001.bmp", np.random.default_rng(3))
    wbc.load(root, size=SIZE)
    np.testing.assert_array_equal(own[7:9], expected)  # is still mapped
    late = pickle.loads(sent)
    with pytest.raises(InputError, match=r"images\.npy: cannot be read \(.*No such file.*share"):
        late[7:9]
