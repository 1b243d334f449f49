"""Arrays that stay in a file: only the rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError


class Mapped:
    """Some rows of an array in a `.npy` file; it indexes as an array does and is pickled as place.

    Args:
        array: mapped from a whole file.
        rows: (n,) indices of it.
    """

    def __init__(self, array: np.memmap[Any, Any], rows: NDArray[np.int64]) -> None:
        self.array, self.rows = array, rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self.array[:1].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Read rows, by whatever indexes the first axis of an array."""
        chosen = rows if isinstance(rows, slice | int) else np.asarray(rows)
        return np.asarray(self.array[self.rows[chosen]])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def select(self, rows: Any) -> Mapped:
        """Some of these rows, still in the file."""
        return Mapped(self.array, self.rows[rows])

    def __reduce__(self) -> tuple[Any, ...]:
        path = Path(str(self.array.filename))
        return _opened, (str(path), path.stat().st_mtime_ns, self.rows)


def _opened(name: str, changed_ns: int, rows: NDArray[np.int64]) -> Mapped:
    path = Path(name)
    try:
        if path.stat().st_mtime_ns == changed_ns:
            return Mapped(np.load(path, mmap_mode="c", allow_pickle=False), rows)
        told = "was written again since this work began"
    except OSError as error:
        told = f"cannot be read ({error.strerror})"
    raise InputError(
        f"{path}: {told}; decoded images of more than dataset.memory_bytes must lie, unchanged, "
        f"on every machine that trains: set EXPLORER_CACHE_DIR to a folder that all of them share"
    )


def selected(array: Any, rows: Any) -> Any:
    """Rows of an array, in memory, or of a `Mapped` one, still in its file."""
    return array.select(rows) if isinstance(array, Mapped) else array[rows]
