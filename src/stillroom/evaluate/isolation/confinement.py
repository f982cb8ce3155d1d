"""Confinement of a process: namespaces, resource limits, capabilities, Landlock and seccomp.

User namespaces are not permitted to every user on some machines and in some containers. Without
them the other restrictions still apply, and the result lists what is missing.

System calls are allowed by list, for x86-64 and 64-bit ARM; their numbers are those of the kernel's
``asm/unistd_64.h`` and ``asm-generic/unistd.h``. libseccomp would be one more dependency; the
filter is forty lines.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check
if TYPE_CHECKING:
    from typing import TypedDict

    class Order(TypedDict):
        """Settings of the processes of one check, sent by the job."""

        program: int
        tests: int
        report: int
        cpu_s: int
        memory_bytes: int
        output_bytes: int
        readable: list[str]
        namespaces: bool


__all__ = [
    "close_other_files",
    "confine_process",
    "die_with_parent",
    "enter_namespaces",
    "set_own_user",
]

_READ, _LIST = 1 << 2, 1 << 3
_RIGHTS_BY_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_MAX_THREADS = 64


def die_with_parent(libc: ctypes.CDLL) -> None:
    """Let the kernel kill this process when its parent ends."""
    libc.prctl(1, 9, 0, 0, 0)


def close_other_files(libc: ctypes.CDLL, *kept: int) -> None:
    """Close every file except the standard ones and these."""
    last = 2
    for descriptor in [*sorted(kept), 1 << 30]:
        if descriptor > last + 1:
            libc.syscall(436, last + 1, descriptor - 1, 0)  # close_range, older than Landlock
        last = descriptor


def set_own_user() -> None:
    """Set a real user of this check alone: the kernel limits no threads of root's.

    The effective user, which may read the interpreter's library, remains.
    """
    if os.geteuid() == 0:
        try:
            # not its process id, which another container may use as well
            os.setresuid(1 << 30 | int.from_bytes(os.urandom(4)) >> 2, 0, 0)
        except OSError:  # root of a container, which may have no other users
            return


def confine_process(libc: ctypes.CDLL, order: Order, *, apart: bool) -> dict[str, bool]:
    """Limit this process, and return which restrictions are in force.

    ``apart``: the process is in a user namespace, so that its own threads are counted.
    """
    seconds, threads = order["cpu_s"], _MAX_THREADS
    if not apart and os.getuid() == os.geteuid():  # counted with all other threads of the user
        threads = _count_tasks() + _MAX_THREADS * (os.cpu_count() or 1)  # of checks at one time
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, seconds, margin=1)
    _limit(resource.RLIMIT_AS, order["memory_bytes"])
    _limit(resource.RLIMIT_FSIZE, order["output_bytes"])
    _limit(resource.RLIMIT_NOFILE, 32)
    _limit(resource.RLIMIT_NPROC, threads)
    no_news = libc.prctl(38, 1, 0, 0, 0) == 0  # executed programs gain no privileges
    files = no_news and _restrict_files(libc, order["readable"])
    libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))
    return {"files": files, "calls": no_news and _filter_calls(libc)}


def _limit(kind: int, soft: int, margin: int = 0) -> None:
    """Limit a resource, which may be limited to less already."""
    present = resource.getrlimit(kind)[1] % (1 << 63)  # no limit is -1
    resource.setrlimit(kind, (min(soft, present), min(soft + margin, present)))


def _count_tasks() -> int:
    """Return the number of threads of the machine, or of its most where that is hidden."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:  # noqa: PTH123  # no pathlib here
            return int(file.read().split("/")[1].split()[0])
    except OSError:
        return 1 << 22


def _restrict_files(libc: ctypes.CDLL, readable: list[str]) -> bool:
    version = libc.syscall(444, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << _RIGHTS_BY_VERSION.get(version, 16)) - 1
    attributes = struct.pack("Q", rights)
    rules = libc.syscall(444, attributes, len(attributes), 0)
    if rules < 0:
        return False
    for path in readable:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = _READ | _LIST if os.path.isdir(path) else _READ  # noqa: PTH112  # no pathlib here
        failed = libc.syscall(445, rules, 1, struct.pack("=Qi", allowed, descriptor), 0)
        os.close(descriptor)
        if failed:
            return False
    closed = libc.syscall(446, rules, 0) == 0
    os.close(rules)
    return bool(closed)


