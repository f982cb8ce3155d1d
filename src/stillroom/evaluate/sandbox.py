"""Code execution sandbox: model-written code in a separate process without network or files.

Code runs in a bare interpreter (standard library only) that confines itself before it compiles a
line (``stillroom.evaluate.isolation``); if the kernel cannot confine it, nothing is run and the
error has the reason. A timeout or too much output kills it. Its output and its reported exit reason
are untrusted data.

``run_tests`` runs tests in a second process that shares only two pipes with the program: a pass is
reported there, with a secret that the program's process never holds.

Not covered: a kernel vulnerability breaks the sandbox. Run the job itself in a container if more
than wrong records is at stake.
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
from stillroom.evaluate import isolation
from stillroom.evaluate.isolation.peer import CUSTOM_EXCEPTION

__all__ = ["ExecutionResult", "run_code", "run_tests"]

_LOG = logging.getLogger("stillroom.evaluate")
_START = Path(isolation.__file__).with_name("start.py")
_OUTPUT_BYTES = 1 << 18
_MAX_CODE = 1 << 20
_STARTUP_S = 60.0  # for interpreter startup on a slow machine
_MECHANISMS = {
    "files": "Landlock (Linux 5.13 or newer)",
    "calls": "seccomp on x86-64 or 64-bit ARM",
}
_NAMESPACES = True
_SLOTS = threading.BoundedSemaphore(max(os.cpu_count() or 1, 1))


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """Outcome of running code: ``reason`` is empty if it finished; and its output.

    A reason is a fixed phrase or the name of a built-in exception, never text of the code.
    """

    reason: str
    output: str
    errors: str

    @property
    def is_done(self) -> bool:
        """Whether the code finished without an exception."""
        return not self.reason


def run_code(
    parts: Sequence[str],
    *,
    stdin: str = "",
    timeout_s: float = 5.0,
    memory_bytes: int = 512 * 2**20,
) -> ExecutionResult:
    """Run Python code in the sandbox.

    The outcome is reported by the code's own process: judge by its output. Use ``run_tests`` for
    verdicts.

    The parts run one after another in one namespace. ``timeout_s`` limits wall clock and processor
    time, ``memory_bytes`` the address space.

    Raises:
        ResourceError: If the kernel cannot isolate the process; nothing was run.
    """
    return _run_sandboxed(parts, None, stdin, timeout_s, memory_bytes)


def run_tests(
    program: str,
    tests: Sequence[str],
    *,
    timeout_s: float = 5.0,
    memory_bytes: int = 512 * 2**20,
) -> ExecutionResult:
    """Run a program, and its tests in a process that the program cannot reach.

    The tests use the program's names as if they shared its namespace. The reason is how they
    failed, or why they prove nothing: see ``docs/explanation/sandbox.md``.

    The tests must run without an exception, in order, in one namespace. The limits of processor
    time and address space are those of each process.

    Raises:
        ResourceError: If the kernel cannot isolate the processes; nothing was run.
    """
    return _run_sandboxed([program], tests, "", timeout_s, memory_bytes)


def _run_sandboxed(
    parts: Sequence[str],
    tests: Sequence[str] | None,
    stdin: str,
    timeout_s: float,
    memory_bytes: int,
) -> ExecutionResult:
    if sum(map(len, [*parts, *(tests or ())])) > _MAX_CODE:
        return ExecutionResult("too much code", "", "")
    nonce = secrets.token_hex(16)
    # The interpreter's own files: its library, and shared ones.
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    paths |= {sysconfig.get_config_var("LIBDIR") or "", "/usr/lib", "/lib", "/lib64"}
    order: dict[str, object] = {
        "cpu_s": max(1, round(timeout_s + 0.5)),
        "memory_bytes": memory_bytes,
        "output_bytes": _OUTPUT_BYTES,
        "readable": sorted(path for path in paths if path and os.access(path, os.R_OK)),
        "namespaces": _NAMESPACES,
    }
    inputs: dict[str, object] = {"program": list(parts), "stdin": stdin}
    if tests is not None:
        inputs["tests"] = {"tests": list(tests), "nonce": nonce}
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        stack.enter_context(_SLOTS)
        code, report = _run_processes(order, inputs, out, err, timeout_s)
        if not report and code == -signal.SIGXCPU:  # killed before startup on a busy machine
            code, report = _run_processes(order, inputs, out, err, timeout_s + _STARTUP_S)
        shown, errors = _read_output(out), _read_output(err)
    is_judged = tests is not None and report.get("verdict") == nonce
    # tests that are no Python may end the check before the program's process has begun
    if not report.get("ready", is_judged):
        raise _isolation_error(report.get("doors"), errors)
    if not report.get("doors", {"view": True})["view"]:
        _warn_of_open_access()
    if is_judged:
        reason = str(report["reason"])
        return ExecutionResult(reason and _failure_reason(code, report, reason), shown, errors)
    if tests is None and report.get("end") == "":
        return ExecutionResult("", shown, errors)
    return ExecutionResult(
        _failure_reason(code, report, _exception_name(report.get("end"))), shown, errors
    )


def _run_processes(
    order: dict[str, object],
    inputs: dict[str, object],
    out: IO[bytes],
    err: IO[bytes],
    timeout_s: float,
) -> tuple[int, dict[str, Any]]:
    """Run the processes of one check; return the first one's exit code, and their reports."""
    with contextlib.ExitStack() as files:
        reader, writer = os.pipe()
        pipe = files.enter_context(os.fdopen(reader, "rb"))
        passed = {name: _anonymous_file(value, files) for name, value in inputs.items()}
        stdin = passed.pop("stdin")
        settings = order | {"tests": -1} | passed | {"report": writer}
        command = [sys.executable, "-I", "-S", "-B", str(_START), json.dumps(settings)]
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
    """Return the descriptor of an anonymous file with a text, or a value as JSON."""
    file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # closed by the stack
    text = value if isinstance(value, str) else json.dumps(value)
    file.write(text.encode("utf-8", "replace"))
    file.seek(0)
    return file.fileno()


def _parse_report(lines: bytes) -> dict[str, Any]:
    """Return the reports of the processes, by key.

    A program run without tests holds the pipe: it cannot revoke the report on its confinement,
    sent before it ran, and its own report may be of any type.
    """
    first: dict[str, Any] = {}
    report: dict[str, Any] = {}
    for line in lines.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                first = first or row
                report |= row
    report |= first
    ended = report.get("ended")
    if not (isinstance(ended, dict) and all(type(status) is int for status in ended.values())):
        report.pop("ended", None)
    return report


@lru_cache(maxsize=1)
def _warn_of_open_access() -> None:
    _LOG.warning(
        "user namespaces are not available on this machine: code in the sandbox cannot read, "
        "change or reach anything, but can find out which files exist"
    )


def _read_output(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_OUTPUT_BYTES).decode("utf-8", "replace")


def _failure_reason(code: int, report: dict[str, Any], name: str) -> str:
    """Return a fixed phrase for code that did not finish."""
    killed = [status & 127 for status in report.get("ended", {}).values()]
    if code == -signal.SIGXCPU or signal.SIGXCPU in killed or not killed:
        return "out of time"
    if name == "MemoryError" or signal.SIGSEGV in killed:
        return "out of memory"
    return {"SystemExit": "ended early", "": "ended early"}.get(name, name)


def _exception_name(name: object) -> str:
    """Return the name of a built-in exception reported by a program, else a fixed phrase."""
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    is_known = isinstance(kind, type) and issubclass(kind, BaseException)
    return str(name) if is_known or name == CUSTOM_EXCEPTION else ""


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
