"""A subprocess of our own code that works on a stranger's input, one request at a time, in limits.

Some inputs are programs in disguise: a chat template, a regular expression. What they cost cannot
be seen beforehand, so the kernel counts. The process stays between requests, which then cost no
start. It is no sandbox: what it runs can compute, and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from stillroom.errors import StillroomError

__all__ = ["OUT_OF_MEMORY", "LimitedProcess", "limit_seconds", "serve_requests"]

OUT_OF_MEMORY = 77
"""Exit status of a process that a request left without memory."""
_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "LD_LIBRARY_PATH")
_PATHS = "import sys; sys.path[:0] = sys.argv[1:]; "
"""PYTHONPATH has no folder with a colon in its name."""
_READY = b"{}\n"


class LimitedProcess:
    """The subprocess, started by the first request; one request at a time, from any thread."""

    def __init__(
        self, make_code: Callable[[], str], make_error: Callable[[str], StillroomError]
    ) -> None:
        """Prepare a process.

        Args:
            make_code: Called at each start; returns Python code that calls ``serve_requests``.
            make_error: Returns the error of a process that does not start, of its cause.
        """
        self._make_code, self._make_error = make_code, make_error
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def ask(self, request: bytes) -> bytes | int:
        """Return the line that answers a line, or the status with which the process ended.

        Raises:
            StillroomError: If the process does not start.
        """
        status = 0
        with self._lock:
            for _ in range(2):  # again if the process was killed, which no request can do
                process = self._process
                if process is None or process.poll() is not None:
                    process = self._start()
                line = self._exchange(process, request + b"\n")
                if line.endswith(b"\n"):
                    return line
                status = process.wait()
                self.close()
                if status != -signal.SIGKILL:
                    break
        return status

    def close(self) -> None:
        """End the process, if it is running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            _require_pipe(pipe).close()

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        """Write a request and return the reply, without its end if the process ended before it."""
        line = bytearray()
        try:
            with contextlib.suppress(BrokenPipeError):  # a process that ended closes its pipes
                _write(_require_pipe(process.stdin), request)
                while not line.endswith(b"\n"):
                    piece = _require_pipe(process.stdout).read(1 << 20)
                    if not piece:
                        break
                    line += piece
        except BaseException:  # Ctrl-C: its reply would be taken for that of the next request
            self.close()
            raise
        return bytes(line)

    def _forget(self) -> None:
        """Start anew in a forked process: the other, and what its pipes hold, is its parent's."""
        process, self._process, self._lock = self._process, None, threading.Lock()
        if process is not None:
            process.returncode = 0
            for pipe in (process.stdin, process.stdout):
                _require_pipe(pipe).close()

    def _start(self) -> subprocess.Popen[bytes]:
        code = _PATHS + self._make_code()
        self.close()
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-P", "-c", code, *(path for path in sys.path if path)],
            bufsize=0,  # what is buffered would be written once more by a forked process
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the caller, which may still ask
        )
        self._process = process
        first = self._exchange(process, b"")
        if first != _READY:
            self.close()
            problem = json.loads(first)["problem"] if first else f"status {process.returncode}"
            raise self._make_error(problem)
        return process


def serve_requests(prepare: Callable[[], Callable[[bytes], bytes]], memory_bytes: int) -> None:
    """Answer lines from stdin until it closes; the child side of ``LimitedProcess``.

    Args:
        prepare: Imports what is needed; returns the function that answers a line by another.
        memory_bytes: Limit of the memory, above what the process has then.
    """
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # keep a library's prints out of the replies
    try:
        answer = prepare()
    except Exception as error:  # noqa: BLE001  # the caller tells of it
        _write(replies, json.dumps({"problem": str(error)[:2000]}).encode() + b"\n")
        return
    _limit_memory(memory_bytes)
    _write(replies, _READY)
    for line in sys.stdin.buffer:
        try:
            reply = answer(line)
        except MemoryError:
            # What it left behind would be charged to the next request.
            os._exit(OUT_OF_MEMORY)
        _write(replies, reply + b"\n")


def _write(pipe: IO[bytes], content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[pipe.write(rest) :]


def _limit_memory(more_bytes: int) -> None:
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
