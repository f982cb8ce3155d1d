r"""Whether two answers are the same formula, decided by Math-Verify in a process apart.

A formula may take sympy forever (``9^{9^{9^9}}``), so that the comparison has limits of time and
memory, and what exceeds them is not equal. The process serves many comparisons.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import selectors
import subprocess
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import IO

from stillroom.errors import MissingExtraError
from stillroom.evaluate.final_answer import changes_number

__all__ = ["same_formula"]

_LONGEST = 300
_TIMEOUT_S = 6.0
_START_S = 120.0
_FORMULA = re.compile(r"[\d\\^=<>+*/]|\b[a-zA-Z]\b")
_NUMBER = re.compile(r"[-+]?[\d.,]+%?")
_MATRIX = re.compile(r"\\begin\{\w*(?:matrix|array)\}")
_TO_ZERO = re.compile(r"[^=<>]*[-+*^][^=<>]*=\s*0")
_UPRIGHT = re.compile(r"\\mathrm\s*\{\s*([ei])\s*\}")
_UNEQUAL = re.compile(r"\\neq?\b|!=|\u2260|\\not\s*=")
_UNIT = re.compile(r"(?<=[\d})])(?:\\[ ,;:]|~|\s)*\\text\s*\{([^{}\d\\$]*)\}[\s.]*$")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}(?![A-Za-z]*\s*[({_^])")
_SERVER = """
import json, sys, logging
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
sides = [parse(text, parsing_timeout=None) for text in ("$x^2$", "$0.5$")]
verify(*sides, timeout_seconds=None)  # loads what the first comparison needs
print("ready", flush=True)
for line in sys.stdin:
    one, other = json.loads(line)
    try:
        sides = [parse(f"${text}$", parsing_timeout=None) for text in (other, one)]
        same = all(sides) and bool(verify(*sides, timeout_seconds=None))
    except Exception:
        same = False
    print(int(same), flush=True)
"""


def same_formula(one: str, other: str) -> bool:
    """Return whether two answers are equal as formulas, sets, intervals or equations.

    Raises:
        MissingExtraError: If math-verify is not installed and one of the two is a formula.
    """
    # Math-Verify drops an upright e or i: 1 - 1/e would equal 1 + 1/e
    one, other = (_UPRIGHT.sub(r"\1", text.strip().strip("$ ")) for text in (one, other))
    if max(len(one), len(other)) > _LONGEST or not (
        _FORMULA.search(one) and _FORMULA.search(other)
    ):
        return False
    one, other = _without_unit(one), _without_unit(other)
    if any(_is_of_another_kind(*sides) for sides in ((one, other), (other, one))):
        return False
    if find_spec("math_verify") is None:
        raise MissingExtraError.of("math-verify", "verify", "comparing formulas")
    return _ask(one, other)


def _without_unit(text: str) -> str:
    r"""Return a formula without the unit (``\text{ square inches}``) that ends it."""
    found = _UNIT.search(text)
    return text if found is None or changes_number(found[1]) else text[: found.start()]


def _is_of_another_kind(one: str, other: str) -> bool:
    """Return whether two answers differ in kind, which Math-Verify overlooks.

    It compares what stands right of an equation's sign, a matrix of zeros with 0, what is unequal
    as if it were equal, and the last number of a sentence.
    """
    if _PROSE.search(one) or bool(_UNEQUAL.search(one)) > bool(_UNEQUAL.search(other)):
        return True
    return bool(_NUMBER.fullmatch(one) and (_MATRIX.search(other) or _TO_ZERO.fullmatch(other)))


@lru_cache(maxsize=4096)
def _ask(one: str, other: str) -> bool:
    with _LOCK:
        return _SERVER_PROCESS.ask(one, other)


class _Process:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, one: str, other: str) -> bool:
        process = self._process or self._start()
        try:
            _pipe(process.stdin).write(json.dumps([one, other]).encode() + b"\n")
            _pipe(process.stdin).flush()
            said = self._line(_TIMEOUT_S)
        except OSError:
            said = b""
        if said not in {b"0", b"1"}:
            self._stop()
        return said == b"1"

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and words
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(sys.path)},
            preexec_fn=_limit,
            start_new_session=True,
        )
        self._line(_START_S)
        return self._process

    def _line(self, timeout_s: float) -> bytes:
        process = self._process
        if process is None:
            return b""
        with selectors.DefaultSelector() as ready:
            ready.register(_pipe(process.stdout), selectors.EVENT_READ)
            if not ready.select(timeout_s):
                return b""
        return _pipe(process.stdout).readline().strip()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def _limit() -> None:
    """Bound the memory of the process that is being started."""
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise OSError("the process has no pipe")
    return pipe


_LOCK = threading.Lock()
_SERVER_PROCESS = _Process()
