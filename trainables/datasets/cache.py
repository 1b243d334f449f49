"""Decoded images on the disk, to be mapped into memory: each file is decoded once.

`EXPLORER_CACHE_DIR`, by default `pareto-explorer` below the user's cache folder, holds a folder for
each choice of files, way of decoding and size. Its `files.json` keeps size and times of every file
that was read: where one of them differs, all are decoded again. The images are in a folder named by
the digest of what was read, so that a path stands for one content. Folders that nobody has used for
30 days are removed when something is decoded; all of it may be deleted at any time. An empty
`EXPLORER_CACHE_DIR` keeps nothing.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import inspect
import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import RunError
from trainables.datasets.base import Size

VARIABLE = "EXPLORER_CACHE_DIR"
UNUSED_S = 30 * 86400.0
_UNFINISHED, _UNFINISHED_S = "unfinished_", 86400.0
_LIBRARIES = ("nibabel", "numpy", "pillow", "pydicom", "scipy", "torch")


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a data folder's files hold.

    Attributes:
        ids: (n,) of the images.
        images: (n, C, *size), in memory or mapped; see `ImageDataset`.
        masks: (n, *size).
        digest: sha256 of what was read.
    """

    ids: tuple[str, ...]
    images: NDArray[np.float32]
    masks: NDArray[np.uint8]
    digest: str


@dataclass(frozen=True)
class Kept:
    """Where the decoded images of some files lie, or will.

    Attributes:
        folder: with `files.json`, and a folder with `images.npy` and `masks.npy`.
        files: bytes and times of last change of each, in the order in which they are listed.
    """

    folder: Path
    files: list[list[int]] = field(repr=False)

    def decoded(self, decode: Callable[[Allocate], Decoded]) -> Decoded:
        """What is kept of the files as they are now, mapped to be read; decoded if it must be.

        One process decodes; others that want the same wait for it.

        Raises:
            RunError: images cannot be kept.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "lock"):
                found = self._read()
                if found is None:
                    _remove_unused(self.folder.parent)
                    self._decode(decode)
                    found = self._read()
        except OSError as error:
            raise RunError(
                f"{self.folder}: decoded images cannot be kept there ({error.strerror}); set "
                f"{VARIABLE} to a folder with room, or to nothing to keep none"
            ) from error
        if found is None:
            raise RunError(
                f"{self.folder}: what was decoded a moment ago is gone; run again, or set "
                f"{VARIABLE} to nothing to keep none"
            )
        return found

    def _read(self) -> Decoded | None:
        table = self.folder / "files.json"
        try:
            told = json.loads(table.read_text())
            if told["files"] != self.files:
                return None
            images, masks = (
                np.load(self.folder / told["digest"] / f"{name}.npy", mmap_mode="r")
                for name in ("images", "masks")
            )
            os.utime(table)
            return Decoded(tuple(told["ids"]), images, masks, told["digest"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, EOFError):
            return None  # not there, or damaged

    def _decode(self, decode: Callable[[Allocate], Decoded]) -> None:
        """Only when all images are there do they take the place of earlier ones."""
        folder = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.folder))
        try:
            decoded = decode(functools.partial(_mapped, folder))
            target = self.folder / decoded.digest
            shutil.rmtree(target, ignore_errors=True)  # the same content, or damaged
            folder.rename(target)
            told = {"files": self.files, "ids": decoded.ids, "digest": decoded.digest}
            written = self.folder / "files.new"
            written.write_text(json.dumps(told))
            written.replace(self.folder / "files.json")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        for other in self.folder.iterdir():  # who has mapped the earlier files keeps them
            if other.is_dir() and other != target and not other.name.startswith(_UNFINISHED):
                shutil.rmtree(other, ignore_errors=True)


# (name, shape, type of the numbers) -> an array of that shape
Allocate = Callable[[str, Sequence[int], Any], NDArray[Any]]


def kept(
    name: str,
    root: Path,
    files: Sequence[Path],
    decode: Callable[..., Any],
    *,
    size: Size,
    num_each: int,
) -> Kept | None:
    """Where decoded images of these files are kept; None: nowhere.

    Args:
        name: of the data set.
        root: the folder below which the files are.
        files: all that are read.
        decode: a function of a module, or a `functools.partial` of one with arguments whose repr
            says all that they are.
        size: that images are decoded to.
        num_each: images that a sample holds.
    """
    parent = cache_folder()
    if parent is None:
        return None
    names = [path.relative_to(root).as_posix() for path in files]
    way = [_described(decode), _code_digest(), _versions()]
    key = repr([str(root.resolve()), names, size, num_each, way])
    folder = parent / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return Kept(folder, [_state(path) for path in files])


def cache_folder() -> Path | None:
    """Where decoded images are kept; None: nowhere, also where the user has no folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with suppress(RuntimeError):
        return Path(home).expanduser() / "pareto-explorer"
    return None


def in_memory(name: str, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """An `Allocate` that writes no file."""
    return np.empty(tuple(shape), dtype)


def _mapped(folder: Path, name: str, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    mapped: NDArray[Any] = np.lib.format.open_memmap(
        path, mode="w+", dtype=dtype, shape=tuple(shape)
    )
    # a sparse file on a full disk would end the process when it is written to
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return mapped


def _state(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return [-1, 0, 0]  # whoever reads it says what is wrong
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _described(decode: Any) -> str:
    """A text that differs wherever the decoding does."""
    if isinstance(decode, functools.partial):
        arguments = [*decode.args, *itertools.chain(*sorted(decode.keywords.items()))]
        return " ".join(map(_described, (decode.func, *arguments)))
    if inspect.isfunction(decode):
        own = Path(inspect.getfile(decode)).read_bytes()
        text = f"{decode.__module__}.{decode.__qualname__} {hashlib.sha256(own).hexdigest()}"
    else:
        text = repr(decode)
    if "<locals>" in text or re.search(r" at 0x[0-9a-f]+", text):
        raise ValueError(f"expected a function of a module and arguments with a repr, got {text}")
    return text


@functools.cache
def _code_digest() -> str:
    """sha256 of the loaders' own code: another way of decoding is another folder."""
    paths = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@functools.cache
def _versions() -> str:
    found = []
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_unused(parent: Path) -> None:
    """Remove what nobody has used for long, and what processes that were killed left behind."""
    now = time.time()
    for pattern, age_s in (("*/files.json", UNUSED_S), (f"*/{_UNFINISHED}*", _UNFINISHED_S)):
        for path in parent.glob(pattern):
            with suppress(OSError):
                if now - path.stat().st_mtime > age_s:
                    old = path.parent if path.name == "files.json" else path
                    shutil.rmtree(old, ignore_errors=True)
