"""Sandbox for model-written code: a separate process without network or files.

The process is a bare interpreter (the standard library alone) that closes its doors itself before
it compiles a line (``stillroom.evaluate.isolation``); where the kernel cannot close them, nothing
is run and the refusal says why. A timeout or too much output kills it. What code prints, and how it
says that it ended, is data and never more.

Tests are run by ``run_tests``, in a second process that shares nothing with the program but two
pipes: what proves a pass is said there, with a word that the program's process never held.

What this does not promise: a hole in the kernel is a hole here. Run the job itself in a container
where what is at stake is more than wrong records.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
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
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from stillroom.errors import ResourceError
from stillroom.evaluate.isolation import namespaces
from stillroom.evaluate.isolation.peer import CUSTOM_EXCEPTION

__all__ = ["ExecutionResult", "run_code", "run_tests"]

_LOG = logging.getLogger("stillroom.evaluate")
_START = Path(namespaces.__file__).with_name("start.py")
_OUTPUT_BYTES = 1 << 18
_MAX_CODE = 1 << 20
_STARTUP_S = 60.0  # for an interpreter to start where everything else is slow, too
_MECHANISMS = {
    "files": "Landlock (Linux 5.13 or newer)",
    "calls": "seccomp on x86-64 or 64-bit ARM",
}
_NAMESPACES = True
_SLOTS = threading.BoundedSemaphore(max(os.cpu_count() or 1, 1))


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """How code ended: ``reason`` is empty where it came to its end; what it printed.

    A reason is a fixed phrase or the name of one of Python's exceptions, never the code's words.
    """

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
) -> ExecutionResult:
    """Run Python code apart from everything.

    How it ended is what its own process says: judge it by what it printed. ``run_tests`` is for
    verdicts.

    Args:
        parts: Run one after another in one namespace.
        stdin: What the code reads.
        timeout_s: Seconds of wall clock and of processor until it is killed.
        memory_bytes: Of address space.
        readable: Files and folders that it may read, beside the interpreter's own.

    Raises:
        ResourceError: If the kernel cannot isolate the process; nothing was run.
    """
    return _run_sandboxed(parts, None, stdin, timeout_s, memory_bytes, readable)


def run_tests(
    program: str,
    tests: Sequence[str],
    *,
    timeout_s: float = 5.0,
    memory_bytes: int = 512 * 2**20,
) -> ExecutionResult:
    """Run a program, and tests of it in a process that it cannot reach.

    The tests use the program's names as if they shared its namespace. Their reason tells how they
    failed, or why they prove nothing: see ``docs/explanation/sandbox.md``.

    Args:
        program: What a model wrote.
        tests: What must run without an exception, in order, in one namespace.
        timeout_s: Seconds of wall clock, and of processor for each of the two.
        memory_bytes: Of address space for each of the two.

    Raises:
        ResourceError: If the kernel cannot isolate the processes; nothing was run.
    """
    return _run_sandboxed([program], tests, "", timeout_s, memory_bytes, ())


def _run_sandboxed(
    parts: Sequence[str],
    tests: Sequence[str] | None,
    stdin: str,
    timeout_s: float,
    memory_bytes: int,
    readable: Sequence[Path],
) -> ExecutionResult:
    if sum(map(len, [*parts, *(tests or ())])) > _MAX_CODE:
        return ExecutionResult("too much code", "", "")
    nonce = secrets.token_hex(16)
    order: dict[str, object] = {
        "cpu_s": max(1, round(timeout_s + 0.5)),
        "memory_bytes": memory_bytes,
        "output_bytes": _OUTPUT_BYTES,
        "readable": [*_interpreter_files(), *(str(path.resolve()) for path in readable)],
        "namespaces": _NAMESPACES,
    }
    given: dict[str, object] = {"program": list(parts), "stdin": stdin}
    if tests is not None:
        given["tests"] = {"tests": list(tests), "nonce": nonce}
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        stack.enter_context(_SLOTS)
        code, told = _run_processes(order, given, out, err, timeout_s)
        if not told and code == -signal.SIGXCPU:  # a busy machine did not come to start it
            code, told = _run_processes(order, given, out, err, timeout_s + _STARTUP_S)
        shown, errors = _read_output(out), _read_output(err)
    if not told.get("ready"):
        raise _isolation_error(told.get("doors"), errors)
    if not told["doors"]["view"]:
        _warn_of_open_access()
    if tests is not None and told.get("verdict") == nonce:
        reason = str(told["reason"])
        return ExecutionResult(reason and _failure_reason(code, told, reason), shown, errors)
    if tests is None and told.get("end") == "":
        return ExecutionResult("", shown, errors)
    return ExecutionResult(
        _failure_reason(code, told, _exception_name(told.get("end"))), shown, errors
    )


def _run_processes(
    order: dict[str, object],
    given: dict[str, object],
    out: IO[bytes],
    err: IO[bytes],
    timeout_s: float,
) -> tuple[int, dict[str, Any]]:
    """Run the processes of one check; return how the first ended, and what they reported."""
    with contextlib.ExitStack() as files:
        reader, writer = os.pipe()
        pipe = files.enter_context(os.fdopen(reader, "rb"))
        passed = {name: _anonymous_file(value, files) for name, value in given.items()}
        stdin = passed.pop("stdin")
        told = order | {"tests": -1} | passed | {"report": writer}
        command = [sys.executable, "-I", "-S", "-B", str(_START), json.dumps(told)]
        try:
            process = subprocess.Popen(  # noqa: S603  # our own interpreter and file
                command,
                stdin=stdin,
                stdout=out,
                stderr=err,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                cwd="/",
                pass_fds=(writer, *passed.values()),
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            code = process.wait(timeout_s + 1)
        except subprocess.TimeoutExpired:
            code = -signal.SIGXCPU
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return code, _parse_report(pipe.read(1 << 16))


def _anonymous_file(value: object, files: contextlib.ExitStack) -> int:
    """Return the number of a nameless file that holds a text, or a value as JSON."""
    file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # closed by the stack
    text = value if isinstance(value, str) else json.dumps(value)
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    return file.fileno()


def _parse_report(lines: bytes) -> dict[str, Any]:
    """Return what the processes reported, by key.

    A program that is run without tests holds the pipe: it cannot take back what was said of its
    doors before it ran, and what it says itself may be of any type.
    """
    first: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for line in lines.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                first = first or row
                told |= row
    told |= first
    ended = told.get("ended")
    if not (isinstance(ended, dict) and all(type(one) is int for one in ended.values())):
        told.pop("ended", None)
    return told


@lru_cache(maxsize=1)
def _warn_of_open_access() -> None:
    _LOG.warning(
        "this machine gives no view of files apart (user namespaces): code in the sandbox can "
        "read, change and reach nothing, but it can learn which files exist"
    )


def _interpreter_files() -> list[str]:
    """Return what the interpreter reads of itself: its library, and the shared ones."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    paths |= {sysconfig.get_config_var("LIBDIR") or "", "/usr/lib", "/lib", "/lib64"}
    return sorted(path for path in paths if path and Path(path).exists())


