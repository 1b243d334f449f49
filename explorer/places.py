"""Where explorations live: a folder on a disk, or a prefix in an object store.

A folder on a disk (or a mounted share) is a `pathlib.Path`; one in an object store is a
`upath.UPath`, which has what is used here of a path. Text becomes either in `place_of` alone.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from search_spaces.errors import InputError

if TYPE_CHECKING:
    from upath import UPath

Place: TypeAlias = "Path | UPath"

DEFAULT_RUNS_DIR = "runs"


def place_of(text: str | Place) -> Place:
    """A local path, or the place that s3://BUCKET/PREFIX names; nothing is asked of the store.

    Raises:
        InputError: another scheme, no bucket, or the packages for object stores are missing.
    """
    if not isinstance(text, str | Path):
        return text
    uri = re.match(r"([A-Za-z0-9]+):/+(.*)", str(text))  # a Path has lost one of the slashes
    if uri is None:
        return Path(text)
    if uri[1] != "s3" or not uri[2]:
        raise InputError(f"{text}: expected a folder on a disk, or s3://BUCKET/PREFIX")
    try:
        from explorer.objectstore import folder_of
    except ModuleNotFoundError as error:
        raise InputError(
            f"{text}: {error.name} is missing: pip install 'pareto-explorer[s3]' brings what "
            f"object stores need"
        ) from error
    return folder_of(f"s3://{uri[2].rstrip('/')}")


def runs_place(runs_dir: str | Place | None = None) -> Place:
    """The runs directory: the given one, otherwise `EXPLORER_RUNS_DIR`, otherwise `runs/`.

    Raises:
        InputError: it can be no such place; no such bucket, or no access to it.
        RunError: the object store does not answer.
    """
    place = place_of(runs_dir or os.environ.get("EXPLORER_RUNS_DIR") or DEFAULT_RUNS_DIR)
    if not isinstance(place, Path):
        from explorer.objectstore import require_access

        require_access(place)
    return place


def files_in(folder: Place, pattern: str) -> list[Place]:
    """What a glob pattern finds, sorted as paths are."""
    found: list[Place] = [*folder.glob(pattern)]
    return sorted(found, key=lambda path: tuple(path.parts))


@contextmanager
def written_locally(place: Place) -> Iterator[Path]:
    """A path for libraries that write files: the place's own, or one that is copied there."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="explorer_") as scratch_dir:
        path = Path(scratch_dir) / place.name
        yield path
        if path.exists():
            place.fs.put_file(str(path), place.path)


def fetched(place: Place, folder: Path) -> Path:
    """A path for libraries that read files: the place's own, or that of a copy in `folder`."""
    if isinstance(place, Path):
        return place
    place.fs.get_file(place.path, str(folder / place.name))
    return folder / place.name


def mark_of(place: Place) -> object:
    """Another one once the file is; object stores date to the second, so theirs has the ETag."""
    return place.stat().st_mtime_ns if isinstance(place, Path) else place.fs.ukey(place.path)
