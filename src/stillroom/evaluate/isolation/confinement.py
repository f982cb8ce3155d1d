"""Confinement of a process: resource limits, capabilities, Landlock and seccomp."""

from __future__ import annotations

import ctypes
import os
import resource
import struct

from stillroom.evaluate.isolation.seccomp import filter_calls

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


__all__ = ["close_other_files", "confine_process", "die_with_parent"]

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


def confine_process(libc: ctypes.CDLL, order: Order, *, apart: bool) -> dict[str, bool]:
    """Limit this process, and return which restrictions are in force.

    ``apart``: the process is in a user namespace, so that its threads can be counted.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = order["cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (order["memory_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order["output_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    if apart:
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_THREADS, _MAX_THREADS))
    no_news = libc.prctl(38, 1, 0, 0, 0) == 0  # executed programs gain no privileges
    files = no_news and _restrict_files(libc, order["readable"])
    libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24))
    return {"files": files, "calls": no_news and filter_calls(libc)}


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