def _read_output(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_OUTPUT_BYTES).decode("utf-8", "replace")


def _failure_reason(code: int, told: dict[str, Any], said: str) -> str:
    """Return how code ended that did not come to its end, in fixed words."""
    killed = [status & 127 for status in told.get("ended", {}).values()]
    if code == -signal.SIGXCPU or signal.SIGXCPU in killed or not killed:
        return "out of time"
    if said == "MemoryError" or signal.SIGSEGV in killed:
        return "out of memory"
    return {"SystemExit": "ended early", "": "ended early"}.get(said, said)


def _exception_name(said: object) -> str:
    """Return the name of an exception that a program says it ended by, and no other word of it."""
    kind = getattr(builtins, said, None) if isinstance(said, str) else None
    is_known = isinstance(kind, type) and issubclass(kind, BaseException)
    return str(said) if is_known or said == CUSTOM_EXCEPTION else ""


def _isolation_error(doors: object, errors: str) -> ResourceError:
    missing = (
        [_MECHANISMS[name] for name, closed in doors.items() if not closed and name in _MECHANISMS]
        if isinstance(doors, dict)
        else []
    )
    return ResourceError(
        "code cannot be isolated on this machine, and was not run",
        code="evaluate.sandbox",
        expected=", ".join(missing) or f"a Linux kernel with Landlock and seccomp ({errors:.200})",
        next="run the job on a newer Linux, or choose another verifier",
    )
