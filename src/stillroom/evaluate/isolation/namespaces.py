"""Linux namespaces with a read-only view of the interpreter's library.

Needs user namespaces, which some machines and containers do not permit for every user. Without them
the other restrictions still apply, and the result lists what is missing.
"""

from __future__ import annotations

import ctypes
import os
import struct

__all__ = ["enter_namespaces"]

# user, mount, process, network, interprocess, host name, control groups
_NAMESPACES = 0x10000000 | 0x20000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_FDCWD = -100
_CLONE_TREE = 0x1 | 0x80000 | 0x8000  # a recursive copy, close-on-exec
_READ_ONLY = 0x1 | 0x2 | 0x4  # and no devices or set-user-id


def enter_namespaces(libc: ctypes.CDLL, readable: list[str]) -> dict[str, bool]:
    """Enter new namespaces; processes forked from now on have their own process ids.

    Returns:
        Whether there are namespaces, and whether the file view is private.
    """
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NAMESPACES) != 0:
        return {"namespaces": False, "view": False}
    try:
        _write("setgroups", "deny")
        _write("uid_map", f"{user} {user} 1")
        _write("gid_map", f"{group} {group} 1")
        _make_root(libc, readable)
    except (OSError, LookupError):
        return {"namespaces": True, "view": False}
    return {"namespaces": True, "view": True}


def _write(name: str, text: str) -> None:
    descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _make_root(libc: ctypes.CDLL, readable: list[str]) -> None:
    """Replace the root by an empty one with only the readable files."""
    _check_call(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))  # private, recursive
    trees: dict[str, int] = {}
    for path in sorted({os.path.realpath(path) for path in readable}):
        if not any(path.startswith(f"{above}/") for above in trees):
            trees[path] = _copy_tree(libc, path)
    root = next(path for path in trees if os.path.isdir(path))  # noqa: PTH112  # no pathlib here
    links = {path: os.path.realpath(path) for path in readable}
    folders = {path for path in trees if os.path.isdir(path)}  # noqa: PTH112
    # any folder will do: it is hidden in this process's mount table only
    _check_call(libc.mount(b"none", root.encode(), b"tmpfs", 0x2 | 0x4, b"size=256k,mode=755"))
    try:
        os.chdir(root)
        for path, tree in trees.items():
            _attach_tree(libc, path.lstrip("/"), tree, path in folders)
        for path, target in links.items():
            if path != target:
                os.makedirs(os.path.dirname(path).lstrip("/") or ".", exist_ok=True)  # noqa: PTH103, PTH120
                os.symlink(target, path.lstrip("/"))  # noqa: PTH211
        _check_call(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."))
    except (OSError, LookupError):
        os.chdir("/")
        libc.umount2(root.encode(), 2)  # would hide the library
        raise
    _check_call(libc.umount2(b".", 2))
    os.chdir("/")
    _check_call(libc.mount(None, b"/", None, 0x20 | 0x1000 | 0x1 | 0x2 | 0x4, None))  # read-only


def _copy_tree(libc: ctypes.CDLL, path: str) -> int:
    tree = int(libc.syscall(_OPEN_TREE, _AT_FDCWD, path.encode(), _CLONE_TREE))
    _check_call(tree)
    attributes = struct.pack("QQQQ", _READ_ONLY, 0, 0, 0)
    _check_call(
        libc.syscall(_MOUNT_SETATTR, tree, b"", 0x1000 | 0x8000, attributes, len(attributes))
    )
    return tree


def _attach_tree(libc: ctypes.CDLL, path: str, tree: int, is_folder: bool) -> None:
    if is_folder:
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)  # noqa: PTH103, PTH120
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    _check_call(libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, path.encode(), 0x4))
    os.close(tree)


def _check_call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
