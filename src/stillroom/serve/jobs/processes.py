"""Sandbox of the server (Landlock) for child processes: start, termination and crash reports.

Client input is processed in child processes, not in the server: a crash, an out-of-memory kill or a
file that hangs a decoder costs one request or job. See ``jobs.worker`` for the child's side.

Landlock (Linux 5.13 or newer) denies opening, creating, moving or removing files outside the given
folders; from 6.7 on also TCP connections to other ports, and from 6.12 on signals and abstract
sockets to processes outside. A server that runs as root drops its privileges first. The sandbox
also catches recipes that pass ``recipe_policy`` and links inside a folder. Once entered it cannot
be left, by child processes neither. Not denied: finding out that a file exists and how large it is,
UDP, Unix sockets with a path, listening, and shared memory (``/dev/shm``), which all processes of
the user share. Uses the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import platform
import signal
import struct
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillroom.errors import Problem
from stillroom.provenance.digests import load_json
from stillroom.provenance.signing.keys import KEY_VARIABLE, PASSWORD_VARIABLE

__all__ = [
    "describe_crash",
    "describe_sandbox_gap",
    "enter_sandbox",
    "is_sandbox_available",
    "list_system_folders",
    "read_worker_result",
    "run_worker",
    "send_signal",
    "spawn",
]


_MAX_LINE_BYTES = 1 << 24
_WITHHELD_VARIABLES = ("STILLROOM_API_KEY", KEY_VARIABLE, PASSWORD_VARIABLE)


async def spawn(
    order: Mapping[str, Any],
    folder: Path,
    scratch: Path,
    *,
    cache: Path | None = None,
    log: int | None = None,
) -> Process:
    """Start a worker process and send it its order.

    ``order`` is that of ``jobs.worker``, ``folder`` the working directory. ``scratch`` is for
    temporary files of this process alone, ``cache`` for files that later ones may reuse, by default
    inside it. Without ``log``, a file descriptor, the output is discarded.
    """
    environment = {
        key: value for key, value in os.environ.items() if key not in _WITHHELD_VARIABLES
    }
    environment["TMPDIR"] = str(scratch)
    environment["STILLROOM_CACHE"] = str(cache or scratch / "cache")
    for name in ("STILLROOM_MODELS", "HF_HOME", "HF_HUB_CACHE"):
        if environment.get(name):  # the child starts in another folder
            environment[name] = str(Path(environment[name]).expanduser().absolute())
    if not order["hub"]:
        environment["HF_HUB_OFFLINE"] = "1"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # import no module from the working directory
        "-m",
        "stillroom.serve.jobs.worker",
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL if log is None else log,
        cwd=folder,
        env=environment,
        start_new_session=True,
        limit=_MAX_LINE_BYTES,
    )
    try:
        if process.stdin is not None:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
    except BaseException:  # the client that requested it is gone
        await kill_worker(process)
        raise
    return process


async def run_worker(
    order: Mapping[str, Any],
    folder: Path,
    scratch: Path,
    *,
    timeout_s: float,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Run a worker process to its result; it is ended as well when the client disconnects.

    Raises:
        ApiError: If it takes too long.
    """
    process = await spawn(order, folder, scratch, cache=cache)
    try:
        result = await asyncio.wait_for(read_worker_result(process), timeout_s)
        if result is None:
            code = await process.wait()
            return {"state": "failed", "problems": [asdict(describe_crash(code))]}
    except TimeoutError:
        from stillroom.serve.errors import ApiError  # with fastapi, which no worker needs

        raise ApiError(504, f"no answer within {timeout_s:g} s", code="timeout") from None
    finally:
        await kill_worker(process)
    return result


async def kill_worker(process: Process) -> None:
    """Kill a process group, unless it has already ended."""
    send_signal(process, signal.SIGKILL)
    await process.wait()


