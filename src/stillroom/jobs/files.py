"""Folders replaced at once, file locks, lists on disk and shared SQLite databases.

One file is replaced by ``objects.disk.atomic_write``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import sqlite3
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from typing import IO, Any, Self, TypeVar, overload

from filelock import AcquireReturnProxy, FileLock, Timeout

from stillroom.errors import DataError, ResourceError
from stillroom.objects.disk import full_disk_as_error, sync_path
from stillroom.provenance.signing.artifacts import LOCK_FILE
from stillroom.records import Record, RecordWriter, encode_record

__all__ = [
    "LOCK_FILE",
    "DiskList",
    "DiskRecordList",
    "cache_folder",
    "draft_folder",
    "hold_folder",
    "lock_folder",
    "open_cache",
    "open_shared_database",
    "refuse_existing",
    "refuse_existing_file",
    "replace_folder",
    "swap_folders",
    "sync_folder",
    "unpack_checkpoint",
]


_BESIDE_RESULTS = ("model.sig", "signer.pub", "claims.jsonl", ".DS_Store", "*/.DS_Store")
_AT_FDCWD, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE on Linux."""


def lock_folder(
    folder: Path, busy: ResourceError, *, wait: bool = False
) -> AcquireReturnProxy[FileLock]:
    """Take the exclusive lock ``LOCK_FILE`` of a folder; the kernel frees it at a kill.

    Args:
        folder: An existing folder.
        busy: What to raise while another thread or process holds the lock.
        wait: Wait for the holder instead.

    Returns:
        A context manager that frees the lock; ``.lock.release()`` does it from any thread.

    Raises:
        ResourceError: ``busy``, or if the disk has no such locks (a lock that is only a file would
            outlive a kill).
        OSError: If the file cannot be opened.
    """
    path = folder / LOCK_FILE
    if not folder.is_dir():  # FileLock would create it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    try:
        return FileLock(path, blocking=wait, thread_local=False, fallback_to_soft=False).acquire()
    except Timeout as error:
        raise busy from error
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}:
            raise
        raise ResourceError(
            f"the disk of {folder} has no file locks",
            code="resource.busy",
            where=str(folder),
            expected="a disk on which processes can exclude each other",
            next="choose a folder on another disk",
        ) from error


@contextmanager
def hold_folder(folder: Path, *, is_exclusive: bool = False) -> Iterator[bool]:
    """Hold a folder while it is read, so that nobody who asks for it exclusively removes it.

    The lock is that of the folder itself: who may only read it writes no file there. Readers wait
    for a remover, who does not wait. A missing folder, or one on a disk without locks, is not held.

    Yields:
        Whether it is held, or nobody can hold it.
    """
    is_held = True
    with ExitStack() as opened:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            how = fcntl.LOCK_EX | fcntl.LOCK_NB if is_exclusive else fcntl.LOCK_SH
            fcntl.flock(descriptor, how)
        except OSError as error:
            is_held = not isinstance(error, BlockingIOError)
        yield is_held


def cache_folder() -> Path:
    """Return the cache folder: STILLROOM_CACHE, else the user's cache."""
    override = os.environ.get("STILLROOM_CACHE")
    if override:
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillroom"