_ALLOWED_CALLS = {
    "x86_64": (
        "0 1 3 5 8 17 18 19 20 295 296 "  # read, write, close, fstat, lseek, p*, *v
        "2 257 4 6 262 332 21 269 439 89 267 78 217 79 137 138 "  # open, stat, access, list
        "32 33 292 22 293 7 271 23 270 213 291 233 232 281 77 221 "  # dup, pipe, poll, epoll
        "9 11 25 10 28 12 26 "  # memory
        "202 273 334 324 24 309 "  # futex, robust list, rseq, membarrier, yield, getcpu
        "13 14 15 127 128 130 131 219 38 36 37 34 "  # own signals and timers
        "228 229 230 35 96 201 100 98 97 "  # clocks, sleep, usage, getrlimit
        "39 186 110 102 107 104 108 115 118 120 63 99 318 95 "  # process and user ids
        "60 231 "  # exit
    ),
    "aarch64": (
        "63 64 57 80 62 67 68 65 66 69 70 "
        "56 79 291 48 439 78 61 17 43 44 "
        "23 24 59 73 72 20 21 22 46 223 "
        "222 215 216 226 233 214 227 "
        "98 99 293 283 124 168 "
        "134 135 139 136 137 133 132 128 103 102 "
        "113 114 115 101 169 153 165 163 "
        "172 178 173 174 175 176 177 158 148 150 160 179 278 166 "
        "93 94 "
    ),
}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# clone, clone3, fcntl, ioctl, prlimit64, sched_getaffinity
_ARGUMENT_CHECKED = {"x86_64": (56, 435, 72, 16, 302, 204), "aarch64": (220, 435, 25, 29, 261, 123)}
_THREAD = 0x10000
_FCNTL = (0, 1, 2, 3, 4, 1030)  # duplicate, flags: no owner, no signal, no lock, no lease
_IOCTL = (0x5401, 0x5450, 0x5451)  # is it a terminal, (do not) close on exec
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _UNKNOWN = 0x00050001, 0x00050026  # EPERM, ENOSYS
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_Line = tuple[int, int, int, int]


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Refuse every system call of this process and its threads that is not listed."""
    machine = os.uname().machine
    if machine not in _ALLOWED_CALLS:
        return False
    program = _compile(machine)
    words = b"".join(struct.pack("HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(words)
    header = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    return bool(libc.prctl(22, 2, header, 0, 0) == 0)


def _compile(machine: str) -> list[_Line]:
    clone, clone3, fcntl, ioctl, prlimit, affinity = _ARGUMENT_CHECKED[machine]
    program: list[_Line] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine])]
    program += [(_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for number in sorted(map(int, _ALLOWED_CALLS[machine].split())):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    # the C library falls back to clone, whose flags a filter can read
    program += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _UNKNOWN)]
    program += _for_call(clone, [(_LOAD, 0, 0, 16), (_SET, 0, 1, _THREAD), (_RETURN, 0, 0, _ALLOW)])
    program += _for_call(fcntl, _one_of(24, _FCNTL))
    program += _for_call(ioctl, _one_of(24, _IOCTL))
    program += _for_call(
        prlimit, [*_require_zero(16, 6), *_require_zero(32, 4), *_require_zero(36, 2), _ALLOW_LINE]
    )
    program += _for_call(affinity, [*_require_zero(16, 2), _ALLOW_LINE])
    return [*program, (_RETURN, 0, 0, _REFUSE)]


_ALLOW_LINE: _Line = (_RETURN, 0, 0, _ALLOW)


def _for_call(number: int, lines: list[_Line]) -> list[_Line]:
    """Return the lines for one call only, which refuse it unless they return."""
    lines = [*lines, (_RETURN, 0, 0, _REFUSE)]
    return [(_EQUAL, 0, len(lines), number), *lines]


def _one_of(offset: int, values: tuple[int, ...]) -> list[_Line]:
    lines: list[_Line] = [(_LOAD, 0, 0, offset)]
    for value in values:
        lines += [(_EQUAL, 0, 1, value), _ALLOW_LINE]
    return lines


def _require_zero(offset: int, other: int) -> list[_Line]:
    """Continue where a word of the arguments is zero, else jump to the refusal after ``other``."""
    return [(_LOAD, 0, 0, offset), (_EQUAL, 0, other - 1, 0)]


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
