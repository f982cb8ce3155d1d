"""One writer at a time, and readers whose snapshot stays: both by locks that end with a process."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from stillroom.errors import ResourceError
from stillroom.jobs import atomic_write
from stillroom.provenance import ARTIFACT_FILE

__all__ = [
    "SNAPSHOTS",
    "Pin",
    "WriterLock",
    "is_being_written",
    "place_snapshot_file",
    "snapshot_file",
    "sync_snapshot_file",
    "write_snapshot_file",
]

SNAPSHOTS = "snapshots"
_LOCK = ".writer"
_ATTEMPTS = 5
_PAUSE_S = 0.02


class WriterLock:
    """Held by whoever changes an index; says who that is to whoever else would."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of the index in ``folder``.

        Raises:
            ResourceError: If another process holds it, or the disk cannot be written.
        """
        path = _lock_path(folder)
        try:
            self._file: IO[str] = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise ResourceError(
                f"the index cannot be written: {error.strerror or error}",
                code="rag.read-only",
                where=str(folder),
                expected="a folder that may be written",
                next="check its permissions, or copy the index to where you may write",
            ) from error
        for attempt in range(_ATTEMPTS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                holder = _read_holder(self._file)
                if holder or attempt == _ATTEMPTS - 1:
                    self._file.close()
                    raise _busy(folder, holder) from error
                time.sleep(_PAUSE_S)  # a reader that looks whether anybody writes holds it briefly
        self._tell({"process": os.getpid(), "command": sys.argv[:3], "since": _now()})

    def __enter__(self) -> WriterLock:
        """Return the lock itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the lock back."""
        self.release()

    def release(self) -> None:
        """Give the lock back; the file stays, so that nobody locks one that is gone."""
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()

    def _tell(self, holder: dict[str, object]) -> None:
        self._file.truncate(0)
        self._file.write(json.dumps(holder))
        self._file.flush()


class Pin:
    """A reader's hold on a snapshot: what it needs is kept until the pin is released."""

    def __init__(self, file: IO[bytes]) -> None:
        """Hold an open file that is locked; callers use ``take``."""
        self._file = file

    @classmethod
    def take(cls, folder: Path, number: int, *, alone: bool = False) -> Pin | None:
        """Pin a snapshot, or return None where it is gone or about to go.

        Args:
            folder: The index's.
            number: The snapshot's.
            alone: For whoever removes it: only if no reader pins it, and none may until the end.
        """
        try:
            file = snapshot_file(folder, number).open("rb")
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
        return cls(file)

    def release(self) -> None:
        """Let the snapshot go."""
        self._file.close()

    def __del__(self) -> None:
        """Let the snapshot go with the last view of it: one that was refreshed is still read."""
        self._file.close()


def snapshot_file(folder: Path, number: int) -> Path:
    """Return the file that says what a snapshot is, and that its readers lock."""
    return folder / SNAPSHOTS / f"{number:06d}.json"


def place_snapshot_file(folder: Path, number: int, digest: str) -> None:
    """Write the file of a snapshot that is about to be published; ``sync_snapshot_file`` follows.

    Two waits for the disk less before readers see the snapshot. Only where the power fails between
    commit and sync is the file missing; the next writer or a repair makes it from the ledger again.
    """
    path = snapshot_file(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(_tell(number, digest), encoding="utf-8")
    temporary.replace(path)


def sync_snapshot_file(folder: Path, number: int) -> None:
    """Force a snapshot's file and its name to disk."""
    path = snapshot_file(folder, number)
    for place in (path, path.parent):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_snapshot_file(folder: Path, number: int, digest: str) -> None:
    """Write the file of a snapshot anew, to the disk."""
    with atomic_write(snapshot_file(folder, number)) as file:
        file.write(_tell(number, digest))


def _tell(number: int, digest: str) -> str:
    return json.dumps({"snapshot": number, "digest": digest})


def is_being_written(folder: Path) -> bool:
    """Return whether a writer is at work on the index."""
    try:
        with _lock_path(folder).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _lock_path(folder: Path) -> Path:
    """Return the lock's file: outside the artifact's output, whose files are all listed."""
    is_output = folder.name == "output" or (folder.parent / ARTIFACT_FILE).is_file()
    return (folder.parent if is_output else folder) / _LOCK


def _read_holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        told = json.loads(file.read())
        command = " ".join(str(part) for part in told["command"])
        return f"process {told['process']} since {told['since']} ({command})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _busy(folder: Path, holder: str) -> ResourceError:
    return ResourceError(
        f"another process is writing the index: {holder or 'it has not said which'}",
        code="rag.busy",
        where=str(folder),
        expected="one writer at a time",
        next="wait for it to end; readers need not",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
