"""Tables on disk or in an object store: append, manifest, load; small files and the writer's lock.

A store is a folder, on a disk or in an object store (`explorer.places`), of Parquet parts behind
`manifest.json`. Only parts that the manifest names exist for a reader, and it is replaced
atomically, so that a writer killed at any point leaves the table that was last published. One
process writes (`write_lock`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import (
    FileSelector,
    FileSystem,
    FileType,
    FSSpecHandler,
    LocalFileSystem,
    PyFileSystem,
)

from explorer.measurements import (
    FIXED_FIELDS,
    KEY,
    SAMPLE_FIELDS,
    SAMPLE_KEY,
    SCHEMA_VERSION,
    join_tables,
)
from explorer.places import Place, place_of
from search_spaces.errors import InputError, RunError, unknown_name

_MANIFEST = "manifest.json"
_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NUM_READERS = 8


@dataclass(frozen=True)
class _Part:
    """A published file, and the names appended under which its rows came."""

    file: str
    rows: int
    bytes: int
    sha256: str
    names: list[str]


class TableStore:
    """An append-only table; every row's key is the caller's to keep unique (see `keys`).

    Args:
        path: folder, also as text; created by the first append.
        fields: columns that every appended table has.
        key: columns that identify a row.
    """

    def __init__(
        self, path: str | Place, *, fields: pa.Schema = FIXED_FIELDS, key: Sequence[str] = KEY
    ) -> None:
        self.path = place_of(path)
        self.fields = fields
        self.key = tuple(key)
        self._filesystem, self._root = filesystem_of(self.path)

    def __repr__(self) -> str:
        return f"TableStore({str(self.path)!r})"

    def append(self, table: pa.Table, *, part: str | None = None) -> None:
        """Write a table as one part and publish it; nothing happens if `part` is published already.

        Args:
            table: has every column of `fields`.
            part: name of the part, a number if None.

        Raises:
            ValueError: a column of `fields` is missing or has another type, or a bad part name.
            InputError: the manifest is damaged, missing or too new.
            RunError: disk full, or not writable; the published table stays as it was.
        """
        for column in self.fields:
            if (
                column.name not in table.column_names
                or table.field(column.name).type != column.type
            ):
                raise ValueError(f"expected a column {column.name} of type {column.type}")
        parts = self._parts()
        names = {name for published in parts for name in published.names}
        if part is None:
            numbers = (f"{i:06d}" for i in count(len(names)))
            part = next(name for name in numbers if name not in names)
        if not _PART_NAME.fullmatch(part):
            raise ValueError(f"a part's name is of letters, digits and . _ -, got {part!r}")
        if part in names:
            return
        if not parts:
            self._publish([])  # from now on, parts without a manifest mean damage
        self._publish([*parts, self._write_part(f"part-{part}.parquet", table, [part])])

    def version(self) -> str:
        """A name for what is published now: equal versions mean equal tables."""
        try:
            return hashlib.sha256(_read(self.path / _MANIFEST)).hexdigest()
        except OSError:
            return ""  # `load` says what is wrong

    def load(
        self,
        columns: Sequence[str] | None = None,
        *,
        without: Collection[str] = (),
        verify: bool = False,
    ) -> pa.Table:
        """Return the published rows in the order of appending; absent values are null.

        Args:
            columns: names to read, in this order; all by default (fixed first, families sorted).
            without: names of those not to read, where `columns` names none.
            verify: check the parts' sha256 too, not only sizes and numbers of rows.

        Raises:
            InputError: a damaged, missing or too new manifest or part, or an unknown column.
        """
        parts = self._parts()
        while True:
            try:
                return self._read(parts, columns, without=without, verify=verify)
            except InputError:
                newer = self._parts()
                if newer == parts:
                    raise
                parts = newer  # compacted by the writer while we were reading

    def copy_to(self, path: Path) -> None:
        """Write all rows into one local Parquet file."""
        pq.write_table(self.load(), path, compression="zstd")

    def keys(self) -> set[tuple[Any, ...]]:
        """The keys of all rows."""
        return set(zip(*(c.to_pylist() for c in self.load(self.key).columns), strict=True))

    def compact(self, *, above: int = 1) -> None:
        """Merge all parts into one, and remove files that no manifest names.

        Args:
            above: how many parts there must be more of; else nothing is merged.

        Raises:
            InputError: the store is damaged (nothing is changed then).
            RunError: disk full, or not writable; the published table stays as it was.
        """
        parts = self._parts()
        if len(parts) > above:
            names = [name for part in parts for name in part.names]
            table = self._read(parts, None, verify=True)
            # More names at each merge: the file is never one that is published now.
            parts = [self._write_part(f"merged-{len(names)}.parquet", table, names)]
            self._publish(parts)
        published = {part.file for part in parts}
        for file in self._files():
            if file not in published and file.endswith((".parquet", ".tmp")):
                with suppress(OSError):  # left for the next time
                    self._filesystem.delete_file(f"{self._root}/{file}")

    def drop_missing(self) -> int:
        """Forget the parts whose file was deleted, so that a resumed run measures them again.

        Returns:
            The number of rows forgotten.

        Raises:
            InputError: the manifest is damaged, missing or too new.
            RunError: disk full, or not writable.
        """
        parts, files = self._parts(), self._files()
        kept = [part for part in parts if part.file in files]
        if len(kept) < len(parts):
            self._publish(kept)
        return sum(part.rows for part in parts) - sum(part.rows for part in kept)

    def _files(self) -> dict[str, int]:
        """Sizes by name, from one listing: an object store is asked once, not for each part."""
        selector = FileSelector(self._root, allow_not_found=True)
        infos = self._filesystem.get_file_info(selector)
        return {info.base_name: info.size for info in infos if info.type == FileType.File}

    def _parts(self) -> list[_Part]:
        place = self.path / _MANIFEST
        remedy = (
            f"restore it from a backup, or delete {self.path} and run "
            f"`explorer resume {_exploration_id(place)}`, which measures everything again"
        )
        try:
            manifest = _read_json(place, remedy)
        except FileNotFoundError as error:
            if any(file.endswith(".parquet") for file in self._files()):
                raise InputError(
                    f"{place} is missing, but its parts are there; {remedy}"
                ) from error
            return []
        try:
            if manifest["schema_version"] > SCHEMA_VERSION:
                raise InputError(
                    f"{place} has schema version {manifest['schema_version']}, expected at most "
                    f"{SCHEMA_VERSION}; upgrade explorer to read it"
                )
            if tuple(manifest["key"]) != self.key:
                raise InputError(
                    f"{place}: expected rows with key {self.key}, got {manifest['key']}; {remedy}"
                )
            return [_Part(**entry) for entry in manifest["parts"]]
        except (KeyError, TypeError) as error:
            raise InputError(f"{place} is damaged: expected a list of parts; {remedy}") from error

    def _publish(self, parts: Sequence[_Part]) -> None:
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "key": list(self.key),
            "parts": [asdict(part) for part in parts],
        }
        write_bytes(self.path / _MANIFEST, _encode_json(manifest))

    def _write_part(self, file: str, table: pa.Table, names: list[str]) -> _Part:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = sink.getvalue()
        write_bytes(self.path / file, data)
        return _Part(file, table.num_rows, data.size, hashlib.sha256(data).hexdigest(), names)

    def _read(
        self,
        parts: Sequence[_Part],
        columns: Sequence[str] | None,
        *,
        without: Collection[str] = (),
        verify: bool,
    ) -> pa.Table:
        sizes = self._files() if parts else {}
        for part in parts:
            if part.file not in sizes:
                raise self._damaged(part, "no file")
            if sizes[part.file] != part.bytes:
                raise self._damaged(part, f"{sizes[part.file]} bytes")

        def is_wanted(name: str) -> bool:
            return name not in without if columns is None else name in columns

        with ThreadPoolExecutor(_NUM_READERS) as readers:
            tables = list(readers.map(lambda part: self._read_part(part, is_wanted, verify), parts))
        table = join_tables([self.fields.empty_table(), *tables])
        if columns is None:
            return table.select([name for name in table.column_names if is_wanted(name)])
        for name in columns:
            if name not in table.column_names:
                raise unknown_name(
                    "column", name, self._read(parts, None, verify=False).column_names
                )
        return table.select(columns)

    def _read_part(self, part: _Part, is_wanted: Callable[[str], bool], verify: bool) -> pa.Table:
        try:
            with self._open(part) as source:
                if verify and hashlib.sha256(source.read()).hexdigest() != part.sha256:
                    raise self._damaged(part, "other content")
                file = pq.ParquetFile(source)
                num_rows, present = file.metadata.num_rows, file.schema_arrow.names
                # The key's column keeps the number of rows where a part has none of the others.
                wanted = [name for name in present if is_wanted(name) or name == self.key[0]]
                table = file.read(wanted)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(part, "a file that cannot be read") from error
        if num_rows != part.rows:
            raise self._damaged(part, f"{num_rows} rows")
        return table

    def _open(self, part: _Part) -> pa.NativeFile:
        if isinstance(self.path, Path):
            return self._filesystem.open_input_file(f"{self._root}/{part.file}")
        return pa.BufferReader(_read(self.path / part.file))  # one request instead of several

    def _damaged(self, part: _Part, found: str) -> InputError:
        place = self.path / part.file
        return InputError(
            f"{place}: expected {part.bytes} bytes with {part.rows} rows, got {found}; restore it "
            f"from a backup, or delete it and run `explorer resume {_exploration_id(place)}`, "
            "which measures its rows again"
        )


def measurements_store(folder: Place) -> TableStore:
    """The measurements of the exploration in a folder."""
    return TableStore(folder / "measurements")


def samples_store(folder: Place) -> TableStore:
    """The values of every test image of the exploration in a folder."""
    return TableStore(folder / "samples", fields=SAMPLE_FIELDS, key=SAMPLE_KEY)


def set_state(folder: Place, **changes: Any) -> None:
    """Change keys of an exploration's state; a new status makes a former error forgotten."""
    state = read_json(folder / "state.json")
    if "status" in changes:
        state.pop("error", None)
    write_json(folder / "state.json", state | changes)


