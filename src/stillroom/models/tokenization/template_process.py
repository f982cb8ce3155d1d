"""Rendering of chat templates in a subprocess with limits of processor time and memory.

A chat template is a program of the checkpoint's author. Jinja's sandbox confines what it may
reach, not what it may cost: two nested loops over ``range(99999)``, a macro that calls itself
twice, a text that is doubled 40 times. Cost within one operation (``'a' * 10**10``, the comparison
of lists that are nested in themselves) is out of reach of a count of loops and calls, so the kernel
counts. The subprocess renders with transformers' own code, without torch.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from stillroom.errors import BackendError, MissingExtraError

__all__ = ["make_template_error", "render_template", "serve_templates"]

_CPU_S = 10
"""Processor time of one rendering: a plain template takes under .5 s for 2,000 turns."""
_MEMORY_BYTES = 1 << 30
"""Memory of one rendering, above what the process needs at rest."""
_BATCH = 16
"""Texts of one request; those of a long conversation's turns are together quadratic in it."""
_OUT_OF_MEMORY = 77
"""Exit status of a process that a template left without memory."""
_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SYSTEMROOT", "LD_LIBRARY_PATH")
_CODE = (
    "import sys; sys.path[:0] = sys.argv[1:];"  # PYTHONPATH has no folder with a colon in its name
    " from stillroom.models.tokenization.template_process import serve_templates;"
    " serve_templates({}, {})"
)
_READY = b"{}\n"


def render_template(
    template: str,
    turns: Sequence[Mapping[str, str]],
    variables: Mapping[str, Any],
    cuts: Sequence[tuple[int, bool]],
) -> list[str]:
    """Render a chat template as ``apply_chat_template(tokenize=False)`` does, within limits.

    Args:
        template: Jinja source.
        turns: Messages as dictionaries of role and content.
        variables: Further variables of the template: the tokenizer's special tokens, ``tools``.
        cuts: For each text, the number of turns and whether the assistant's turn is opened.

    Raises:
        BackendError: If the template fails on these messages (``backend.template``) or exceeds
            a limit (``backend.template-limit``), or its process does not start.
    """
    texts: list[str] = []
    for first in range(0, len(cuts), _BATCH):
        request = [template, list(turns), dict(variables), list(cuts[first : first + _BATCH])]
        reply = _PROCESS.ask(json.dumps(request, default=str).encode())
        if "problem" in reply:
            raise make_template_error(reply["problem"])
        if "limit" in reply:
            raise BackendError(
                f"the chat template {reply['limit']} for {len(turns)} messages; it was stopped",
                code="backend.template-limit",
                where=f"chat template {template[:60]!r}...",
                expected=f"a text within {_CPU_S} s of processor time "
                f"and {_MEMORY_BYTES >> 20} MiB of memory",
                next="replace chat_template.jinja by that of the base model, "
                "and distrust the checkpoint",
            )
        texts += reply["texts"]
    return texts


def make_template_error(problem: object) -> BackendError:
    """Return the error of a template that fails on some messages."""
    return BackendError(
        f"the chat template refuses these messages: {problem}",
        code="backend.template",
        expected="roles in the order the model was trained on",
        next="drop the system message, or let user and assistant take turns",
    )


class _TemplateProcess:
    """The subprocess, started by the first template; one rendering at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes) -> dict[str, Any]:
        with self._lock:
            for _ in range(2):  # again if the process was killed, which no template can do
                process = self._process
                if process is None or process.poll() is not None:
                    process = self._start()
                line = self._exchange(process, request + b"\n")
                if line.endswith(b"\n"):
                    return dict(json.loads(line))
                status = process.wait()
                self.close()
                if status != -signal.SIGKILL:
                    break
        if status == -signal.SIGXCPU:
            return {"limit": f"needs more than {_CPU_S} s of processor time"}
        if status == _OUT_OF_MEMORY:
            return {"limit": f"needs more than {_MEMORY_BYTES >> 20} MiB of memory"}
        return {"limit": f"ended its process with status {status}"}

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes) -> bytes:
        """Write a request and return the reply, without its end if the process ended before it."""
        line = bytearray()
        try:
            with contextlib.suppress(BrokenPipeError):  # a process that ended closes its pipes
                rest = memoryview(request)
                while rest:
                    rest = rest[_require_pipe(process.stdin).write(rest) :]
                while not line.endswith(b"\n"):
                    piece = _require_pipe(process.stdout).read(1 << 20)
                    if not piece:
                        break
                    line += piece
        except BaseException:  # Ctrl-C: its reply would be taken for that of the next request
            self.close()
            raise
        return bytes(line)

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

    def _start(self) -> subprocess.Popen[bytes]:
        if importlib.util.find_spec("transformers") is None:
            raise MissingExtraError.of("transformers", "models", "a chat template")
        passed = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
        self.close()
        code = _CODE.format(_CPU_S, _MEMORY_BYTES)
        process = subprocess.Popen(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-P", "-c", code, *(path for path in sys.path if path)],
            bufsize=0,  # what is buffered would be written once more by a forked process
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=passed,
            start_new_session=True,  # Ctrl-C is for the caller, which may still render
        )
        self._process = process
        first = self._exchange(process, b"")
        if first != _READY:
            self.close()
            cause = json.loads(first)["problem"] if first else f"status {process.returncode}"
            raise BackendError(
                f"the process that renders chat templates does not start: {cause}",
                code="backend.template-process",
                where=sys.executable,
                expected=f"memory for transformers and a text, {_MEMORY_BYTES >> 20} MiB or more",
                next="raise the limit of memory (ulimit -v), or install transformers again",
            )
        return process


def serve_templates(cpu_s: int, memory_bytes: int) -> None:
    """Render templates from stdin until it closes; the child side of ``render_template``."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # keep a library's prints out of the replies
    try:
        from transformers.utils.chat_template_utils import render_jinja_template
    except Exception as error:  # noqa: BLE001  # the caller tells of it
        replies.write(json.dumps({"problem": str(error)[:2000]}).encode() + b"\n")
        return
    _limit_memory(memory_bytes)
    replies.write(_READY)
    for line in sys.stdin.buffer:
        try:
            template, turns, variables, cuts = json.loads(line)
            texts: list[str] = []
            for count, opens in cuts:
                _limit_seconds(cpu_s)
                rendered = render_jinja_template(
                    conversations=[turns[:count]],
                    chat_template=template,
                    add_generation_prompt=opens,
                    **variables,
                )
                texts.append(str(rendered[0][0]))
            reply = json.dumps({"texts": texts})
        except MemoryError:
            # What it left behind would be charged to the next template.
            os._exit(_OUT_OF_MEMORY)
        except Exception as error:  # noqa: BLE001  # templates are foreign code and may raise anything
            reply = json.dumps({"problem": str(error)[:2000]})
        rest = memoryview(reply.encode() + b"\n")
        while rest:
            rest = rest[replies.write(rest) :]


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


def _limit_seconds(more_s: int) -> None:
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


def _forget_process() -> None:
    """Start anew in a forked process, whose pipes would be its parent's."""
    global _PROCESS
    if (process := _PROCESS._process) is not None:
        process.returncode = 0  # the parent waits for it
        for pipe in (process.stdin, process.stdout):
            _require_pipe(pipe).close()
    _PROCESS = _TemplateProcess()


_PROCESS = _TemplateProcess()
atexit.register(lambda: _PROCESS.close())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_process)
