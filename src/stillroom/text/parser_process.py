"""Parser sandbox: a subprocess with limits on time, memory and output.

One process serves many files. It has a memory limit, cannot write files, has none of the parent's
secrets in its environment (but does have network access), and is killed and restarted when a file
exceeds its time or crashes it. The time limit is on processor time, so that a busy machine loses no
file; a process that hangs without using any is killed by the wall clock, at twenty times the
limit. Messages are length-prefixed JSON, so nothing received is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, BinaryIO

from stillroom.errors import DataError, MissingExtraError, Problem, ResourceError, StillroomError
from stillroom.provenance.digests import load_json
from stillroom.records import Document, Origin
from stillroom.text.interfaces import PARSERS, ParseLimits, Parser, SourceFile

__all__ = ["ParserProcess", "serve"]

_ERRORS: dict[str, type[StillroomError]] = {
    kind.__name__: kind for kind in (DataError, ResourceError, MissingExtraError)
}
_STARTUP_S = 60.0
_WALL_FACTOR = 20.0  # wall-clock limit as a multiple of the processor-time limit
_POLL_S = 0.05  # minimum interval between two checks of the processor time
_PASSED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "SYSTEMROOT",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
)
_RECYCLE_FILES = 500
_BLOCK = 1 << 16
_MAX_REPLY = 1 << 30
_MORE_TIME_REPLY: dict[str, Any] = {"more_time": True}


class ParserProcess:
    """Parses files in a subprocess; a context manager, for one thread at a time."""

    def __init__(self) -> None:
        """Prepare; the process starts with the first file."""
        self._process: subprocess.Popen[bytes] | None = None
        self._served = 0
        self._limits: ParseLimits | None = None
        self.starts = 0

    def __enter__(self) -> ParserProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def parse(self, parser: Parser, data: bytes, source: SourceFile) -> Document:
        """Parse bytes in the subprocess.

        Raises:
            DataError: If the file is bad, takes too long or brings the process down.
            MissingExtraError: If the format needs a package that is not installed.
        """
        if self._served >= _RECYCLE_FILES or self._limits != source.limits:
            self.close()
        process = self._process or self._start(source)
        self._served += 1
        request = {
            "parser": parser.model_dump(mode="json"),
            "path": source.path,
            "digest": source.digest,
            "media_type": source.media_type,
            "origin": source.origin.to_json(),
            "limits": source.limits.model_dump(mode="json"),
            "size": len(data),
            "declared": dict(source.declared),
        }
        try:
            reply = self._ask(process, request, data, source)
        except BaseException:  # such as an interruption, whose reply would answer the next file
            self.close()
            raise
        if "document" in reply:
            return _check_document(reply["document"], source)
        problems = tuple(Problem(**problem) for problem in reply["problems"])
        raise _ERRORS.get(reply["error"], DataError)(problems)

    def close(self) -> None:
        """End the process, if it is running."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()

    def _start(self, source: SourceFile) -> subprocess.Popen[bytes]:
        limits = source.limits
        environment = {
            **{name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ},
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        code = f"from stillroom.text.parser_process import serve; serve({limits.memory_bytes})"
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._process, self._served, self._limits = process, 0, limits
        self.starts += 1
        return process

    def _ask(
        self,
        process: subprocess.Popen[bytes],
        request: dict[str, Any],
        data: bytes,
        source: SourceFile,
    ) -> dict[str, Any]:
        import psutil  # here and below: the child needs none of it

        limits = source.limits
        head = json.dumps(request).encode()
        pending = [memoryview(len(head).to_bytes(8, "big") + head), memoryview(data)]
        try:
            if self._served == 1:  # the first file's time excludes imports
                _exchange(process, [], _Deadline(process, _STARTUP_S))
            patience = _Deadline(process, limits.timeout_s)
            last = patience.until + limits.ocr_timeout_s
            answer = load_json(_exchange(process, pending, patience))
            while answer == _MORE_TIME_REPLY:
                patience = _Deadline(process, limits.timeout_s, last)
                answer = load_json(_exchange(process, pending, patience))
        except TimeoutError as error:
            raise DataError(
                f"the file took longer than {limits.timeout_s:g} s to read: {error}",
                code="document.timeout",
                where=source.path,
                expected="a file that reads faster, or a higher limit timeout_s",
                next="split the file, or leave it out",
            ) from error
        except (EOFError, OSError, ValueError, psutil.Error) as error:
            raise DataError(
                "the file brought the reading process down",
                code="document.crashed",
                where=source.path,
                expected=f"a file that reads within {source.limits.memory_bytes} bytes of memory",
                next="open and save it in its program, or leave it out",
            ) from error
        if not isinstance(answer, dict):
            raise TypeError("the parser process sent an unexpected reply")
        return answer


class _Deadline:
    """Remaining processor time of a process; ``until`` is on that process's clock."""

    def __init__(
        self, process: subprocess.Popen[bytes], seconds: float, last: float = float("inf")
    ) -> None:
        """Allow ``seconds`` from now on, but not beyond ``last`` on the process's clock."""
        import psutil

        self._meter = psutil.Process(process.pid)
        self._begun = time.monotonic()
        self._wall = _WALL_FACTOR * seconds
        self.until = min(self._spent() + seconds, last)

    def _spent(self) -> float:
        times = self._meter.cpu_times()
        return float(times.user + times.system)

    def next_look(self) -> float:
        """Return the seconds to wait before the next check.

        Raises:
            TimeoutError: If the time is up.
        """
        remaining = self.until - self._spent()
        if remaining <= 0:
            raise TimeoutError("so much processor time has it used")
        wall_remaining = self._wall - (time.monotonic() - self._begun)
        if wall_remaining <= 0:
            raise TimeoutError(f"it has used less, but has not answered for {self._wall:g} s")
        # Processor time grows no faster than the clock (one thread): an earlier check is useless.
        return min(max(remaining, _POLL_S), wall_remaining)


def _exchange(
    process: subprocess.Popen[bytes], pending: list[memoryview], patience: _Deadline
) -> bytes:
    """Write pending data and read one reply before the deadline."""
    if process.stdin is None or process.stdout is None:
        raise EOFError
    sender, receiver = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(sender, False)
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        if pending:
            selector.register(sender, selectors.EVENT_WRITE)
        selector.register(receiver, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(patience.next_look()):
                if key.fd == receiver:
                    _receive(receiver, received)
                    if _is_complete(received):
                        return bytes(received[8:])
                    continue
                _send(sender, pending)
                if not pending:
                    selector.unregister(sender)


def _receive(descriptor: int, received: bytearray) -> None:
    """Receive data, but never beyond the end of one reply."""
    expected = 8 + int.from_bytes(received[:8], "big") if len(received) >= 8 else 8
    block = os.read(descriptor, min(_BLOCK, expected - len(received)))
    if not block:
        raise EOFError
    received += block


def _is_complete(received: bytearray) -> bool:
    size = int.from_bytes(received[:8], "big")
    if size > _MAX_REPLY:
        raise ValueError("the reply is too long")
    return len(received) >= 8 and len(received) == 8 + size


def _send(descriptor: int, pending: list[memoryview]) -> None:
    with contextlib.suppress(BlockingIOError):
        sent = os.write(descriptor, pending[0][:_BLOCK])
        pending[0] = pending[0][sent:]
    while pending and not len(pending[0]):
        del pending[0]


def _check_document(data: dict[str, Any], source: SourceFile) -> Document:
    """Build the document; fields that only the parent may set are overwritten."""
    data |= {"path": source.path, "digest": source.digest, "origin": source.origin.to_json()}
    return Document.from_json(data)


def serve(memory_bytes: int) -> None:
    """Parse files from stdin until it closes; the child side of ``ParserProcess``."""
    _limit_process(memory_bytes)
    # No file can be written here, but libraries ask for one: py3langid unpacks its model in it.
    in_memory = partial(tempfile.SpooledTemporaryFile, memory_bytes)
    tempfile.TemporaryFile = in_memory  # type: ignore[assignment]
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keep a library's prints out of the replies
    requests = os.fdopen(os.dup(0), "rb")
    _send_reply(replies, {"ready": True})
    while head := requests.read(8):
        request = json.loads(requests.read(int.from_bytes(head, "big")))
        data = requests.read(request["size"])
        _send_reply(
            replies, _handle_request(request, data, lambda: _send_reply(replies, _MORE_TIME_REPLY))
        )


def _send_reply(replies: BinaryIO, content: dict[str, Any]) -> None:
    reply = json.dumps(content).encode()
    replies.write(len(reply).to_bytes(8, "big") + reply)
    replies.flush()


def _handle_request(
    request: dict[str, Any], data: bytes, more_time: Callable[[], None]
) -> dict[str, Any]:
    limits = ParseLimits.model_validate(request["limits"])
    source = SourceFile(
        request["path"],
        request["digest"],
        request["media_type"],
        Origin.from_json(request["origin"]),
        limits,
        more_time,
        request["declared"],
    )
    try:
        return {"document": PARSERS.build(request["parser"]).parse(data, source).to_json()}
    except StillroomError as error:
        return {"error": type(error).__name__, "problems": _plain_problems(error.problems)}
    except MemoryError:
        problem = Problem(
            "the file needs too much memory to read",
            "document.memory",
            source.path,
            f"at most {limits.memory_bytes} bytes",
            "split the file, or raise the limit memory_bytes",
        )
        return {"error": "DataError", "problems": _plain_problems((problem,))}
    except Exception as error:  # noqa: BLE001  # whatever a parser raises is about this file
        problem = Problem(
            f"the file cannot be read: {type(error).__name__}: {str(error)[:300]}",
            "document.unreadable",
            source.path,
            "a whole file of its format",
            "open and save it in its program, or leave it out",
        )
        return {"error": "DataError", "problems": _plain_problems((problem,))}


def _plain_problems(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [asdict(problem) for problem in problems]


def _limit_process(memory_bytes: int) -> None:
    """Limit this process where the system can: memory, core dumps, file writes, processes."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the time limit holds all the same
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