def write_json(path: str | Place, value: object) -> None:
    """Write a small JSON file; as `write_bytes`.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
        RunError: disk full, or not writable; a file that was there stays as it was.
    """
    write_bytes(path, _encode_json(value))


def write_text(path: str | Place, text: str) -> None:
    """Write a small text file in UTF-8; as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Place, data: bytes | pa.Buffer) -> None:
    """Write a whole file or none, its directory with it: a rename on a disk, one PUT in a store.

    Raises:
        RunError: disk full, or not writable; a file that was there stays as it was.
    """
    place = place_of(path)
    try:
        if isinstance(place, Path):
            _replace_file(place.absolute(), data)
        else:
            place.fs.pipe_file(place.path, bytes(data))
    except OSError as error:
        raise _write_error(str(path), error) from error


def create_folder(folder: Place) -> None:
    """Take a folder that nobody has; of two processes that try at once, one gets it.

    Raises:
        FileExistsError: it is taken.
        OSError: not writable.
    """
    if isinstance(folder, Path):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        return
    if folder.exists():
        raise FileExistsError(str(folder))
    folder.fs.pipe_file((folder / "lock").path, _holder().encode(), mode="create")


def read_json(path: str | Place) -> Any:
    """Return what a JSON file holds.

    Raises:
        InputError: the file is missing, unreadable or damaged.
    """
    remedy = "restore it from a backup"
    try:
        return _read_json(place_of(path), remedy)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: expected a JSON file; {remedy}") from error


@contextmanager
def write_lock(path: str | Place) -> Iterator[None]:
    """Hold the lock that makes this process the one writer of an exploration, RUNS/ID/lock.

    The kernel releases it when the process dies. Object stores have no locks: there the lock lies
    in the machine's temporary directory and only keeps out writers on the same machine.

    Raises:
        InputError: another process, which the message names, holds it.
        RunError: the lock file cannot be written.
    """
    place = target = place_of(path)
    if not isinstance(target, Path):
        digest = hashlib.sha256(str(place).encode()).hexdigest()[:12]
        target = Path(tempfile.gettempdir()) / f"explorer-{os.getuid()}-{digest}.lock"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise _write_error(str(path), error) from error
    try:
        _take_lock(descriptor, place)
        yield
    finally:
        os.close(descriptor)


def _holder() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on host {socket.gethostname()} since {since}\n"


def _take_lock(descriptor: int, path: Place) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file is never removed: a lock on a removed file would keep nobody out.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _holder().encode(), 0)
    except BlockingIOError as error:
        other = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        raise InputError(
            f"exploration {_exploration_id(path)} is being written by "
            f"{other or 'another process'}; wait for it or stop it"
        ) from error
    except OSError as error:
        raise _write_error(str(path), error) from error


def _exploration_id(path: Place) -> str:
    """ID of RUNS/ID/lock or RUNS/ID/measurements/FILE."""
    parent = path.absolute().parent
    return (parent.parent if parent.name in ("measurements", "samples") else parent).name


def filesystem_of(place: Place) -> tuple[FileSystem, str]:
    """The file system of a place, for pyarrow and Ray, and the place's path there."""
    if isinstance(place, Path):
        return LocalFileSystem(), str(place.absolute())
    return PyFileSystem(FSSpecHandler(place.fs)), place.path


def _encode_json(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _read(path: Place) -> bytes:
    if isinstance(path, Path):
        return path.read_bytes()
    # one request: between two the file could be replaced
    data: bytes = path.fs.cat_file(path.path, max_concurrency=1)
    return data


def _read_json(place: Place, remedy: str) -> Any:
    try:
        return json.loads(_read(place))
    except FileNotFoundError:
        raise
    except OSError as error:
        problem = error.strerror or error
        raise InputError(f"{place} cannot be read ({problem}); make it readable") from error
    except ValueError as error:
        raise InputError(f"{place} is damaged: expected JSON, got {error}; {remedy}") from error


def _replace_file(target: Path, data: bytes | pa.Buffer) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename survives a power cut
    finally:
        os.close(directory)


def _write_error(place: str, error: OSError) -> RunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        problem, remedy = "disk full", "free some space"
    else:
        problem, remedy = "not writable", "make it writable"
    return RunError(
        f"{place}: {problem} ({error.strerror or error}); nothing recorded was lost; {remedy}, "
        "then run or resume again"
    )
