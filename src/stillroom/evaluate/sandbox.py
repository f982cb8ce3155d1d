"""A sandbox for code that a model wrote: a process apart, with no network, no files and no time.

The process is a bare interpreter (the standard library alone) that closes its doors itself before
it compiles a line (``sandbox_child``); where the kernel cannot close them, nothing is run and the
refusal says why. A timeout or too much output kills it. What code prints is data and never more.

What this does not promise: code that searches the interpreter's memory for the mark of success
could forge it, and a hole in the kernel is a hole here. Run the job itself in a container where
what is at stake is more than wrong records.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stillroom.errors import ResourceError

__all__ = ["Outcome", "run_code"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
_OUTPUT_BYTES = 1 << 18
_MAX_CODE = 1 << 20
_PATIENCE_S = 60.0  # for an interpreter to start where everything else is slow, too
_DOORS = {
    "files": "Landlock (Linux 5.13 or newer)",
    "calls": "seccomp on x86-64 or 64-bit ARM",
}
_SLOTS = threading.BoundedSemaphore(max(os.cpu_count() or 1, 1))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How code ended: ``reason`` is empty where it came to its end; what it printed."""

    reason: str
    output: str
    errors: str

    @property
    def is_done(self) -> bool:
        """Whether the code came to its end without an exception."""
        return not self.reason


def run_code(
    parts: Sequence[str],
    *,
    stdin: str = "",
    timeout_s: float = 5.0,
    memory_bytes: int = 512 * 2**20,
    readable: Sequence[Path] = (),
) -> Outcome:
    """Run Python code apart from everything.

    Args:
        parts: Run one after another in one namespace, as the code and then its tests.
        stdin: What the code reads.
        timeout_s: Seconds of wall clock and of processor until it is killed.
        memory_bytes: Of address space.
        readable: Files and folders that it may read, beside the interpreter's own.

    Raises:
        ResourceError: If the kernel cannot isolate the process; nothing was run.
    """
    if sum(map(len, parts)) > _MAX_CODE:
        return Outcome("too much code", "", "")
    nonce = secrets.token_hex(16)
    order = json.dumps(
        {
            "parts": list(parts),
            "nonce": nonce,
            "cpu_s": max(1, round(timeout_s + 0.5)),
            "memory_bytes": memory_bytes,
            "output_bytes": _OUTPUT_BYTES,
            "readable": [*_own_files(), *(str(path.resolve()) for path in readable)],
        }
    ).encode("utf-8", "replace")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, _SLOTS:
        code, told = _start(order, stdin, out, err, timeout_s)
        if not told and code == -signal.SIGXCPU:  # a busy machine did not come to start it
            code, told = _start(order, stdin, out, err, timeout_s + _PATIENCE_S)
        shown, errors = _read(out), _read(err)
    ready = told[0] if told else {}
    if not ready.get("ready"):
        raise _cannot_isolate(ready, errors)
    if {"done": nonce} in told[1:]:
        return Outcome("", shown, errors)
    return Outcome(_reason_of(code, errors), shown, errors)


def _start(
    order: bytes, stdin: str, out: IO[bytes], err: IO[bytes], timeout_s: float
) -> tuple[int, list[dict[str, object]]]:
    reader, writer = os.pipe()
    command = [sys.executable, "-I", "-S", "-B", str(_CHILD), str(writer), str(len(order))]
    try:
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and file
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            cwd="/",
            pass_fds=(writer,),
            start_new_session=True,
        )
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        try:
            process.communicate(order + stdin.encode("utf-8", "replace"), timeout=timeout_s + 1)
            code = process.returncode
        except subprocess.TimeoutExpired:
            code = -signal.SIGXCPU
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        told = pipe.read(1 << 16).decode("utf-8", "replace").splitlines()
    rows = []
    for line in told:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    return code, rows


def _own_files() -> list[str]:
    """Return what the interpreter reads of itself: its library, and the shared ones."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    paths |= {sysconfig.get_config_var("LIBDIR") or "", "/usr/lib", "/lib", "/lib64"}
    return sorted(path for path in paths if path and Path(path).exists())


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_OUTPUT_BYTES).decode("utf-8", "replace")


def _reason_of(code: int, errors: str) -> str:
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return "out of time"
    last = errors.strip().splitlines()[-1] if errors.strip() else ""
    if last.startswith("MemoryError") or code == -signal.SIGSEGV:
        return "out of memory"
    name = last.split(":", 1)[0].strip()
    if name.isidentifier() or name.replace(".", "").isidentifier():
        return name
    return "ended early" if not code else f"ended with {code}"


def _cannot_isolate(ready: dict[str, object], errors: str) -> ResourceError:
    doors = ready.get("doors")
    missing = (
        [_DOORS[name] for name, closed in doors.items() if not closed and name in _DOORS]
        if isinstance(doors, dict)
        else []
    )
    return ResourceError(
        "code cannot be isolated on this machine, and was not run",
        code="evaluate.sandbox",
        expected=", ".join(missing) or f"a Linux kernel with Landlock and seccomp ({errors:.200})",
        next="run the job on a newer Linux, or choose another verifier",
    )
