"""Atomic write, durable: temporary file, fsync, rename (``os.replace``), fsync of the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from stillroom.errors import ResourceError, StillroomError

__all__ = [
    "append_line",
    "atomic_path",
    "atomic_write",
    "full_disk_as_error",
    "read_secret",
    "remove_temporary_files",
    "replace_file",
    "require_file",
    "sync_path",
    "write_secret",
]

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp", re.DOTALL)
_OF_WRITER = re.compile(r"\..+\.(\d+)\.\d+\.tmp", re.DOTALL)
_MIN_AGE_S = 600  # of what is removed; the clocks of machines that share a folder differ
_swept: set[Path] = set()
_MAX_LINKS = 40  # as Linux
_MAX_SECRET_BYTES = 1 << 20
_DISK_FULL_TEXTS = ("No space left on device", "database or disk is full")


@contextmanager
def full_disk_as_error(
    path: Path,
    next: str = "free some space or choose another --out, then run again with --resume",
) -> Iterator[None]:
    """Convert 'no space left' while ``path`` is written into a ResourceError.

    Raises:
        ResourceError: If the body runs out of disk space or quota.
    """
    try:
        yield
    except Exception as error:
        if not _means_full_disk(error):
            raise
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        raise ResourceError(
            f"the disk is full while writing {path}",
            code="resource.disk-full",
            where=str(path),
            expected=f"more than the {free / 1e6:.1f} MB that are free",
            next=next,
        ) from error


def _means_full_disk(error: Exception) -> bool:
    """Return whether the disk is full; SQLite and safetensors raise their own errors."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    message = str(error)
    return not isinstance(error, StillroomError) and any(
        text in message for text in _DISK_FULL_TEXTS
    )


@contextmanager
def atomic_write(path: Path, mode: str = "w", *, is_synced: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file next to ``path``; sync and rename it if the body succeeds.

    On any exception the temporary file is removed and ``path`` keeps its old bytes. What a rename
    would replace by a file is written directly: a device, a pipe, an open file (``/dev/stdout``).

    Args:
        path: The file to replace.
        mode: ``w`` for UTF-8 text, ``wb`` for bytes.
        is_synced: Whether the file outlives a power loss at once; False where it can be made again.

    Raises:
        ResourceError: If the disk is full.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    end = _follow_links(path)
    is_open = end.parent.resolve().is_relative_to("/proc")
    if is_open or (end.exists() and not (end.is_file() or end.is_dir())):
        with full_disk_as_error(path), path.open(mode, **text) as file:
            yield file
        return
    with atomic_path(path, is_synced=is_synced) as temporary, temporary.open(mode, **text) as file:
        yield file


@contextmanager
def atomic_path(path: Path, *, is_synced: bool = True) -> Iterator[Path]:
    """Yield the path of a temporary file for what opens its file itself; else ``atomic_write``.

    A link is written through, and the permissions of an existing file are kept. The first file that
    a process writes in a folder removes the old temporary ones of writers that were killed there.

    Raises:
        ResourceError: If the disk is full.
    """
    path = _follow_links(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}.{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    if path.parent not in _swept:
        _swept.add(path.parent)
        _remove_abandoned(path.parent)
    with full_disk_as_error(path), ExitStack() as held:
        try:
            temporary.touch(mode=0o600 if path.is_file() else 0o666)
            held.enter_context(_hold_file(temporary))
            yield temporary
            if path.is_file():
                shutil.copymode(path, temporary)
            held.close()  # the new file is nobody's
            replace_file(temporary, path, is_synced=is_synced)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _hold_file(path: Path) -> Iterator[bool]:
    """Lock a file, so that other processes see that its writer lives; yield whether it is locked.

    It never is on a disk without locks.
    """
    with path.open("r+b") as file:  # NFS locks only a file that may be written
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except OSError:
            is_held = False
        yield is_held


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers are dead.

    A writer on another machine is known by its lock alone: what cannot be locked stays, and what
    was just written, since a file is made before it is locked and a lock may be its machine's own.
    """
    with suppress(OSError):  # a folder that may not be listed
        for entry in list(os.scandir(folder)):
            writer = _OF_WRITER.fullmatch(entry.name)
            if writer is None or not entry.is_file(follow_symlinks=False):
                continue
            path = folder / entry.name
            with suppress(OSError), _hold_file(path) as is_unused:
                written = entry.stat().st_mtime
                is_old = time.time() - written > _MIN_AGE_S
                if is_unused and is_old and not _may_write(int(writer[1]), written):
                    path.unlink()


def _may_write(pid: int, since: float) -> bool:
    """Return whether a process lives that is older than ``since``: else its number is used again.

    A container gives the same numbers to each of its runs.
    """
    import psutil

    try:
        return bool(psutil.Process(pid).create_time() <= since)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def _follow_links(path: Path) -> Path:
    """Return what a link leads to; of an open file (``/dev/stdout``) its entry in /proc."""
    for _ in range(_MAX_LINKS):
        folder = path.parent.resolve()
        if not path.is_symlink() or folder.is_relative_to("/proc"):
            break
        path = folder / path.readlink()
    return path


def require_file(path: Path) -> Path:
    """Return a path to read, unless it is a device or a pipe: these may have no end.

    Raises:
        OSError: If it is one. What is missing, or a folder, fails when it is opened.
    """
    if not path.is_file() and path.exists() and not path.is_dir():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(path))
    return path


def read_secret(path: Path) -> bytes:
    """Return the bytes of a file of keys, which may be a pipe, so that they are never on a disk.

    Raises:
        OSError: If it cannot be read, or does not end within 1 MiB.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_SECRET_BYTES + 1)
    if len(data) > _MAX_SECRET_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {_MAX_SECRET_BYTES} bytes", str(path))
    return data


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read, synced to disk.

    Raises:
        FileExistsError: If there is one: a key that is overwritten cannot be recovered.
        ResourceError: If the disk is full.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with full_disk_as_error(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            sync_path(path)
            sync_path(path.parent)
    except BaseException:
        path.unlink()  # else a part of a key would be taken for one
        raise


def replace_file(source: Path, target: Path, *, is_synced: bool = True) -> None:
    """Rename a file to another of the same file system, with both its bytes and its name synced."""
    if is_synced:
        sync_path(source)
    source.replace(target)
    if is_synced:
        with suppress(PermissionError):  # a folder that this user may write, but not list
            sync_path(target.parent)


def sync_path(path: Path) -> None:
    """Force a file's bytes, or the names in a folder, to disk: they outlive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append a line in one write; a last line that a kill or a full disk cut is ended first.

    Args:
        path: The file, which may be missing.
        line: The line, without its end.
    """
    data = line.encode() + b"\n"
    with path.open("ab+") as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = b"\n" + data
        file.write(data)


def remove_temporary_files(folder: Path) -> None:
    """Remove what ``atomic_write`` left below ``folder`` in a process that was killed."""
    for path in folder.rglob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()