def sync_folder(folder: Path, *, but: Collection[str] = ()) -> None:
    """Force every file and directory below ``folder`` to disk.

    Args:
        folder: The folder.
        but: Names in it that need not survive a power loss.
    """
    entries = [path for path in folder.iterdir() if path.name not in but]
    below = [path for entry in entries if _is_folder(entry) for path in entry.rglob("*")]
    for path in [*below, *entries, folder]:
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_path(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def replace_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; an existing target is moved aside until then."""
    aside = target.with_name(f".{target.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if target.exists():
        target.rename(aside)
    try:
        source.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    sync_path(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder, which becomes ``target`` if the body succeeds; else it is removed.

    Raises:
        ResourceError: If another process writes ``target``, or the disk is full; ``target`` is as
            before.
    """
    work = target.with_name(f".{target.name}.draft")
    draft = work / "output"  # the lock stays beside it
    busy = ResourceError(
        f"another process is writing {target}",
        code="resource.busy",
        where=str(target),
        expected="one writer at a time",
        next="wait for it, or choose another --out",
    )
    lock: AbstractContextManager[object]
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(work, busy)
    except ResourceError as error:
        if error is busy:
            raise
        lock = nullcontext()  # a disk without locks: writers do not see each other
    except (FileExistsError, FileNotFoundError) as error:  # its writer has just removed it
        raise busy from error
    with lock:
        try:
            for left in work.iterdir():  # of a writer that was killed
                if _is_folder(left):
                    shutil.rmtree(left)
                elif left.name != LOCK_FILE:
                    left.unlink()
            draft.mkdir()
            with full_disk_as_error(target, next="free some space or choose another --out"):
                yield draft
                replace_folder(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)  # last: frees the name of the lock


def unpack_checkpoint(name: str, write: Callable[[Path], None]) -> Path:
    """Return a checkpoint's folder in the cache, which ``write`` fills if it is not there.

    One process fills it, and others wait.

    Raises:
        ResourceError: If the disk is full.
    """
    folder = cache_folder() / "models" / name
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{name}.lock"), fallback_to_soft=False):
            if not (folder / "config.json").is_file():
                with draft_folder(folder) as draft:
                    write(draft)
    return folder


def refuse_existing_file(
    path: Path | None, option: str = "--out", *, overwrite: bool | None = None
) -> None:
    """Refuse an output file, if one is named, that exists, before any work is done for it.

    ``overwrite`` is whether a file is replaced; None where nothing can be done to replace it.

    Raises:
        DataError: If it exists and is not replaced.
    """
    if path is not None and path.exists() and (not overwrite or path.is_dir()):
        raise DataError(
            f"{path} already exists",
            code="data.exists",
            where=str(path),
            expected="a new file",
            next=f"choose another {option}" + ", or add --overwrite" * (overwrite is False),
        )


def refuse_existing(folder: Path, holds: Collection[str], *, overwrite: bool) -> None:
    """Refuse a folder that exists, or that ``overwrite`` would lose other files of.

    Args:
        folder: Folder to be written.
        holds: Patterns of the names, relative to the folder, that an earlier result of the same
            command has. A folder with any other file is not replaced, but signatures of the result
            and files of desktops (``.DS_Store``) are.
        overwrite: Whether such a result is replaced.

    Raises:
        DataError: If ``folder`` exists and may not be replaced.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise DataError(
            f"{folder} exists already",
            code="data.exists",
            where=str(folder),
            expected="a folder that does not exist yet",
            next="choose another --out, or add --overwrite",
        )
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    known = (*holds, *_BESIDE_RESULTS)
    other = next((name for name in files if not any(fnmatch(name, one) for one in known)), "")
    if not folder.is_dir() or other:
        raise DataError(
            f"{folder} is not an earlier result of this command, so it is not overwritten"
            + (f": it has '{other:.80}'" if other else ""),
            code="data.exists",
            where=str(folder),
            expected=f"a folder that holds only: {', '.join(holds)}",
            next="choose another --out",
        )


def swap_folders(first: Path, second: Path) -> None:
    """Exchange the names of two folders on one file system, atomically if possible.

    Linux exchanges them atomically; elsewhere ``second`` is missing for a moment.
    """
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    if rename is None or rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) != 0:
        aside = second.with_name(f".{second.name}.exchanged")
        second.rename(aside)
        first.rename(second)
        aside.rename(first)
    sync_path(second.parent)


_RETRY_S = 0.01


def open_shared_database(
    path: Path | str, schema: str = "", wait_s: float = 60.0
) -> sqlite3.Connection:
    """Open or create a database with a write-ahead log; statements commit at once.

    The connection may be used from any thread, one at a time.

    Args:
        path: The file, or ``:memory:``.
        schema: Statements that create missing tables.
        wait_s: Seconds that a statement, or opening, waits for other processes.

    Raises:
        sqlite3.DatabaseError: If the file is not a database, or stays locked.
    """
    connection = sqlite3.connect(
        path, timeout=wait_s, isolation_level=None, check_same_thread=False
    )
    try:
        _enable_wal(connection, time.monotonic() + wait_s)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def open_cache(path: Path, schema: str, contents: str) -> sqlite3.Connection:
    """Open or create a shared database of what can be computed again.

    Args:
        path: The file.
        schema: Statements that create missing tables.
        contents: What it holds, in the plural, for the error.

    Raises:
        DataError: If the file is not a cache.
        ResourceError: If the disk is full.
    """
    try:
        with full_disk_as_error(path):
            return open_shared_database(path, schema)
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path} cannot be used as a cache of {contents}: {error}",
            code="data.cache",
            expected="a file written by Stillroom, on a disk with file locks",
            next=f"delete the file ({contents} are computed again), or use another path",
        ) from error


def _enable_wal(connection: sqlite3.Connection, until: float) -> None:
    """Switch to the write-ahead log.

    SQLite ignores its timeout here: if two processes open a new file simultaneously, one gets
    "database is locked" at once.
    """
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(_RETRY_S)
        else:
            return


T = TypeVar("T")


_JSON = json.JSONEncoder(ensure_ascii=False)


class DiskList(Sequence[T]):
    """A growing sequence whose rows are stored in a file.

    The file belongs to the list and is overwritten; the creator of the folder removes it.
    """

    def __init__(
        self, path: Path, to_json: Callable[[T], Any], from_json: Callable[[Any], T]
    ) -> None:
        """Create an empty list.

        Args:
            path: File of the rows.
            to_json: Converts a row to plain JSON values.
            from_json: Builds an equal row from them.
        """
        self._path = path
        self._to_json, self._from_json = to_json, from_json
        self._writer: IO[bytes] = path.open("wb")
        self._reader: IO[bytes] = path.open("rb")
        self._places = array("Q")
        self._end = 0

    def __enter__(self) -> Self:
        """Return the list, closed at the end of the ``with`` body."""
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        """Return copies of one row, or of those of a slice."""
        if isinstance(index, slice):
            return [self[offset] for offset in range(*index.indices(len(self)))]
        self._flush()
        return self._read(index)

    def __iter__(self) -> Iterator[T]:
        """Yield all rows, in order of insertion."""
        self._flush()
        for offset in range(len(self)):
            yield self._read(offset)

    def append(self, row: T) -> None:
        """Append one row.

        Raises:
            ResourceError: If the disk is full.
        """
        line = self._encode(row)
        with full_disk_as_error(self._path):
            self._writer.write(line)
        self._places.append(self._end)
        self._end += len(line)

    def close(self) -> None:
        """Close the file; the rows can no longer be read."""
        self._writer.close()
        self._reader.close()

    def _encode(self, row: T) -> bytes:
        text = _JSON.encode(self._to_json(row))
        return text.encode("utf-8", "surrogatepass") + b"\n"

    def _read(self, index: int) -> T:
        self._reader.seek(self._places[index])
        return self._from_json(json.loads(self._reader.readline().decode("utf-8", "surrogatepass")))

    def _flush(self) -> None:
        with full_disk_as_error(self._path):
            self._writer.flush()


class DiskRecordList(DiskList[Record]):
    """Records in a file, encoded as in any file of records."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, Record.to_json, Record.from_json)

    def copy_to(self, writer: RecordWriter) -> None:
        """Write all records, without decoding them.

        Raises:
            ResourceError: If the disk is full.
        """
        self._flush()
        with self._path.open("rb") as lines:
            writer.copy_lines(lines, len(self))

    def _encode(self, row: Record) -> bytes:
        return encode_record(row, len(self) + 1, self._path)
