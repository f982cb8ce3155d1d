"""Search for a regular expression of a stranger, which may not come to an end by itself."""

from __future__ import annotations

import json
import re
import sys
import time

from stillroom.errors import ResourceError
from stillroom.objects.limited_process import (
    OUT_OF_MEMORY,
    LimitedProcess,
    limit_seconds,
    serve_requests,
)

__all__ = ["search_pattern", "serve_searches", "time_search"]

_CPU_S = 2
"""Processor time of one search, with the compilation: plain ones take under a millisecond."""
_MEMORY_BYTES = 1 << 29
_UNPLAIN = re.compile(r"\(\?(?:#|[aLms]*[iux-])")
"""Comments, which hide what stands before and behind them, and case, which is slow to compile."""
_PLAIN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^]\\])*\]|\(\?", re.DOTALL)
"""Escapes, sets, and heads of groups: what they hold is no quantifier."""
_NESTED = re.compile(r"[*+}]\)?[*+{]|\)[*+{]")
_CHOICE = re.compile(r"[*+?|]|\{(?!\d+\})")
"""Places where a match may go on in several ways."""
_STEPS = 10**7
_CODE = "from stillroom.evaluate.regex_search import serve_searches; serve_searches({}, {})"


def search_pattern(pattern: str, text: str, *, whole: bool = False) -> bool | None:
    """Return whether a text contains, or is, a match; None if the search does not end in 2 s.

    A pattern without nested quantifiers takes at most as many steps as the text is long, to the
    power of its choices and one. Where that is many, the search runs in a process with limits: most
    patterns that people write do end there.

    Raises:
        re.error: If it is not a regular expression.
        ResourceError: If the process cannot be started.
    """
    return time_search(pattern, text, whole=whole)[0]


def time_search(pattern: str, text: str, *, whole: bool = False) -> tuple[bool | None, float]:
    """Do as ``search_pattern``; return the seconds of processor time, too."""
    if _is_plain(pattern, len(text)):
        return _search(pattern, text, whole), 0.0
    reply = _PROCESS.ask(json.dumps([pattern, text, whole]).encode())
    if isinstance(reply, bytes):
        found, seconds = json.loads(reply)
        if isinstance(found, str):
            raise re.error(found)
        return bool(found), float(seconds)
    if reply < 0 or reply == OUT_OF_MEMORY:  # a signal: of the limit, or of the engine's fault
        return None, float(_CPU_S)
    raise _make_start_error(f"status {reply}")


def _is_plain(pattern: str, length: int) -> bool:
    plain = _PLAIN.sub("x", pattern)
    if _UNPLAIN.search(pattern) or _NESTED.search(plain):
        return False
    steps: int = max(length, 2) ** min(len(_CHOICE.findall(plain)) + 1, 30)
    return steps <= _STEPS


def _search(pattern: str, text: str, whole: bool) -> bool:
    try:
        compiled = re.compile(pattern)
        match = compiled.fullmatch(text) if whole else compiled.search(text)
    except MemoryError:
        raise
    except Exception as error:  # also a{99999999999}, or ( a thousand times
        raise re.error(str(error)[:300] or type(error).__name__) from error
    return match is not None


def serve_searches(cpu_s: int, memory_bytes: int) -> None:
    """Search for patterns from stdin until it closes; the child side of ``search_pattern``."""

    def answer(line: bytes) -> bytes:
        limit_seconds(cpu_s)
        start = time.process_time()
        try:
            found: bool | str = _search(*json.loads(line))
        except re.error as error:
            found = str(error)
        return json.dumps([found, time.process_time() - start]).encode()

    serve_requests(lambda: answer, memory_bytes)


def _make_start_error(problem: str) -> ResourceError:
    return ResourceError(
        f"the process that searches for regular expressions ended: {problem}",
        code="evaluate.sandbox",
        expected=f"{sys.executable} can be started",
        next="start the job again; if that does not help, install stillroom anew",
    )


_PROCESS = LimitedProcess(lambda: _CODE.format(_CPU_S, _MEMORY_BYTES), _make_start_error)
