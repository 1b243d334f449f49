"""Arrays that stay in a file: only the rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError


class Mapped:
    """Some rows of an array in a `.npy` file; they index as an array does.

    The file is opened when it is first needed: what is sent to another process is its path.

    Args:
        path: of the file, which stands for one content.
        rows: (n,) indices of its array.
    """

    def __init__(self, path: Path, rows: NDArray[np.int64]) -> None:
        self.path, self.rows = path, rows

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "rows": self.rows}

    @cached_property
    def array(self) -> NDArray[Any]:
        """The whole array of the file.

        Raises:
            InputError: it cannot be read.
        """
        try:
            array: NDArray[Any] = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{self.path}: cannot be read ({error}); decoded images of more than "
                f"dataset.memory_bytes must lie on every machine that trains until it has: set "
                f"EXPLORER_CACHE_DIR to a folder that all of them share"
            ) from error
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    @property
    def ndim(self) -> int:
        return self.array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def nbytes(self) -> int:
        return len(self.rows) * self.array[:1].nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """Read rows, by whatever indexes the first axis of an array."""
        chosen = rows if isinstance(rows, slice | int) else np.asarray(rows)
        return np.array(self.array[self.rows[chosen]])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def select(self, rows: Any) -> Mapped:
        """Some of these rows, still in the file."""
        return Mapped(self.path, self.rows[rows])


def mapped(array: NDArray[Any], rows: NDArray[np.int64]) -> Mapped | None:
    """Rows of an array that is mapped from a whole file; None of one that is not."""
    if not isinstance(array, np.memmap) or isinstance(array.base, np.ndarray):
        return None
    return Mapped(Path(str(array.filename)), rows)


def selected(array: Any, rows: Any) -> Any:
    """Rows of an array, in memory, or of a `Mapped` one, still in its file."""
    return array.select(rows) if isinstance(array, Mapped) else array[rows]
