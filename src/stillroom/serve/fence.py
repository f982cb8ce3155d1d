"""The fence around a job of a client: which files and ports its process may use at all.

Landlock (Linux 5.13 or newer) is asked to refuse everything but the folders that are named, and
from 6.7 on connections to every port that is not; a recipe that got past what ``confining`` looks
at, or a link inside a folder, meets it. Once put up it cannot be taken down, by child processes
neither. Standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["can_fence", "put_up_fence", "system_folders"]

_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ = (1 << 0) | (1 << 2) | (1 << 3)  # run a program, read a file, list a folder
_OF_FILES = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)
_CONNECT = 1 << 1
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_NO_NEW_PRIVILEGES = 38
_SIGNALS = 1 << 1


def can_fence() -> bool:
    """Return whether this kernel has what a fence is made of."""
    try:
        return bool(ctypes.CDLL(None).syscall(_CREATE, None, 0, 1) >= 1)
    except AttributeError:
        return False


def system_folders() -> list[Path]:
    """Return what any Python process reads: the interpreter, its packages, the system's files."""
    names = {
        *sysconfig.get_paths().values(),
        *sys.path,
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
    }
    fixed = (
        "/usr",
        "/lib",
        "/lib64",
        "/bin",
        "/etc",
        "/proc",
        "/sys",
        "/opt",
        "/run/systemd/resolve",
    )
    return [Path(name) for name in (*sorted(name for name in names if name), *fixed)]


def put_up_fence(
    *, readable: Sequence[Path], writable: Sequence[Path], ports: Sequence[int] = ()
) -> bool:
    """Confine this process and its children to the named folders and ports, for good.

    Args:
        readable: Files and folders to read; what is not there is passed over.
        writable: Folders to read and write.
        ports: TCP ports to connect to; others are refused where the kernel can (Linux 6.7).

    Returns:
        Whether the kernel put it up; False where it has no Landlock.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, 0, 1) if can_fence() else 0
    if version < 1 or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    every = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    handled = [every, _CONNECT if version >= 4 else 0, _SIGNALS if version >= 6 else 0]
    attributes = struct.pack("QQQ", *handled)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        folders = [(path, _READ) for path in readable] + [(path, every) for path in writable]
        folders += [(Path("/dev"), _READ | (1 << 1) | (every & (1 << 14 | 1 << 15)))]
        folders.append((Path("/dev/shm"), every))  # noqa: S108  # named, not made
        for path, rights in folders:
            if not _allow_path(libc, rules, path, rights & every):
                return False
        for port in ports if version >= 4 else ():
            rule = struct.pack("QQ", _CONNECT, port)
            if libc.syscall(_ADD, rules, 2, rule, 0):
                return False
        return bool(libc.syscall(_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow_path(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> bool:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        allowed = rights if path.is_dir() else rights & _OF_FILES
        rule = struct.pack("=Qi", allowed, place)
        return bool(libc.syscall(_ADD, rules, 1, rule, 0) == 0)
    finally:
        os.close(place)
