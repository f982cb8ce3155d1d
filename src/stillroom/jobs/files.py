"""Writing so that a kill or a full disk never loses what was there before."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from stillroom.errors import ResourceError, StillroomError

__all__ = [
    "atomic_write",
    "exchange_folders",
    "full_disk_as_error",
    "replace_folder",
    "sync_folder",
]

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""

_FULL = ("No space left on device", "database or disk is full")


@contextmanager
def full_disk_as_error(path: Path) -> Iterator[None]:
    """Turn 'no space left' into a ResourceError that names the disk and the next step.

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
            next="free some space or choose another --out, then run again with --resume",
        ) from error


def _means_full_disk(error: Exception) -> bool:
    """Return whether the disk is full; SQLite and safetensors say so in errors of their own."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    said = str(error)
    return not isinstance(error, StillroomError) and any(text in said for text in _FULL)


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of ``path``; sync and rename it when the body ends well.

    On any exception the temporary file is removed and ``path`` keeps its old bytes. A device or
    pipe (as ``/dev/null``) is written into: a rename would put a file in its place.

    Args:
        path: The file to replace.
        mode: ``w`` for UTF-8 text, ``wb`` for bytes.

    Raises:
        ResourceError: If the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding = None if "b" in mode else "utf-8"
    newline = None if "b" in mode else "\n"
    with full_disk_as_error(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            with path.open(mode, encoding=encoding, newline=newline) as file:
                yield file
            return
        try:
            with temporary.open(mode, encoding=encoding, newline=newline) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path, *, but: Collection[str] = ()) -> None:
    """Force every file and directory below ``folder`` to disk.

    Args:
        folder: The folder.
        but: Names of what lies in it and need not be there after a power loss.
    """
    entries = [path for path in folder.iterdir() if path.name not in but]
    below = [path for entry in entries if _is_folder(entry) for path in entry.rglob("*")]
    for path in [*below, *entries, folder]:
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            _sync_directory(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def replace_folder(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``; an existing target stands aside until that is done."""
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
    _sync_directory(target.parent)
    if aside.exists():
        shutil.rmtree(aside)


def exchange_folders(one: Path, other: Path) -> None:
    """Give two folders on one file system each other's name, in one step where the system can.

    Linux exchanges them at once; elsewhere ``other`` is missing for a moment.
    """
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    if rename is None or rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) != 0:
        aside = other.with_name(f".{other.name}.exchanged")
        other.rename(aside)
        one.rename(other)
        aside.rename(one)
    _sync_directory(other.parent)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
