"""A subprocess of our own code that works on a stranger's input, one request at a time, in limits.

Some inputs are programs in disguise: a chat template, a regular expression. What they cost cannot
be seen beforehand, so the kernel counts. The process stays between requests, which then cost no
start. It is no sandbox: what it runs can compute, and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

__all__ = ["OUT_OF_MEMORY", "LimitedProcess", "limit_memory", "limit_seconds"]

OUT_OF_MEMORY = 77
"""Exit status by which a process says that a request left it without memory."""
_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "LD_LIBRARY_PATH")


class LimitedProcess:
    """The subprocess, started by the first request; one request at a time, from any thread."""

    def __init__(self, make_code: Callable[[], str]) -> None:
        """Prepare a process.

        Args:
            make_code: Called at each start; returns Python code that reads lines from stdin and
                writes one line for each to stdout.
        """
        self._make_code = make_code
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # its pipes would be its parent's

    def ask(self, request: bytes) -> bytes | int:
        """Return the line that answers a line, or the status with which the process ended."""
        with self._lock:
            process = self._process or self._start()
            line = b""
            with contextlib.suppress(OSError):  # a process that ended closes its pipes
                _require_pipe(process.stdin).write(request + b"\n")
                _require_pipe(process.stdin).flush()
                line = _require_pipe(process.stdout).readline()
            if line.endswith(b"\n"):
                return line
            status = process.wait()
            self.close()
            return status

    def close(self) -> None:
        """End the process, if it is running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # the rest of a request cannot be flushed
                _require_pipe(pipe).close()

    def _forget(self) -> None:
        process, self._process, self._lock = self._process, None, threading.Lock()
        if process is not None:
            process.returncode = 0  # it is the parent's, and so is what its pipes still hold
            for pipe in (process.stdin, process.stdout):
                cast("io.BufferedWriter", pipe).raw.close()

    def _start(self) -> subprocess.Popen[bytes]:
        passed = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-P", "-c", self._make_code()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**passed, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            start_new_session=True,  # Ctrl-C is for the caller, which may still ask
        )
        self._process = process
        return process


def limit_memory(more_bytes: int) -> None:
    """Limit the memory of this process to so much above what it has."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # only Linux tells how much there is, and limits
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_seconds(more_s: int) -> None:
    """Let the kernel end this process after further seconds of processor time."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(time.process_time()) + 1 + more_s
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def _require_pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("the process has no pipe")
    return pipe