async def read_worker_result(process: Process) -> dict[str, Any] | None:
    """Return the result of a worker process, or None if it ended without one."""
    if process.stdout is None:
        return None
    try:
        result = load_json(await process.stdout.readline())
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def send_signal(process: Process, number: int) -> None:
    """Send a signal to a worker; SIGKILL is sent to its whole process group."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def describe_crash(code: int) -> Problem:
    """Return the problem for a process that ended without a result."""
    if code == -signal.SIGKILL:
        message = "the job's process was killed, most likely because memory ran out"
        return Problem(
            message, "job.killed", next="reduce the memory that the recipe needs, then resume"
        )
    how = f"died of signal {-code}" if code < 0 else "ended without a result"
    return Problem(f"the job's process {how}", "job.killed", next="resume it")


_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_READ_RIGHTS = (1 << 0) | (1 << 2) | (1 << 3)  # execute, read a file, list a folder
_SINGLE_FILE_RIGHTS = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)
_CONNECT_RIGHT = 1 << 1
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_NO_NEW_PRIVILEGES = 38
_SCOPES = (1 << 0) | (1 << 1)  # abstract sockets, signals
_DEVICE_FILES = (1 << 6) | (1 << 11)  # device nodes: they give access to any disk
_DEVICES = ("null", "zero", "full", "random", "urandom", "kfd", "dri", "nvidia*")
_CAPSET, _HEADER = {"x86_64": 126, "aarch64": 91}, 0x20080522
_KEPT_CAPABILITIES = 0b11111  # read and write files as their owner; Landlock still restricts which


def is_sandbox_available() -> bool:
    """Return whether this kernel supports the sandbox."""
    return _read_landlock_version() >= 1


def describe_sandbox_gap() -> str:
    """Return what this kernel cannot sandbox, as a sentence for the operator; empty if nothing."""
    version = _read_landlock_version()
    if version < 1:
        return "this kernel has no Landlock: jobs and media decoders run without a sandbox"
    if version < 4:
        return "this kernel's Landlock is older than Linux 6.7: connections are not restricted"
    return ""


def _read_landlock_version() -> int:
    """Return the kernel's Landlock ABI version; below 1 if it has none."""
    try:
        return int(ctypes.CDLL(None).syscall(_CREATE, None, 0, 1))
    except AttributeError:
        return 0


def list_system_folders() -> list[Path]:
    """Return the paths that any Python process reads: interpreter, packages, system files."""
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


def enter_sandbox(
    *, readable: Sequence[Path], writable: Sequence[Path], ports: Sequence[int] = ()
) -> bool:
    """Restrict this process and its children to files, folders and TCP ports, irrevocably.

    Return False if the kernel has no Landlock, and nothing is restricted. Missing files and folders
    in ``readable`` are skipped; ``writable`` are read, too. TCP connections to other ports are
    denied from Linux 6.7 on.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = _read_landlock_version()
    if version < 1 or libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    every = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    handled = [every, _CONNECT_RIGHT if version >= 4 else 0, _SCOPES if version >= 6 else 0]
    attributes = struct.pack("QQQ", *handled)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = libc.syscall(_CREATE, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        folders = [(path, _READ_RIGHTS) for path in readable]
        folders += [(path, every & ~_DEVICE_FILES) for path in writable]
        folders.append((Path("/dev/shm"), every & ~_DEVICE_FILES))  # noqa: S108  # named, not made
        for name in _DEVICES:
            folders += [
                (path, _READ_RIGHTS | _SINGLE_FILE_RIGHTS) for path in Path("/dev").glob(name)
            ]
        for path, rights in folders:
            if not _allow_path(libc, rules, path, rights & every):
                return False
        for port in ports if version >= 4 else ():
            rule = struct.pack("QQ", _CONNECT_RIGHT, port)
            if libc.syscall(_ADD, rules, 2, rule, 0):
                return False
        return _drop_privileges(libc) and libc.syscall(_RESTRICT, rules, 0) == 0
    finally:
        os.close(rules)


def _drop_privileges(libc: ctypes.CDLL) -> bool:
    """Drop root's capabilities, such as reading the memory of other processes.

    The kernel exempts processes with some of these capabilities from Landlock checks.
    """
    call = _CAPSET.get(platform.machine())
    if call is None:
        return os.geteuid() != 0
    header = struct.pack("Ii", _HEADER, 0)
    held = (
        struct.pack("IIIIII", _KEPT_CAPABILITIES, _KEPT_CAPABILITIES, 0, 0, 0, 0)
        if os.geteuid() == 0
        else bytes(24)
    )
    return bool(libc.syscall(call, header, held) == 0)


def _allow_path(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> bool:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        allowed = rights if path.is_dir() else rights & _SINGLE_FILE_RIGHTS
        rule = struct.pack("=Qi", allowed, descriptor)
        return bool(libc.syscall(_ADD, rules, 1, rule, 0) == 0)
    finally:
        os.close(descriptor)
