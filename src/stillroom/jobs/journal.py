"""Append-only journal (checkpoint of a job) of finished work units; torn tails are truncated.

A unit in the journal is not computed again; a missing one is computed from scratch. Each line has a
digest of itself and of the digest of the line before, so that a truncated, damaged, removed or
moved line is detected. (Lines of earlier versions, whose digest is of themselves alone, are read.)
Memory holds keys and offsets; values are read from the file on demand.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, NamedTuple

from stillroom.errors import IntegrityError, count_noun
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance.digests import canonical_json, digest_bytes

__all__ = ["Journal", "find_break", "index_journal", "parse_line", "read_journal"]

_SYNC_EVERY_S = 1.0
_READ_BYTES = 1 << 14
_MARK_DIGITS = 16


class Journal:
    """An append-only map from keys to JSON values in one file.

    ``put`` is durable against a kill at once and against power loss within about a second. One
    thread at a time may put; others may read meanwhile.
    """

    def __init__(self, path: Path, on_damage: Callable[[str], None] | None = None) -> None:
        """Open or create the journal at ``path``; a truncated or damaged tail is dropped.

        ``on_damage`` receives what is wrong before more than a last incomplete line is dropped.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, int] = {}
        self._end = 0
        self._mark = b""
        for line in _iter_lines(path, on_damage):
            self._places[line.key], self._end, self._mark = line.start, line.end, line.mark
        self._file = path.open("ab")
        if path.stat().st_size > self._end:
            self._file.truncate(self._end)
        self._reader: IO[bytes] | None = None
        self._opening = threading.Lock()
        self._synced = time.monotonic()
        self._syncing: Future[None] | None = None

    def __enter__(self) -> Journal:
        """Return the journal, closed at the end of the ``with`` body."""
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        """Return whether the unit is finished; on resume, callers skip it."""
        return key in self._places

    def __getitem__(self, key: str) -> Any:
        """Return a copy of the value of a finished unit."""
        return self._read(self._places[key])

    def __len__(self) -> int:
        return len(self._places)

    def keys(self) -> list[str]:
        """Return the keys in order of writing."""
        return list(self._places)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a unit, or the default if it is not finished."""
        offset = self._places.get(key)
        return default if offset is None else self._read(offset)

    def put(self, key: str, value: Any) -> None:
        """Store a finished unit; a repeated key replaces the value.

        Raises:
            ResourceError: If the disk is full.
        """
        body = canonical_json([key, value]).encode("utf-8", "surrogatepass")
        mark = _compute_mark(self._mark, body)
        line = mark + b" " + body + b"\n"
        with full_disk_as_error(self.path):
            self._file.write(line)
            self._file.flush()
        self._places[key] = self._end
        self._end += len(line)
        self._mark = mark
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self._begin_sync()

    def sync(self) -> None:
        """Flush all entries to disk."""
        self._end_sync()
        with full_disk_as_error(self.path):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _begin_sync(self) -> None:
        """Flush on another thread, so that a slow disk does not block callers of ``put``."""
        if self._syncing is not None and not self._syncing.done():
            return
        self._end_sync()
        done: Future[None] = Future()
        self._syncing, self._synced = done, time.monotonic()
        threading.Thread(target=self._sync_into, args=(done,), name="stillroom-sync").start()

    def _sync_into(self, done: Future[None]) -> None:
        try:
            os.fsync(self._file.fileno())
        except BaseException as error:  # noqa: BLE001  # raised again by who syncs or puts next
            done.set_exception(error)
        else:
            done.set_result(None)

    def _end_sync(self) -> None:
        """Wait for a flush on another thread, and raise its error."""
        if self._syncing is not None:
            begun, self._syncing = self._syncing, None
            with full_disk_as_error(self.path):
                begun.result()

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            self.sync()
            self._file.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _read(self, offset: int) -> Any:
        """Return the value of the line that starts at ``offset``."""
        with self._opening:
            if self._reader is None:
                self._reader = self.path.open("rb")
            reader = self._reader.fileno()
        parts: list[bytes] = []
        position = offset
        while not parts or b"\n" not in parts[-1]:
            parts.append(os.pread(reader, _READ_BYTES, position))
            position += len(parts[-1])
            if not parts[-1]:
                raise IntegrityError(
                    "the journal has become shorter while it was in use",
                    code="job.journal-cut",
                    where=str(self.path),
                    expected="a file that nobody else writes",
                    next="run the same command again with --resume",
                )
        return parse_line(b"".join(parts).partition(b"\n")[0])[1]


def read_journal(path: Path, on_damage: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return the values of a journal by key without changing the file; {} if there is none.

    For readers during writes: an incomplete line is ignored. ``on_damage`` receives what is wrong
    if whole lines are not read, since one was changed, moved or removed.
    """
    return {line.key: line.value for line in _iter_lines(path, on_damage)}


def index_journal(path: Path) -> dict[str, int]:
    """Return where the last line of each key starts, without changing the file."""
    return {line.key: line.start for line in _iter_lines(path)}


def find_break(path: Path) -> str:
    """Return what is wrong with a finished journal, as a predicate; empty if nothing is.

    Names the first line that does not follow the one before it: one was changed, moved or removed.
    """
    end, number, key = 0, 0, ""
    for line in _iter_lines(path):
        end, number, key = line.end, number + 1, line.key
    if not path.is_file() or path.stat().st_size == end:
        return ""
    after = f"line {number} ('{key}')" if number else "the start"
    with path.open("rb") as file:
        file.seek(end)
        rest = file.readline()
    try:
        name = f" ('{parse_line(rest)[0]}')"
    except ValueError:
        name = ""
    return (
        f"is broken at line {number + 1}{name}, which does not follow {after}: a line was "
        "changed, moved or removed there"
    )


class _Line(NamedTuple):
    key: str
    value: Any
    start: int
    end: int
    mark: bytes


def _iter_lines(path: Path, on_damage: Callable[[str], None] | None = None) -> Iterator[_Line]:
    """Yield every line up to the first invalid one; a whole one of these is reported."""
    if not path.exists():
        return
    begin, previous = 0, b""
    with path.open("rb") as file:
        for line in file:
            mark, _, body = line.removesuffix(b"\n").partition(b" ")
            known = (_compute_mark(previous, body), _compute_mark(b"", body))
            if not line.endswith(b"\n"):  # cut off by a kill, or still being written
                return
            if mark not in known:
                if on_damage is not None:
                    lost = count_noun(1 + sum(later.endswith(b"\n") for later in file), "line")
                    on_damage(f"{path} {find_break(path)}; {lost} from there on are lost")
                return
            key, value = parse_line(line[:-1])
            yield _Line(key, value, begin, begin + len(line), mark)
            begin += len(line)
            previous = mark


def _compute_mark(previous: bytes, body: bytes) -> bytes:
    """Return the digest of a line and the one before; the first line's is of itself alone."""
    return digest_bytes(previous + body)[:_MARK_DIGITS].encode()


def parse_line(line: bytes) -> tuple[str, Any]:
    """Return key and value of a line without its end.

    Raises:
        ValueError: If it is no line of a journal.
    """
    key, value = json.loads(line.partition(b" ")[2].decode("utf-8", "surrogatepass"))
    return key, value
