"""Decoded images on the disk, to be mapped into memory: each file is decoded once.

`EXPLORER_CACHE_DIR`, by default `pareto-explorer` below the user's cache folder, holds a folder per
data folder, way of decoding and size. Its `files.json` keeps size and time of last change of every
file that was read: where one of them differs, or there are others, all are decoded again. An empty
`EXPLORER_CACHE_DIR` keeps nothing. A cache folder may be deleted at any time.
"""

from __future__ import annotations

import errno
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import RunError
from trainables.datasets.base import Size

VARIABLE = "EXPLORER_CACHE_DIR"
_TEMPORARY, _OLD_S = "unfinished_", 86400.0


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
        folder: with `images.npy`, `masks.npy` and `files.json`.
        files: name below the data folder, bytes and time of last change of each.
    """

    folder: Path
    files: list[list[Any]] = field(repr=False)

    def read(self) -> Decoded | None:
        """What was kept of the files as they are now, mapped; changes to it are not written."""
        try:
            told = json.loads((self.folder / "files.json").read_text())
            if told["files"] != self.files:
                return None
            images, masks = (
                np.load(self.folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
                for name in ("images", "masks")
            )
            return Decoded(tuple(told["ids"]), images, masks, told["digest"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def decoded_anew(self, decode: Callable[[Allocate], Decoded]) -> Decoded:
        """Decode into files; only when all are there do they take the place of earlier ones.

        Raises:
            RunError: they cannot be written.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            _remove_unfinished(self.folder.parent)
            folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder.parent))
            try:
                decoded = decode(functools.partial(_mapped, folder))
                told = {"files": self.files, "ids": decoded.ids, "digest": decoded.digest}
                (folder / "files.json").write_text(json.dumps(told))
                self._replace(folder)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise RunError(
                f"{self.folder.parent}: decoded images cannot be kept there ({error.strerror}); "
                f"set {VARIABLE} to a folder with room, or to nothing to keep none"
            ) from error
        return self.read() or decoded

    def _replace(self, folder: Path) -> None:
        if self.folder.exists():  # who has mapped the earlier files keeps them
            self.folder.rename(folder / "earlier")
        try:
            folder.rename(self.folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise
        shutil.rmtree(self.folder / "earlier", ignore_errors=True)


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
    key = repr([str(root.resolve()), size, num_each, _described(decode), _code_digest()])
    listed = [[path.relative_to(root).as_posix(), *_state(path)] for path in files]
    folder = parent / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return Kept(folder, listed)


def cache_folder() -> Path | None:
    """Where decoded images are kept; None: nowhere."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "pareto-explorer"


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
        return [-1, 0]  # whoever reads it says what is wrong
    return [found.st_size, found.st_mtime_ns]


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


def _remove_unfinished(parent: Path) -> None:
    """Remove what processes that were killed have left behind."""
    for folder in parent.glob(f"{_TEMPORARY}*"):
        try:
            is_old = time.time() - folder.stat().st_mtime > _OLD_S
        except OSError:
            continue
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)
