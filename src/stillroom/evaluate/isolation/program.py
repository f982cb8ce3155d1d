"""Program process: runs model-written code and answers the calls of its tests.

Output of this process is not trusted: the code that it runs may have taken it over.
"""

from __future__ import annotations

import atexit
import ctypes
import io
import json
import os
import sys
from collections.abc import Callable

from stillroom.evaluate.isolation.confinement import (
    close_other_files,
    confine_process,
    die_with_parent,
)
from stillroom.evaluate.isolation.peer import Peer, exception_name
from stillroom.evaluate.isolation.wire import Encoder, find_name

TYPE_CHECKING = False  # avoids importing typing, which would cost more than a check
if TYPE_CHECKING:
    from typing import Any

    from stillroom.evaluate.isolation.confinement import Order

__all__ = ["run_program"]

_MODULE = "program"
_VALUES: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
}


def run_program(
    libc: ctypes.CDLL, order: Order, pipes: tuple[int, int] | None, isolation: dict[str, bool]
) -> None:
    """Confine the process, report that, run the code; answer its tests if there are pipes."""
    die_with_parent(libc)
    with os.fdopen(order["program"], "rb", closefd=False) as file:
        parts: list[str] = json.load(file)
    report = order["report"]
    close_other_files(libc, report, *(pipes or ()))
    doors = isolation | confine_process(libc, order, apart=isolation["namespaces"])
    closed = doors["files"] and doors["calls"]
    os.write(report, json.dumps({"ready": closed, "doors": doors}).encode() + b"\n")
    if not closed:
        return
    sys.argv = ["code"]
    if pipes is not None:
        os.close(report)
        _answer(parts, pipes)
        return
    raised = _run(parts, {"__name__": "__main__"})
    _finish()
    os.write(report, json.dumps({"end": exception_name(raised) if raised else ""}).encode() + b"\n")


def _finish() -> None:
    """Finish like an interpreter: wait for threads, run exit handlers."""
    if "threading" in sys.modules:
        import threading

        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # too much output, or closed
        return


def _run(parts: list[str], names: dict[str, Any]) -> BaseException | None:
    try:
        for code in [compile(part, "<code>", "exec") for part in parts]:
            exec(code, names)  # noqa: S102  # this is what the sandbox is for
    except BaseException as error:  # noqa: BLE001  # code may raise anything
        sys.__excepthook__(type(error), error, error.__traceback__)
        return error
    return None


def _answer(parts: list[str], pipes: tuple[int, int]) -> None:
    module = type(sys)(_MODULE)  # not __main__: a program's own start may wait for input
    sys.modules[_MODULE] = module
    names = vars(module)
    printed = _Printed()
    sys.stdout = io.TextIOWrapper(
        printed, "utf-8", errors="surrogateescape", newline="\n", write_through=True
    )
    raised = _run(parts, names)
    with os.fdopen(pipes[0], "rb") as reader, os.fdopen(pipes[1], "wb") as writer:
        program = _Program(reader, writer)
        program.names, program.output = names, printed
        program.printed()
        program.begin(raised)
        program.serve()


class _Printed(io.BytesIO):
    """Output that a program prints while its tests run, sent with its answers."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 1 << 18:
            raise OSError("too much output")
        return super().write(data)


class _Program(Peer):
    names: dict[str, Any]
    output: _Printed

    def begin(self, raised: BaseException | None) -> None:
        own = vars(type(sys)("")).keys() | {"__builtins__"}
        message: dict[str, Any] = {"names": [name for name in self.names if name not in own]}
        self._send({"value": None, "raised": self._describe(raised)} if raised else message)

    def carry_out(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if name == "global":
            return self.names[args[0]]
        return super().carry_out(name, args, named)

    def share(self, value: Any) -> dict[str, Any]:
        message = super().share(value)
        if isinstance(value, type(sys)):
            return {"k": "module", "v": value.__name__}
        message["t"] = str(getattr(value, "__name__", ""))[:64]
        compares: object = type(value).__eq__
        for kind, read in _VALUES.items():
            if isinstance(value, kind) and compares is kind.__eq__:  # for example an IntEnum
                message["value"] = read(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            message["bases"] = [
                find_name(base) or self.share(base)
                for base in value.__bases__
                if issubclass(base, BaseException)
            ]
        return message

    def _describe(self, error: BaseException) -> dict[str, Any]:
        message = super()._describe(error)
        if type(error).__name__ != message["base"]:
            encoder = Encoder({}, self._tell)
            message |= {"class": encoder.encode(type(error)), "object": encoder.encode(error)}
        return message

    def printed(self) -> str:
        if self.output.closed:
            return ""
        output = self.output.getvalue().decode("utf-8", "replace")
        if output:
            self.output.seek(0)
            self.output.truncate()
        return output
